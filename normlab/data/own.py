"""Sets of a user's own: the arrays of an npz file, or of a loader."""

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from ..spec import Targets
from .reading import (
    DataError,
    MissingDataError,
    exactly,
    opened,
    reason,
    refuse_more_than_memory,
    shown,
)
from .rows import Brought, Rows
from .targets import KINDS, check_targets

Images = UInt8[np.ndarray, "_ h w c"] | Float32[np.ndarray, "_ h w c"] | Int32[np.ndarray, "_ ..."]

Labels = Int32[np.ndarray, "_ ..."] | UInt8[np.ndarray, "_ _"] | Float32[np.ndarray, "_ _"]
Part = tuple[Images | Rows, Labels | None]

NPZ_NAMES = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)


def expected(targets: Targets = "classes") -> str:
    """Says what a study can have for its own arrays, for messages."""
    return (
        "images uint8 or floating of shape (N, H, W), (N, H, W, C) or (N, features), or other "
        f"integers of 2 to 4 dimensions, as (N, tokens); labels {KINDS[targets].expected}"
    )


def names_for(targets: Targets) -> tuple[tuple[str, ...], ...]:
    """Returns what the arrays of a set are called: as normlab has it, and as Keras has it."""
    return tuple(names[::2] if targets == "none" else names for names in NPZ_NAMES)


# By the version of the format: how many bytes say how long a header is, and who reads it.
_HEADERS = {
    b"\x01\x00": (2, np.lib.format.read_array_header_1_0),
    b"\x02\x00": (4, np.lib.format.read_array_header_2_0),
    # As the second, but for names of columns, which no set has.
    b"\x03\x00": (4, np.lib.format.read_array_header_2_0),
}
# Of each member of a zip file, before its name.
_LOCAL_HEADER = 30
# NumPy writes a header of 118 bytes, and reads none that is longer than this.
_MOST_OF_A_HEADER = 10_000
# Others, which numpy.savez does not write, are unpacked without regard for how much is asked for.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_npz(path: Path, targets: Targets = "classes", *, stays: bool = False) -> tuple[Part, Part]:
    """Reads a set of one's own from the arrays of one npz file, or of a folder of npy files.

    The arrays are called `train_images, train_labels, test_images, test_labels`, or as Keras has
    it `x_train, y_train, x_test, y_test`; see `check_arrays` for what they hold. No array is read
    before the headers of all are, which must agree with the archive and fit into memory; objects
    are never read.

    Args:
        path: The file or folder.
        targets: What its labels are. Where the targets are in the inputs, no labels are read.
        stays: Whether the images stay where they are, and are read when they are asked for.

    Returns:
        Images and labels of the training and the test split, as `check_arrays`.

    Raises:
        MissingDataError: the file is not there.
        DataError: the file is damaged, lacks an array, its arrays do not fit together, they are
            more than `MEMORY_SHARE` of the memory that is available, or they are compressed and
            cannot stay where they are.
    """
    if path.is_dir():
        names, arrays = _read_folder(path, targets, stays=stays)
        return check_arrays(str(path), names, arrays, targets, stays=stays)
    with opened(path) as file:
        try:
            start = file.read(2)
            if start != b"PK" or not zipfile.is_zipfile(file):
                raise DataError(f"{path}: not an npz archive, or its beginning or end is missing.")
            with zipfile.ZipFile(file) as archive:
                names, members = _members(path, archive, targets)
                headers = [_header(f"{path}, {name}", archive, members[name]) for name in names]
                stay = _staying(names, targets) if stays else set()
                given = list(zip(names, headers, strict=True))
                size = sum(it.size_in_memory for name, it in given if name not in stay)
                refuse_more_than_memory(
                    f"{path}: the headers of its arrays announce", size, streams=not stays
                )
                arrays = [
                    _mapped(f"{path}, {name}", path, file, members[name], header)
                    if name in stay
                    else _array(f"{path}, {name}", archive, members[name], header)
                    for name, header in given
                ]
        except DataError:
            raise
        except Exception as error:  # zip, zlib and NumPy each have errors of their own
            raise DataError(f"{path}: not a readable npz archive ({reason(error)}).") from error
    return check_arrays(str(path), names, arrays, targets, stays=stays)


@dataclass(frozen=True)
class _Header:
    """What an array says of itself before its values.

    Attributes:
        shape: Its shape.
        order: "F" for the first index running fastest, else "C".
        dtype: The type of its values.
        start: Bytes before the values.
    """

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    start: int

    @property
    def size(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def size_in_memory(self) -> int:
        """Bytes of its values where they are used: of four bytes each, unless they are bytes."""
        return self.size if self.dtype == np.uint8 else max(self.size, 4 * math.prod(self.shape))


def _members(
    path: Path, archive: zipfile.ZipFile, targets: Targets
) -> tuple[Sequence[str], dict[str, zipfile.ZipInfo]]:
    """Finds the arrays of a set: their names, and all members by the names of arrays."""
    members = {it.filename.removesuffix(".npy"): it for it in archive.infolist()}
    known = names_for(targets)
    names = next((names for names in known if set(names) <= set(members)), None)
    if names is None:
        raise DataError(
            f"{path}: holds the arrays {shown(', '.join(members)) or '(none)'}; expected "
            f"{', '.join(known[0])} or {', '.join(known[1])}."
        )
    for name in names:
        found = [
            it.filename for it in archive.infolist() if it.filename.removesuffix(".npy") == name
        ]
        if len(found) > 1:
            raise DataError(f"{path}: holds {name} {len(found)} times, expected once.")
    return names, members


def _header(where: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Header:
    if member.compress_type not in _COMPRESSIONS:
        raise DataError(
            f"{where}: compressed by method {member.compress_type}, expected that of "
            "numpy.savez_compressed, or none."
        )
    stream: Any  # which the types do not know to be one of the io module
    with archive.open(member) as stream:
        magic = bytes(exactly(stream, len(np.lib.format.MAGIC_PREFIX) + 2))
        width, read_header = _HEADERS.get(magic[-2:], (0, None))
        if not magic.startswith(np.lib.format.MAGIC_PREFIX) or read_header is None:
            raise DataError(
                f"{where}: starts with the bytes {magic.hex(' ') or '(none)'}, expected those of "
                "an array as numpy.save writes it."
            )
        announced = exactly(stream, width)
        length = int.from_bytes(announced, "little")
        if length > _MOST_OF_A_HEADER:
            raise DataError(
                f"{where}: a header of {length} bytes, expected at most {_MOST_OF_A_HEADER}."
            )
        described = exactly(stream, length)
    try:
        shape, columns_first, dtype = read_header(io.BytesIO(announced + described))
        header = _Header(
            shape, "F" if columns_first else "C", dtype, len(magic) + width + len(described)
        )
        shape_told, type_told = shown(shape), shown(dtype)
    except Exception as error:  # what it holds is evaluated as Python's literals are
        told = f"{where}: its header is no header of an array ({reason(error)})."
        raise DataError(told) from error
    composed = dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None
    if composed or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise DataError(
            f"{where}: an array of type {type_told} and shape {shape_told}; expected numbers. "
            "Objects are never read, since reading them may run anything."
        )
    if member.file_size != header.start + header.size:
        cut = member.file_size < header.start + header.size
        raise DataError(
            f"{where}: {member.file_size} bytes, expected {shown(header.start + header.size)} for "
            f"the shape {shape_told} and type {type_told} in its header; it "
            f"{'is truncated' if cut else 'has trailing bytes'}."
        )
    return header


def _array(
    where: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: _Header
) -> np.ndarray:
    stream: Any
    with archive.open(member) as stream:
        exactly(stream, header.start)
        content = exactly(stream, header.size)
        stream.read(1)  # At its end, the archive compares the checksum.
    if len(content) != header.size:
        raise DataError(f"{where}: {len(content)} bytes of values, expected {header.size}.")
    return np.frombuffer(content, header.dtype).reshape(header.shape, order=header.order)


def _staying(names: Sequence[str], targets: Targets) -> set[str]:
    """Returns which arrays stay where they are: the images, since labels are gone through."""
    return set(names if targets == "none" else names[::2])


def _mapped(
    where: str, path: Path, file: Any, member: zipfile.ZipInfo, header: _Header
) -> np.ndarray:
    """Returns an array whose values stay in the archive, where they lie as they are."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise DataError(
            f"{where}: it is compressed and cannot be read in parts, as data.stream=true asks for; "
            "write the file anew with numpy.savez, or unpack it into a folder of npy files and "
            "name that."
        )
    file.seek(member.header_offset)
    # At its end, how long the name and what follows it are.
    local = exactly(file, _LOCAL_HEADER)
    lengths = np.frombuffer(local, "<u2", 2, offset=_LOCAL_HEADER - 4)
    start = member.header_offset + _LOCAL_HEADER + int(lengths.sum()) + header.start
    return np.memmap(path, header.dtype, "r", start, header.shape, header.order)


def _read_folder(
    path: Path, targets: Targets, *, stays: bool
) -> tuple[Sequence[str], list[np.ndarray]]:
    """Reads a folder of npy files; those that stay where they are are mapped."""
    known = names_for(targets)
    lacking = [[it for it in names if not (path / f"{it}.npy").exists()] for names in known]
    names, lacks = min(zip(known, lacking, strict=True), key=lambda it: len(it[1]))
    if lacks:
        raise MissingDataError(
            f"{path}: the folder lacks {', '.join(f'{it}.npy' for it in lacks)}; expected "
            f"{', '.join(names)}, each with .npy."
        )
    mapped = {}
    for name in names:
        file = path / f"{name}.npy"
        with opened(file):
            try:
                mapped[name] = np.lib.format.open_memmap(file, mode="r")
            except Exception as error:  # what its header holds is evaluated as literals are
                raise DataError(f"{file}: not a readable npy file ({reason(error)}).") from error
    stay = _staying(names, targets) if stays else set()
    size = sum(it.nbytes for name, it in mapped.items() if name not in stay)
    refuse_more_than_memory(f"{path}: its files hold", size, streams=not stays)
    return names, [it if name in stay else np.array(it) for name, it in mapped.items()]


def as_array(where: str, given: object) -> np.ndarray:
    """Makes an array of what a loader returned.

    Raises:
        DataError: It cannot be one, or values of it are masked.
    """
    try:
        array = np.asarray(given)
    except Exception as error:  # A user's own type may raise anything.
        raise DataError(
            f"{where}: a {type(given).__name__} that cannot be made an array ({reason(error)})."
        ) from error
    if array.dtype != object and (masked := _masked(given)):
        raise DataError(
            f"{where}: {masked} of {array.size} values are masked, and a network takes no mask. "
            "Give them values, as with .filled(0), or leave their examples out."
        )
    return array


def _masked(given: object) -> int:
    """Counts masked values, also in lists, of which an array would be made without the masks."""
    if np.ma.isMaskedArray(given):
        return int(np.ma.count_masked(given))
    if not isinstance(given, list | tuple):
        return 0
    return sum(_masked(it) for it in given if isinstance(it, list | tuple | np.ma.MaskedArray))


def check_arrays(
    source: str,
    names: Sequence[str],
    arrays: Sequence[Any],
    targets: Targets = "classes",
    *,
    stays: bool = False,
) -> tuple[Part, Part]:
    """Brings a set of one's own to the form in which it is trained on.

    Images are uint8 or floating, of shape (N, H, W), (N, H, W, C) or (N, features); they become
    (N, H, W, C), uint8 or float32, and features the channels of images of one pixel. Integers of
    other types, as the numbers of tokens, keep their shape of 2 to 4 dimensions and become int32.
    Labels become int32 (N,) for classes, uint8 (N, L) for flags, float32 (N, K) for values and
    int32 (N, H, W) for classes of positions.

    Args:
        source: Where it comes from, for messages.
        names: What each array is called there.
        arrays: Images and labels to train on, images and labels to test on; where the targets are
            in the inputs, the images alone.
        targets: What the labels are.
        stays: Whether images stay where they are, and are brought to that form, and looked
            through, whenever some are read. They may then be rows as well.

    Raises:
        DataError: the arrays are not of that kind or do not fit together.
    """
    step = 1 if targets == "none" else 2
    (train_name, test_name), images = names[::step], arrays[::step]
    bring = _images_when_read if stays else _own_images
    train_images = bring(f"{source}, {train_name}", images[0])
    test_images = bring(f"{source}, {test_name}", images[1])
    for what, train, test in (
        ("type", train_images.dtype, test_images.dtype),
        ("shape", train_images.shape[1:], test_images.shape[1:]),
    ):
        if train != test:
            raise DataError(
                f"{source}: {what} {test} of the test images, expected {train} as train."
            )
    if targets == "none":
        return (train_images, None), (test_images, None)
    examples = len(train_images), len(test_images)
    train_labels, test_labels = check_targets(targets, source, names[1::2], arrays[1::2], examples)
    return (train_images, train_labels), (test_images, test_labels)


def _images_when_read(where: str, images: Any) -> Rows:
    if len(images.shape) == 0 or not len(images):
        _own_images(where, np.asarray(images))
    return Brought(images, lambda taken, numbers: _own_images(where, taken, numbers))


def _own_images(where: str, images: np.ndarray, numbers: np.ndarray | None = None) -> Images:
    """Brings images to the form in which they are trained on.

    Args:
        where: What they are, for messages.
        images: These.
        numbers: The number of each; None for all, from 0.
    """
    kind = images.dtype.kind
    if kind not in "iuf":
        raise DataError(
            f"{where}: images of type {images.dtype}, expected uint8, floating or other integers."
            + _HINTS.get(kind, "")
        )
    if not 2 <= images.ndim <= 4 or images.size == 0:
        raise DataError(
            f"{where}: images of shape {images.shape}, expected (N, H, W), (N, H, W, C) or "
            "(N, features), none of them 0."
        )
    if kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold is reported below
            converted = np.ascontiguousarray(images, np.float32)
        if wrong := images.size - np.count_nonzero(np.isfinite(converted)):
            first, *place = np.argwhere(~np.isfinite(converted))[0].tolist()
            value = images[first, *place]
            at = (first if numbers is None else int(numbers[first]), *place)
            raise DataError(
                f"{where}: {wrong} values are not finite in float32, as {value} at {at}."
            )
        return _as_images(converted)
    if images.dtype == np.uint8:
        return _as_images(np.ascontiguousarray(images))
    bounds = np.iinfo(np.int32)
    for value in (images.min(), images.max()):
        if not bounds.min <= value <= bounds.max:
            raise DataError(f"{where}: {value} is beyond int32, in which integers arrive.")
    return np.ascontiguousarray(images, np.int32)


def _as_images(images: np.ndarray) -> np.ndarray:
    """Gives images of one channel that channel, and features the form of images of one pixel."""
    if images.ndim == 2:
        return images[:, np.newaxis, np.newaxis, :]
    return images[..., np.newaxis] if images.ndim == 3 else images


# What may be meant by types of which no images are.
_HINTS = {
    "b": " Give numbers, as with .astype(numpy.uint8).",
    "c": " Give real and imaginary parts as features or channels.",
    "O": " Its rows may differ in length, or values may be missing; give numbers.",
    "V": " Give float32, as with .astype(numpy.float32).",
    "U": " Give numbers.",
    "S": " Give numbers.",
}
