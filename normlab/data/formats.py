"""Readers of the files in which image sets are published."""

import gzip
import io
import math
import pickle  # nosec B403 # of its unpickler, without any class or function that it names
import pickletools  # nosec B403 # which reads the steps of a pickle and takes none
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from .reading import DataError, exactly, opened, reason, refuse_more_than_memory, shown

ByteImages = UInt8[np.ndarray, "_ h w c"]
Labels = Int32[np.ndarray, "_"]

IDX_IMAGE = (28, 28)
CIFAR10_EXAMPLES = 10_000
CIFAR10_PIXELS = 3 * 32 * 32
# More than a pickle takes beside its pixels, for labels and names of files.
CIFAR10_REMAINDER = 2**22
# More steps than a pickle takes for an example: its label and the name of its file. What one step
# makes may take two hundred times its own bytes.
CIFAR10_STEPS = 16
CLASSES = 10


def read_idx_pair(images: Path, labels: Path) -> tuple[ByteImages, Labels]:
    """Reads one split of MNIST, Fashion-MNIST or another set in exactly their format.

    Args:
        images: IDX file of (N, 28, 28) bytes, plain or gzip.
        labels: IDX file of N bytes between 0 and 9, plain or gzip.

    Returns:
        Images (N, 28, 28, 1) and labels (N,).

    Raises:
        MissingDataError: a file is not there.
        DataError: a file is damaged or the two do not belong together.
    """
    pixels = _read_idx(images, IDX_IMAGE)
    numbers = _read_idx(labels, ()).astype(np.int32)
    check_labels(labels, numbers, examples=len(pixels), images=images, classes=CLASSES)
    return pixels[..., np.newaxis], numbers


def read_cifar10_binary(path: Path) -> tuple[ByteImages, Labels]:
    """Reads one file of CIFAR-10's binary version, such as data_batch_1.bin.

    It holds 10,000 records of one byte for the label and 3 x 32 x 32 for the image.

    Returns:
        Images (10000, 32, 32, 3) and labels (10000,).

    Raises:
        MissingDataError: the file is not there.
        DataError: the file is damaged.
    """
    expected = CIFAR10_EXAMPLES * (1 + CIFAR10_PIXELS)
    records = f", which is {CIFAR10_EXAMPLES} records of {1 + CIFAR10_PIXELS}"
    with opened(path) as stream:
        content = _whole(path, stream, expected, records)
    records = np.frombuffer(content, np.uint8).reshape(CIFAR10_EXAMPLES, -1)
    labels = records[:, 0].astype(np.int32)
    check_labels(path, labels, examples=CIFAR10_EXAMPLES, images=path, classes=CLASSES)
    return _channels_last(records[:, 1:]), labels


def read_cifar10_python(path: Path) -> tuple[ByteImages, Labels]:
    """Reads one file of CIFAR-10's Python version, such as data_batch_1, without trusting it.

    The file is a pickled dictionary. What it names besides dictionaries, lists, strings and
    numbers is neither imported nor called: the few names that a NumPy array needs are replaced by
    records of what was asked of them, every other name is an error.

    Returns:
        Images (10000, 32, 32, 3) and labels (10000,).

    Raises:
        MissingDataError: the file is not there.
        DataError: the file is damaged, or names what an image set has no use for.
    """
    # Python 3 writes bytes for older versions as text, half of them in two bytes.
    most = 2 * CIFAR10_EXAMPLES * CIFAR10_PIXELS + CIFAR10_REMAINDER
    with opened(path) as file:
        content = bytes(exactly(file, most + 1))
    if not content:
        raise DataError(f"{path}: the file is empty.")
    if len(content) > most:
        raise DataError(f"{path}: more than {most} bytes, which is no file of CIFAR-10.")
    stream = io.BytesIO(content)
    try:
        _refuse_what_takes_more_than_it_has(content)
        batch = _InertUnpickler(stream, encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{path}: not a readable CIFAR-10 pickle ({reason(error)}).") from error
    if surplus := len(stream.read()):
        raise DataError(f"{path}: {surplus} bytes follow the end of the pickle, expected none.")
    if not isinstance(batch, dict):
        raise DataError(f"{path}: a pickled {type(batch).__name__}, expected a dictionary.")
    named = {_text(key): value for key, value in batch.items()}
    pixels, labels = named.get("data"), named.get("labels")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: expected under 'labels' a list of whole numbers.")
    numbers = np.array(labels, dtype=object)
    check_labels(path, numbers, examples=CIFAR10_EXAMPLES, images=path, classes=CLASSES)
    return _channels_last(_pickled_pixels(path, pixels)), numbers.astype(np.int32)


def _read_idx(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """Reads an IDX file of examples of one shape, as far as its header says that it goes."""
    with opened(path) as file:
        start = file.read(2)
        file.seek(0)
        if not start:
            raise DataError(f"{path}: the file is empty.")
        # The name does not tell: browsers unpack a download and leave the .gz in its name.
        if start != b"\x1f\x8b":
            return _idx_array(path, file, shape)
        try:
            with gzip.open(file) as unpacked:
                return _idx_array(path, unpacked, shape)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            told = f"{path}: the gzip stream is damaged ({reason(error)})."
            raise DataError(told) from error


def _idx_array(
    path: Path, stream: io.BufferedIOBase, shape: tuple[int, ...]
) -> UInt8[np.ndarray, "..."]:
    dimensions = 1 + len(shape)
    magic = bytes([0, 0, 8, dimensions])
    start = 4 + 4 * dimensions
    header = exactly(stream, start)
    if header[:4] != magic:
        raise DataError(
            f"{path}: starts with the bytes {header[:4].hex(' ') or '(none)'}, expected "
            f"{magic.hex(' ')}, an IDX file of bytes in {dimensions} dimension(s)."
        )
    if len(header) < start:
        raise DataError(f"{path}: {len(header)} bytes, truncated within its {start}-byte header.")
    announced = tuple(np.frombuffer(header, ">u4", dimensions, offset=4).tolist())
    if announced[1:] != shape:
        raise DataError(f"{path}: images of shape {announced[1:]}, expected {shape}.")
    if not announced[0]:
        raise DataError(f"{path}: shape {announced} in its header, expected at least one example.")
    size = math.prod(announced)
    refuse_more_than_memory(f"{path}: the shape {announced} in its header announces", size)
    content = _whole(path, stream, size, f" for the shape {announced} in its header", start)
    return np.frombuffer(content, np.uint8).reshape(announced)


def _whole(
    path: Path, stream: io.BufferedIOBase, size: int, why: str, before: int = 0
) -> bytearray:
    """Reads what is left of a file, which must be so many bytes."""
    content = exactly(stream, size + 1)
    if not before + len(content):
        raise DataError(f"{path}: the file is empty.")
    if len(content) < size:
        raise DataError(
            f"{path}: {before + len(content)} bytes, expected {before + size}{why}; the file is "
            "truncated."
        )
    if len(content) > size:
        raise DataError(
            f"{path}: more bytes than the {before + size} expected{why}; the file has trailing "
            "bytes."
        )
    return content


def check_labels(
    path: Path | str, labels: np.ndarray, *, examples: int, images: Path | str, classes: int
) -> None:
    """Refuses labels that are not as many as images, or not between 0 and `classes - 1`."""
    if len(labels) != examples:
        raise DataError(
            f"{path}: {len(labels)} labels, expected {examples}, as many as images in {images}."
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"{path}: label {labels[wrong[0]]} at example {wrong[0]}, expected 0 to {classes - 1} "
            f"({wrong.size} of {examples} labels are out of range)."
        )


def _channels_last(planes: UInt8[np.ndarray, "n 3072"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    images = np.empty((len(planes), 32 * 32, 3), np.uint8)
    for channel in range(3):  # twice as fast as copying a transposed view
        images[..., channel] = planes[:, channel * 1024 : (channel + 1) * 1024]
    return images.reshape(-1, 32, 32, 3)


class _Inert:
    """Stands for what a pickle names: it can be called and given a state, and only notes both."""

    def __init__(self, name: str, arguments: tuple = ()):
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, *arguments: Any) -> "_Inert":
        return _Inert(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


# `numpy.core` became `numpy._core` in NumPy 2; `_frombuffer` comes with pickle protocol 5; with
# protocol 2, Python 3 writes bytes as text to be encoded.
_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class _InertUnpickler(pickle.Unpickler):
    """Builds dictionaries, lists, strings and numbers; of NumPy's arrays it keeps the recipe."""

    def find_class(self, module: str, name: str) -> _Inert:
        if (module, name) not in _ADMITTED:
            asked = shown(f"{module}.{name}", most=60)
            raise pickle.UnpicklingError(
                f"it names {asked}, which has no place there; nothing of it was run"
            )
        return _Inert(name)


def _refuse_what_takes_more_than_it_has(content: bytes) -> None:
    """Refuses a pickle that takes much more memory or time than its bytes, before it is built.

    A place of its memory is a number, for which the unpickler makes room up to that number. Numbers
    of many digits take long to be told, and can be chosen so that a dictionary is slow with them.
    """
    most = CIFAR10_STEPS * CIFAR10_EXAMPLES + 1000
    for steps, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if steps > most:
            raise pickle.UnpicklingError(f"more than {most} steps, which no file of CIFAR-10 takes")
        if isinstance(argument, int) and argument.bit_length() > 64:
            raise pickle.UnpicklingError("it holds a number of more than 64 bits")
        remembers = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if remembers and not (isinstance(argument, int) and 0 <= argument <= steps):
            raise pickle.UnpicklingError(f"it remembers something at the place {argument}")


def _text(key: object) -> object:
    """Returns a key as text, which the versions of Python write in three ways."""
    match key:
        case _Inert(name="encode", arguments=(str() as text, "latin1")):
            return text
        case bytes():
            return key.decode("latin1")
    return key


def _pickled_pixels(path: Path, recipe: Any) -> UInt8[np.ndarray, "n 3072"]:
    match recipe:
        case _Inert(name="_reconstruct", state=(_, shape, dtype, bool(columns_first), raw)):
            order = "F" if columns_first else "C"
        case _Inert(name="_frombuffer", arguments=(raw, dtype, shape, ("C" | "F") as order)):
            pass
        case _:
            raise DataError(f"{path}: expected under 'data' a NumPy array.")
    match raw:
        case _Inert(name="encode", arguments=(str() as text, "latin1")):
            raw = text.encode("latin1", errors="ignore")  # what gets lost shows in the length
    match dtype:
        case _Inert(name="dtype", arguments=("u1" | b"u1", *_)):
            pass
        case _:
            raise DataError(f"{path}: expected under 'data' an array of type uint8.")
    expected = (CIFAR10_EXAMPLES, CIFAR10_PIXELS)
    if shape != expected:
        whole = isinstance(shape, tuple) and all(type(it) is int for it in shape)
        told = shown(shape) if whole else f"a {type(shape).__name__}"
        raise DataError(f"{path}: 'data' of shape {told}, expected {expected}.")
    if not isinstance(raw, bytes | bytearray) or len(raw) != math.prod(expected):
        raise DataError(f"{path}: expected under 'data' {math.prod(expected)} bytes.")
    return np.frombuffer(raw, np.uint8).reshape(expected, order=order)
