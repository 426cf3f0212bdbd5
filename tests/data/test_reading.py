"""Files that are no files, announce too much, unpack to more than they say, or are pipes."""

import gzip
import io
import os
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command import ENVIRONMENT, NORMLAB

from normlab.data import DataError, DataSpec, MissingDataError, load
from normlab.data.formats import read_cifar10_binary, read_cifar10_python, read_idx_pair
from normlab.data.own import read_npz
from normlab.data.reading import MEMORY_SHARE, available_memory

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 10
ARRAYS = {
    "train_images": IMAGES[:8],
    "train_labels": LABELS[:8] % 2,
    "test_images": IMAGES[8:],
    "test_labels": LABELS[8:] % 2,
}


def idx(*shape, content):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + content


def npy(array, **changes):
    """A member of an archive, with changes to what its header says."""
    file = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | changes
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def archive(path, compression=zipfile.ZIP_STORED, **members):
    """An npz file in which some members are not what they should be."""
    with zipfile.ZipFile(path, "w", compression) as made:
        for name, array in ARRAYS.items():
            made.writestr(f"{name}.npy", members.pop(name, None) or npy(array))
        for name, content in members.items():
            made.writestr(name, content)
    return path


MEASURED = """
import resource, sys
from pathlib import Path
import numpy, sklearn
from normlab.data import DataError
from normlab.data.formats import read_cifar10_python, read_idx_pair
from normlab.data.own import read_npz
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
try:
    {call}
except DataError as error:
    print(error)
print((peak() - before) // 1024)
"""


def measured(call, *files):
    """Reads in a process of its own: the message, and the MiB that it took."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.format(call=call), *files],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    message, _, taken = done.stdout.strip().rpartition("\n")
    return message, int(taken)


IDX = "read_idx_pair(*map(Path, sys.argv[1:]))"
NPZ = "read_npz(Path(sys.argv[1]))"


def test_gzip_that_unpacks_to_more_than_its_header_says_is_read_no_further(tmp_path):
    bomb, labels = tmp_path / "images", tmp_path / "labels"
    zeros = bytes(2**20)
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(idx(12, 28, 28, content=IMAGES.tobytes()))
        for _ in range(400):
            file.write(zeros)
    labels.write_bytes(idx(12, content=LABELS.tobytes()))
    message, taken = measured(IDX, bomb, labels)
    assert "images: more bytes than the 9424 expected for the shape (12, 28, 28)" in message
    assert taken < 40


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_header_that_announces_more_than_memory_is_refused(tmp_path, pack):
    (tmp_path / "images").write_bytes(pack(idx(2**32 - 1, 28, 28, content=bytes(3 * 2**20))))
    message, taken = measured(IDX, tmp_path / "images", tmp_path / "none")
    assert (
        "images: the shape (4294967295, 28, 28) in its header announces 3.37 TB, expec" in message
    )
    assert f"which is {MEMORY_SHARE:.0%} of the " in message
    assert taken < 40


def test_an_idx_header_that_announces_what_is_not_there_takes_no_memory(tmp_path):
    count = 2**30 // 784
    if MEMORY_SHARE * available_memory() < 2**30:
        pytest.skip("needs 4 GiB of memory that nothing is done with")
    (tmp_path / "images").write_bytes(idx(count, 28, 28, content=bytes(2**20)))
    message, taken = measured(IDX, tmp_path / "images", tmp_path / "none")
    assert "the file is truncated" in message
    assert taken < 40


def test_an_npz_header_that_announces_what_the_archive_does_not_hold_takes_no_memory(tmp_path):
    header = npy(np.zeros(0, np.uint8), shape=(2**33, 1))
    path = archive(tmp_path / "own.npz", train_images=header)
    message, taken = measured(NPZ, path)
    assert "own.npz, train_images: 128 bytes, expected 8589934720 for the shape" in message
    assert "it is truncated" in message
    assert taken < 40


def test_a_bomb_in_an_npz_is_refused_by_both_numbers(tmp_path, monkeypatch):
    zeros = np.zeros((10, 2**20), np.uint8)
    path = archive(tmp_path / "bomb.npz", zipfile.ZIP_DEFLATED, train_images=npy(zeros))
    assert path.stat().st_size < 2**20 / 20
    monkeypatch.setattr("normlab.data.reading.available_memory", lambda: 8 * 10**6)
    told = r"bomb\.npz: the headers of its arrays announce 10\.5 MB, expected at most 2 MB, which "
    with pytest.raises(DataError, match=rf"{told}is 25% of the 8 MB of memory that are available"):
        read_npz(path)


def test_a_bomb_is_refused_within_a_limit_on_memory(tmp_path):
    zeros = np.zeros((2**28,), np.uint8).reshape(16, -1)
    path = archive(tmp_path / "bomb.npz", zipfile.ZIP_DEFLATED, train_images=npy(zeros))
    del zeros
    call = (
        "size = next(it for it in open('/proc/self/status') if it.startswith('VmSize')); "
        "limit = 1024 * int(size.split()[1]) + 2**29; "
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); " + NPZ
    )
    message, taken = measured(call, path)
    assert "the headers of its arrays announce 268 MB, expected at most 13" in message
    assert taken < 60


NPZ_FAULTS = {
    "no header": ({"train_images": b"1, 2, 3"}, "train_images: starts with the bytes 31 2c 20"),
    "no content": ({"train_labels": b" "}, "train_labels: starts with the bytes 20, expected"),
    "another version": (
        {"test_labels": b"\x93NUMPY\x09\x00" + bytes(80)},
        "test_labels: starts with the bytes 93 4e 55 4d 50 59 09 00, expected",
    ),
    "a header of nothing": (
        {"test_labels": b"\x93NUMPY\x01\x00\x05\x00{}   "},
        "test_labels: its header is no header",
    ),
    "a header cut": ({"test_labels": b"\x93NUMPY\x01\x00\xff\x00{"}, "test_labels: its header is"),
    "a negative shape": (
        {"train_images": npy(IMAGES, shape=(-8, 28, 28))},
        r"train_images: an array of type uint8 and shape \(-8, 28, 28\)",
    ),
    "cut": ({"train_images": npy(IMAGES[:8])[:-1]}, "train_images: .* it is truncated"),
    "trailing": ({"train_images": npy(IMAGES[:8]) + b"x"}, "train_images: .* has trailing bytes"),
    "objects": (
        {"train_labels": npy(np.zeros(8, "i8"), descr="|O")},
        "train_labels: an array of type object .* may run anything",
    ),
    "columns": (
        {"train_labels": npy(np.zeros(8, "i8"), descr=[("a", "<i8")])},
        r"train_labels: an array of type \[\('a', '<i8'\)\] .* expected numbers",
    ),
    "nothing wide": ({"train_labels": npy(np.zeros(8, "i1"), descr="|S0")}, "train_labels: an arr"),
}


@pytest.mark.parametrize(("members", "told"), NPZ_FAULTS.values(), ids=NPZ_FAULTS)
def test_a_member_that_is_no_array_is_named(tmp_path, members, told):
    path = archive(tmp_path / "own.npz", **members)
    with pytest.raises(DataError, match=rf"own\.npz, {told}"):
        read_npz(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path):
    path = archive(tmp_path / "own.npz", **{"train_images.npy": npy(IMAGES[:8])})
    with pytest.raises(DataError, match=r"own\.npz: holds train_images 2 times, expected once"):
        read_npz(path)


def test_an_encrypted_archive_is_told(tmp_path):
    path = archive(tmp_path / "own.npz")
    content = bytearray(path.read_bytes())
    for start in (b"PK\x03\x04", b"PK\x01\x02"):
        place = content.index(start)
        content[place + (6 if start[2] == 3 else 8)] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"own\.npz: not a readable npz archive \(.*encrypted"):
        read_npz(path)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (b"\x80\x02}r\xff\xff\xff\xff.", "remembers something at the place 4294967295"),
        (b"\x80\x02}p99999999\n.", "remembers something at the place 99999999"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "1099511627776 bytes"),
    ],
)
def test_a_pickle_that_asks_for_more_than_it_has_takes_no_memory(tmp_path, steps, told):
    path = tmp_path / "data_batch_1"
    path.write_bytes(steps)
    message, taken = measured("read_cifar10_python(Path(sys.argv[1]))", path)
    assert told in message
    assert taken < 40


def test_a_pickle_of_gigabytes_is_read_no_further_than_one_of_cifar10_goes(tmp_path):
    path = tmp_path / "data_batch_1"
    with path.open("wb") as file:
        file.truncate(2**30)
    message, taken = measured("read_cifar10_python(Path(sys.argv[1]))", path)
    assert "data_batch_1: more than 65634304 bytes, which is no file of CIFAR-10" in message
    assert taken < 200


READERS = {
    "npz": read_npz,
    "binary": read_cifar10_binary,
    "python": read_cifar10_python,
    "idx": lambda path: read_idx_pair(path, path),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_is_no_file_is_named(tmp_path, read):
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for name, told in {
        ".": r"the folder lacks train_images\.npy" if read is read_npz else "is a folder; expected",
        "link": "link is a link to nowhere, which is not there",
        "loop": "loop is a link to loop, which comes back to itself",
        "file/within": "file is a file; expected a folder",
        "nothing": "nothing: there is no such file",
        "no/thing": "no/thing cannot be read: No such file or directory",
    }.items():
        with pytest.raises(MissingDataError, match=told) as caught:
            read(tmp_path / name)
        assert "Errno" not in str(caught.value)


def piped(path, content):
    """Makes a pipe that gives this content, in small parts, once it is read."""
    os.mkfifo(path)

    def write():
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(content), 1000):
                file.write(content[start : start + 1000])

    threading.Thread(target=write, daemon=True).start()
    return path


def test_pipes_are_read(tmp_path):
    file = io.BytesIO()
    np.savez(file, **ARRAYS)
    spec = DataSpec(name="npz", folder=str(piped(tmp_path / "own", file.getvalue())), batch_size=2)
    np.testing.assert_array_equal(load(spec).images[..., 0], IMAGES)
    names = {"images": IMAGES, "labels": LABELS}
    for pack in (bytes, gzip.compress):
        folder = tmp_path / f"mnist-{pack.__name__}"
        folder.mkdir()
        suffix = ".gz" if pack is gzip.compress else ""
        for part in ("train", "t10k"):
            for kind, dimensions in (("images", 3), ("labels", 1)):
                content = pack(idx(*names[kind].shape, content=names[kind].tobytes()))
                piped(folder / f"{part}-{kind}-idx{dimensions}-ubyte{suffix}", content)
        dataset = load(DataSpec(name="mnist", folder=str(folder), batch_size=2))
        np.testing.assert_array_equal(dataset.images[:12, ..., 0], IMAGES)
        np.testing.assert_array_equal(dataset.labels[:12], LABELS)


def test_a_pipe_that_gives_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("normlab.data.reading.available_memory", lambda: 4000)
    pipe = piped(tmp_path / "own", bytes(3000))
    with pytest.raises(DataError, match="own: gives at least 1 KB, expected at most 1 KB"):
        read_npz(pipe)


def test_links_and_folders_in_the_place_of_official_files_are_named(tmp_path):
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"):
        (tmp_path / name).mkdir()
    (tmp_path / "t10k-labels-idx1-ubyte.gz").symlink_to("nowhere")
    told = "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte.gz, a link to what is not there"
    with pytest.raises(MissingDataError, match=told):
        load(DataSpec(name="mnist", folder=str(tmp_path)))
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for name, told in {
        "link": "link: a link to what is not there",
        "loop": "loop: too many levels of symbolic links",
        "file": "file: not a directory",
        "~nobody-of-this-name/x": "nobody-of-this-name/x: .*give the path in full",
    }.items():
        folder = name if name[0] == "~" else str(tmp_path / name)
        with pytest.raises(MissingDataError, match=told):
            load(DataSpec(name="mnist", folder=folder))


def test_the_command_tells_each_without_a_traceback(tmp_path):
    (tmp_path / "small.yaml").write_text(
        "study: small\ndata: {name: npz, folder: own.npz}\nmodel: {name: mlp}\n"
        "optimizer: {name: sgd}\ntrain: {epochs: 1}\nvariants: {none: {layer: identity}}\n"
    )
    archive(tmp_path / "own.npz", train_images=b"no header")
    done = subprocess.run(
        [*NORMLAB, "compare", "small.yaml"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "own.npz, train_images: starts with the bytes 6e 6f 20" in done.stderr
    assert "Write a file with numpy.savez(FILE" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(tmp_path / "runs").exists()


def test_memory_is_that_of_the_machine_or_less():
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**26 < available_memory() <= machine
