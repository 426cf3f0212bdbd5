"""Damages files of data sets in every way that it knows, and reads them.

    python tests/data/fuzzing.py [EXECUTIONS [SEED [FORMAT...]]]

An execution writes a small valid set, damages one of its files, and loads the set. Then either the
data set is what an independent reader makes of the files, or the error is a `DataError` that names
the file in fewer than a thousand printable characters; nothing is warned of, and memory and time
stay within bounds. What an execution does comes from its number and the seed alone.
"""

import bz2
import gzip
import io
import json
import lzma
import pickle
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from normlab.data import DataError, DataSpec, formats, load

# A file of CIFAR-10 has ten thousand; fewer take less time.
EXAMPLES = 12
MOST_SECONDS = 10  # of the processor
MOST_MEMORY = 100 * 2**20
MOST_CHARACTERS = 1000

Files = dict[str, bytes]
Random = np.random.Generator
Arrays = tuple[np.ndarray, np.ndarray]

NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    10,
    127,
    128,
    255,
    256,
    784,
    2**15,
    2**16 - 1,
    2**16,
    2**24,
    2**31 - 1,
]
NUMBERS += [2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


def one_of(rng: Random, choices):
    return choices[rng.integers(len(choices))]


# Damage to bytes, whatever they mean


def flip_bits(rng: Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for place in places(rng, content, rng.integers(1, 5)):
        damaged[place] ^= 1 << rng.integers(8)
    return bytes(damaged)


def overwrite_bytes(rng: Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for place in places(rng, content, rng.integers(1, 5)):
        damaged[place] = one_of(rng, [0, 1, 10, 13, 27, 46, 127, 128, 255])
    return bytes(damaged)


def overwrite_number(rng: Random, content: bytes) -> bytes:
    width = int(one_of(rng, [1, 2, 4, 8]))
    number = one_of(rng, NUMBERS) % 2 ** (8 * width)
    (place,) = places(rng, content, 1)
    inserted = number.to_bytes(width, one_of(rng, ["little", "big"]))
    return content[:place] + inserted + content[place + width :]


def places(rng: Random, content: bytes, count) -> list[int]:
    """Places in a file: headers stand at its beginning, directories at its end."""
    last = len(content) - 1
    reach = int(min(last, one_of(rng, [16, 64, 300, last])))
    found = rng.integers(0, reach + 1, count)
    return [int(it) for it in (found if rng.random() < 0.6 else last - found)]


def cut(rng: Random, content: bytes) -> bytes:
    return content[: rng.integers(len(content))]


def cut_out(rng: Random, content: bytes) -> bytes:
    start, end = sorted(rng.integers(0, len(content), 2))
    return content[:start] + content[min(end, start + 200) :]


def double(rng: Random, content: bytes) -> bytes:
    start, end = sorted(rng.integers(0, len(content) + 1, 2))
    return content[:end] + content[start:]


def add(rng: Random, content: bytes) -> bytes:
    added = one_of(rng, [b"\0", b"\n", bytes(600), rng.bytes(70), content])
    return added + content if rng.random() < 0.3 else content + added


def pack(rng: Random, content: bytes) -> bytes:
    packed = one_of(rng, [gzip.compress, bz2.compress, lzma.compress])(content)
    return gzip.compress(packed) if rng.random() < 0.3 else packed


def replace(rng: Random, content: bytes) -> bytes:
    return one_of(rng, [b"", b"\0", b"<html>404", b"version https://git-lfs", rng.bytes(900)])


BYTES = [flip_bits, overwrite_bytes, overwrite_number, cut, cut_out, double, add, pack, replace]


# MNIST


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


MNIST = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
MNIST_FILES = [f"{name}-ubyte" for name in MNIST]


def write_mnist(rng: Random) -> Files:
    files = {}
    for images, labels, count in zip(MNIST_FILES[::2], MNIST_FILES[1::2], (20, 6), strict=True):
        files[images] = idx(rng.integers(0, 256, (count, 28, 28), np.uint8))
        files[labels] = idx(np.arange(count, dtype=np.uint8) % 10)
    return {name: gzip.compress(it) if rng.random() < 0.6 else it for name, it in files.items()}


def unpacked(content: bytes) -> bytes:
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def read_mnist(files: Files) -> Arrays:
    parts = []
    for name, content in files.items():
        content = unpacked(content)
        dimensions = 3 if "idx3" in name else 1
        magic, *shape = struct.unpack_from(f">{dimensions + 1}I", content)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
        assert magic == 2048 + dimensions
        assert values.size
        assert dimensions == 1 or shape[1:] == [28, 28]
        assert dimensions == 3 or ((values < 10).all() and len(values) == len(parts[-1]))
        parts.append(values)
    return np.concatenate(parts[::2])[..., None], np.concatenate(parts[1::2])


def idx_number(rng: Random, content: bytes) -> bytes:
    changed = bytearray(unpacked(content))
    struct.pack_into(
        ">I", changed, 4 * rng.integers(min(4, len(changed) // 4)), one_of(rng, NUMBERS) % 2**32
    )
    return gzip.compress(changed)


def idx_content(rng: Random, content: bytes) -> bytes:
    return gzip.compress(one_of(rng, BYTES)(rng, unpacked(content)))


def gzip_parts(rng: Random, content: bytes) -> bytes:
    """A file of several streams, which is as good as one, or with something at its end."""
    content = unpacked(content)
    end = rng.integers(len(content))
    empty = gzip.compress(b"")
    parts = [gzip.compress(content[:end]), gzip.compress(content[end:])]
    return one_of(rng, [b"", empty, b"\0", rng.bytes(5)]).join(parts) + one_of(
        rng, [b"", empty, b"\0"]
    )


def gzip_fields(rng: Random, content: bytes) -> bytes:
    """What may stand in a header of gzip: further fields, the name of a file, a comment."""
    packed = gzip.compress(unpacked(content))
    flags = int(rng.integers(32))
    field = one_of(rng, [b"name\0", bytes(9), b"x" * 70_000, b"\xff\xff" + bytes(70_000)])
    return packed[:3] + bytes([flags]) + packed[4:10] + field + packed[10:]


def gzip_bomb(rng: Random, content: bytes) -> bytes:
    file = io.BytesIO()
    with gzip.open(file, "wb", compresslevel=1) as packed:
        packed.write(unpacked(content))
        for _ in range(256):
            packed.write(bytes(2**20))
    return file.getvalue()


# npz


NPZ = ("train_images", "train_labels", "test_images", "test_labels")
KERAS = ("x_train", "y_train", "x_test", "y_test")
TYPES = ["|u1", "<f4", "<f8", "<f2", ">f4", ">f8", "<i4", ">i2", "<u2", "<i8", "|i1"]


def npy(array: np.ndarray, version=(1, 0), **changes) -> bytes:
    file = io.BytesIO()
    order = array.flags.f_contiguous and not array.flags.c_contiguous
    header = {"descr": array.dtype.str, "fortran_order": order, "shape": array.shape} | changes
    text = (repr(header) + " " * 20 + "\n").encode()
    file.write(np.lib.format.magic(*version))
    file.write(struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text)
    return file.getvalue() + array.tobytes("F" if order else "C")


def npz_arrays(rng: Random) -> dict[str, np.ndarray]:
    shape = one_of(rng, [(4,), (3, 5), (3, 2, 2)])
    dtype = np.dtype(one_of(rng, TYPES))
    order = one_of(rng, "CF")
    names = one_of(rng, [NPZ, KERAS])
    arrays = {}
    for images, labels, count in zip(names[::2], names[1::2], (20, 6), strict=True):
        arrays[images] = np.asarray(rng.integers(0, 100, (count, *shape)), dtype, order=order)
        wide = (count, 1) if rng.random() < 0.2 else (count,)
        arrays[labels] = (
            (np.arange(count) % 3).reshape(wide).astype(one_of(rng, ["u1", "i8", ">i4"]))
        )
    return arrays


def write_npz(rng: Random) -> Files:
    version = one_of(rng, [(1, 0), (2, 0), (3, 0)])
    members = {f"{name}.npy": npy(it, version) for name, it in npz_arrays(rng).items()}
    return {"own.npz": zipped(rng, members)}


def zipped(rng: Random, members: Files, compression: int | None = None) -> bytes:
    file = io.BytesIO()
    usual = one_of(rng, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression or usual) as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, content in members.items():
            archive.writestr(name.removesuffix(" again"), content)
    return file.getvalue()


def members_of(content: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_own(files: Files) -> Arrays:
    with np.load(io.BytesIO(files["own.npz"]), allow_pickle=False) as archive:
        names = NPZ if set(NPZ) <= set(archive.files) else KERAS
        arrays = [archive[name] for name in names]
    images = np.concatenate(arrays[::2])
    if images.dtype == np.uint8 or images.dtype.kind == "f":
        images = images.astype(np.uint8 if images.dtype == np.uint8 else np.float32)
        images = images[:, None, None] if images.ndim == 2 else images
        images = images[..., None] if images.ndim == 3 else images
    return images, np.concatenate([it.reshape(-1) for it in arrays[1::2]])


def npz_member(rng: Random, content: bytes) -> bytes:
    members = members_of(content)
    name = one_of(rng, list(members))
    members[name] = one_of(rng, BYTES)(rng, members[name])
    return zipped(rng, members)


def npz_names(rng: Random, content: bytes) -> bytes:
    members = members_of(content)
    name, other = one_of(rng, list(members)), one_of(rng, list(members))
    changes: list[Files] = [
        {name: members[other], other: members[name]},
        {f"{name} again": members[other]},
        {f"more{number}\x1b[31m\n": b"" for number in range(int(rng.integers(1, 400)))},
        {"a" * 60_000: b""},
        {"../../../etc/x": b"", "folder/": b""},
        {name: zipped(rng, members)},
        {name.removesuffix(".npy"): members[name]},
    ]
    return zipped(rng, members | one_of(rng, changes))


def npz_without(rng: Random, content: bytes) -> bytes:
    members = members_of(content)
    del members[one_of(rng, list(members))]
    members |= {f"\x07{number}": b"" for number in range(int(rng.integers(300)))}
    return zipped(rng, members)


OTHER_COMPRESSIONS = [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def npz_compression(rng: Random, content: bytes) -> bytes:
    return zipped(rng, members_of(content), int(one_of(rng, OTHER_COMPRESSIONS)))


def npz_bomb(rng: Random, content: bytes) -> bytes:
    """Far more values than the header of an array says, in a member of a few hundred bytes."""
    members = members_of(content)
    members[one_of(rng, list(members))] += bytes(2**27)
    return zipped(rng, members, int(one_of(rng, [*OTHER_COMPRESSIONS, zipfile.ZIP_DEFLATED])))


SHAPES = [(), (20,), (-20, 4), (2**40,), (2**70, 2), (20, 0), (1,) * 40, (1,) * 3000, (10**5000,)]
SHAPES += [
    (20, 4.0),
    (True, 4),
    [20, 4],
    None,
    "20",
    (20, 2, 2),
    (20, 1, 2, 2),
    (20, 4, 1, 1, 1),
    (5, 4),
]
DESCRIPTIONS = [
    "|O",
    "<f16",
    ">f8",
    "<i4",
    "|b1",
    "<c8",
    "<M8[ns]",
    "<U1",
    "|S4",
    "|V4",
    "|V0",
    "T",
    "",
]
DESCRIPTIONS += [
    "<f4,<f4",
    [("a", "<f4")],
    [("a" * 5000, "<f4")],
    ("<f4", (4,)),
    "|u1",
    "<i8",
    None,
    3,
]
DESCRIPTIONS += ["|S99999999999", [("a", [("b", "|O")])], {"names": ["a"], "formats": ["<f4"]}]


def npy_header(rng: Random, content: bytes) -> bytes:
    arrays = npz_arrays(rng)
    name = one_of(rng, list(arrays))
    changes = {}
    while not changes:
        if rng.random() < 0.5:
            changes["shape"] = one_of(rng, SHAPES)
        if rng.random() < 0.5:
            changes["descr"] = one_of(rng, DESCRIPTIONS)
        if rng.random() < 0.2:
            changes["fortran_order"] = one_of(rng, [True, 1, None, "yes"])
        if rng.random() < 0.1:
            changes[one_of(rng, ["more", "\x1b"])] = 1
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    members = {f"{it}.npy": npy(arrays[it], **(changes if it == name else {})) for it in arrays}
    sys.set_int_max_str_digits(limit)
    return zipped(rng, members)


HEADERS = [b"(" * 5000, b"[" * 200 + b"]" * 200, b"-" * 9000 + b"1", b"1+" * 4500 + b"1", b"{" * 99]
HEADERS += [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (20L, 4L)}",
    b"__import__('os')",
    b"",
]
HEADERS += [b"\xff\xfe" * 100, b"'" + b"x" * 9000 + b"'", b"{1: " * 3000, b"9" * 6000, b"\0" * 50]


def npy_text(rng: Random, content: bytes) -> bytes:
    members = members_of(content)
    name = one_of(rng, list(members))
    text = one_of(rng, HEADERS)
    version = int(one_of(rng, [1, 2, 3]))
    length = one_of(rng, [len(text), len(text), 0, 65535, 2**32 - 1])
    packed = struct.pack("<H", length % 2**16) if version == 1 else struct.pack("<I", length)
    members[name] = b"\x93NUMPY" + bytes([version, 0]) + packed + text
    return zipped(rng, members)


def npy_bomb(rng: Random, content: bytes) -> bytes:
    """A header of hundreds of megabytes."""
    members = members_of(content)
    header = b"\x93NUMPY\2\0" + struct.pack("<I", 2**27) + b" " * 2**27
    members[one_of(rng, list(members))] = header
    return zipped(rng, members, zipfile.ZIP_DEFLATED)


def npz_end(rng: Random, content: bytes) -> bytes:
    """The end of an archive, where it says where its directory is."""
    place = content.rindex(b"PK\5\6")
    fields = bytearray(content[place:])
    struct.pack_into("<I", fields, int(rng.integers(4, 19)), one_of(rng, NUMBERS) % 2**32)
    located = struct.pack(
        "<4sLQL", b"PK\6\7", *[int(one_of(rng, NUMBERS)) % 2**32 for _ in range(3)]
    )
    return content[:place] + one_of(rng, [b"", located]) + bytes(fields)


# CIFAR-10


CIFAR10 = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def cifar10_arrays(rng: Random) -> Arrays:
    pixels = rng.integers(0, 256, (EXAMPLES, 3072), np.uint8)
    return pixels, np.arange(EXAMPLES) % 10


def write_cifar10_binary(rng: Random) -> Files:
    parts = [cifar10_arrays(rng) for _ in CIFAR10]
    records = [np.concatenate([it[1][:, None], it[0]], 1).astype(np.uint8) for it in parts]
    return {f"{name}.bin": it.tobytes() for name, it in zip(CIFAR10, records, strict=True)}


def channels_last(planes: np.ndarray) -> np.ndarray:
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def read_cifar10_binary(files: Files) -> Arrays:
    records = [np.frombuffer(it, np.uint8).reshape(EXAMPLES, 3073) for it in files.values()]
    every = np.concatenate(records)
    assert (every[:, 0] < 10).all()
    return channels_last(every[:, 1:]), every[:, 0]


def batch_of(rng: Random) -> dict:
    pixels, labels = cifar10_arrays(rng)
    order = one_of(rng, "CF")
    keys = one_of(rng, [lambda it: it, str.encode])
    return {
        keys("batch_label"): "training batch",
        keys("labels"): labels.tolist(),
        keys("data"): np.asarray(pixels, order=order),
        keys("filenames"): [f"image_{number}.png" for number in range(EXAMPLES)],
    }


def write_cifar10_python(rng: Random) -> Files:
    return {name: pickle.dumps(batch_of(rng), int(rng.integers(6))) for name in CIFAR10}


class OnlyNumpy(pickle.Unpickler):
    """Makes real arrays, for files that were read without."""

    def find_class(self, module: str, name: str):
        assert name in ("_reconstruct", "_frombuffer", "ndarray", "dtype", "encode")
        return super().find_class(module, name)


def read_cifar10_python(files: Files) -> Arrays:
    pixels, labels = [], []
    for content in files.values():
        batch = OnlyNumpy(io.BytesIO(content), encoding="bytes").load()
        pixels.append(batch.get(b"data", batch.get("data")))
        labels += batch.get(b"labels", batch.get("labels"))
    assert all(it.dtype == np.uint8 and it.shape == (EXAMPLES, 3072) for it in pixels)
    return channels_last(np.concatenate(pixels)), np.array(labels)


def endless() -> list:
    nested: list = []
    for _ in range(150):
        nested = [nested]
    return nested


ODD = [
    None,
    True,
    -1,
    10,
    2**40,
    2**70,
    10**5000,
    1.5,
    "x",
    b"x",
    "x" * 10_000,
    (),
    [],
    {},
    endless(),
]


def batch_value(rng: Random, content: bytes) -> bytes:
    batch = batch_of(rng)
    key = one_of(rng, list(batch))
    held = batch[key]
    if rng.random() < 0.4:
        batch[key] = one_of(rng, ODD)
    elif isinstance(held, list):
        held[rng.integers(len(held))] = one_of(rng, ODD)
    elif isinstance(held, np.ndarray):
        changes = [
            held[1:],
            held.T,
            held.astype("i1"),
            held.astype("f4"),
            held[..., None],
            held == 3,
        ]
        changes += [held.astype(object), held.reshape(-1), np.zeros(0, np.uint8), held.astype("S")]
        batch[key] = one_of(rng, changes)
    else:
        del batch[key]
    return pickle.dumps(batch, int(rng.integers(2, 6)))


# Steps of a pickle: of each kind some, with and without what they need.
STEPS = [bytes([code]) for code in range(256)]
STEPS += [
    b"]" * 5000,
    b"}" * 5000,
    b"\x8f" * 5000,
    b"(" * 5000,
    b")" * 5000,
    b"N" * 5000,
    b"0",
    b"1",
]
STEPS += [
    b"cos\nsystem\n",
    b"c" + b"x" * 9000 + b"\n\x1b[31m\n",
    b"cnumpy\nload\n",
    b"cbuiltins\neval\n",
]
STEPS += [
    b"ios\nsystem\n",
    b"Pid\n",
    b"I" + b"9" * 9000 + b"\n",
    b"L9999999999999999999999L\n",
    b"Fnan\n",
]
STEPS += [b"\x8b\x10\0\0\0" + b"\xff" * 16, b"\x8b\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8]
STEPS += [
    b"\x96" + b"\0\0\0\0\0\0\0\x7f",
    b"r\xff\xff\xff\xff",
    b"j\xff\xff\xff\xff",
    b"p999999999999\n",
]
STEPS += [
    b"\x95" + b"\xff" * 8,
    b"\x82\x01",
    b"\x83\x01\x01",
    b"q\0h\0",
    b"h\0)R",
    b"h\0}b",
    b"2" * 99,
]


def pickle_steps(rng: Random, content: bytes) -> bytes:
    for _ in range(rng.integers(1, 4)):
        (place,) = places(rng, content, 1)
        content = content[:place] + one_of(rng, STEPS) + content[place + rng.integers(3) :]
    return content


def pickle_whole(rng: Random, content: bytes) -> bytes:
    return b"\x80\x04" + b"".join(one_of(rng, STEPS) for _ in range(rng.integers(1, 30))) + b"."


def pickle_bomb(rng: Random, content: bytes) -> bytes:
    """One byte of a pickle makes an object of fifty to two hundred."""
    kind = one_of(rng, [b"]", b"\x8f", b"}"])
    return b"\x80\x04(" + kind * 2_000_000 + b"l."


# All of them


Read = Callable[[Files], Arrays]
Damage = list[Callable[[Random, bytes], bytes]]

FORMATS: dict[str, tuple[str, Callable[[Random], Files], Read, Damage]] = {
    "mnist": (
        "mnist",
        write_mnist,
        read_mnist,
        [*BYTES, *BYTES, idx_number, idx_number, idx_content, gzip_parts, gzip_fields],
    ),
    "npz": (
        "npz",
        write_npz,
        read_own,
        [*BYTES, npz_names, npz_without, npz_compression]
        + [npz_member, npy_header, npy_text, npz_end] * 2,
    ),
    "cifar10_binary": ("cifar10", write_cifar10_binary, read_cifar10_binary, BYTES),
    "cifar10_python": (
        "cifar10",
        write_cifar10_python,
        read_cifar10_python,
        [*BYTES, *[batch_value, pickle_steps, pickle_whole] * 4],
    ),
}
# These take a second each: once in so many executions.
RARE: dict[str, Damage] = {
    "mnist": [gzip_bomb],
    "npz": [npz_bomb, npy_bomb],
    "cifar10_binary": [],
    "cifar10_python": [pickle_bomb],
}
RARITY = 30


def peak() -> int:
    """The most bytes of memory that this process has taken."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(it for it in lines if it.startswith("VmHWM")).split()[1])


def execute(name: str, seed: int, number: int, folder: Path) -> str:
    """Does one execution, and says what it found: nothing, if all is as it should be."""
    rng = np.random.default_rng([seed, number])
    data_set, write, read, damages = FORMATS[name]
    files = write(rng)
    intact = number % 10 == 0
    rare = RARE[name] and number % RARITY == 1
    if not intact:
        damage = one_of(rng, RARE[name] if rare else damages)
        victim = one_of(rng, list(files))
        files[victim] = damage(rng, files[victim])
    for file, content in files.items():
        (folder / file).write_bytes(content)
    place = folder / "own.npz" if data_set == "npz" else folder
    spec = DataSpec(name=data_set, folder=str(place), batch_size=1)
    error = dataset = None
    started = time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    memory = peak()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            dataset = load(spec)
        except DataError as raised:
            error = str(raised)
        except BaseException:
            return f"another error:\n{traceback.format_exc()[-3000:]}"
    taken = peak() - memory
    if (seconds := time.process_time() - started) > MOST_SECONDS:
        return f"{seconds:.1f} s"
    if taken > MOST_MEMORY:
        return f"{taken >> 20} MiB"
    if any(issubclass(it.category, RuntimeWarning) for it in warned):
        return f"a warning: {warned[0].message}"
    if error is not None:
        if intact:
            return f"an intact set is refused: {error[:300]}"
        if len(error) >= MOST_CHARACTERS:
            return f"a message of {len(error)} characters: {error[:300]}"
        if str(folder) not in error or not error.replace("\n", "").isprintable():
            return f"a message without the path, or with what a terminal takes for more: {error!r}"
    if rare or (error is not None and data_set == "npz") or (name == "cifar10_python" and error):
        return ""  # The independent reader takes more than this one, or any amount of memory.
    try:
        expected = read(files)
    except Exception as refused:
        return "" if error else f"read, but the independent reader refuses it: {refused!r}"[:900]
    if error is not None:
        return f"refused, but the independent reader has no fault to find: {error[:300]}"
    assert dataset is not None
    if not np.array_equal(dataset.images, expected[0]):
        return f"other images of {dataset.images.shape}, expected {expected[0].shape}"
    if not np.array_equal(dataset.labels, expected[1]):
        return "other labels"
    return ""


def main(executions: int = 1000, seed: int = 0, *names: str) -> None:
    """Does so many executions of each format, and prints how many found something, and what."""
    formats.CIFAR10_EXAMPLES = EXAMPLES
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**31, size + 2**31))
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or FORMATS:
            where = Path(folder, name)
            where.mkdir()
            for number in range(executions):
                if finding := execute(name, seed, number, where):
                    findings.append(f"{name}, seed {seed}, execution {number}: {finding}")
            print(name, executions, file=sys.stderr)
    print(json.dumps(findings, indent=1))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
