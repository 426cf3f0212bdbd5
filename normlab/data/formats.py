"""Readers of the files in which image sets are published."""

import gzip
import io
import math
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from ..errors import UserError

ByteImages = UInt8[np.ndarray, "_ h w c"]
Images = ByteImages | Float32[np.ndarray, "_ h w c"]
Labels = Int32[np.ndarray, "_"]

IDX_IMAGE = (28, 28)
CIFAR10_EXAMPLES = 10_000
CIFAR10_PIXELS = 3 * 32 * 32
CLASSES = 10

NPZ_NAMES = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)


class DataError(UserError):
    """The files of a data set, or what they hold, are not what was expected."""


class MissingDataError(DataError, FileNotFoundError):
    """A file or folder of a data set is not there."""


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
    pixels = _read_idx(images, dimensions=3)
    numbers = _read_idx(labels, dimensions=1).astype(np.int32)
    if pixels.shape[1:] != IDX_IMAGE:
        raise DataError(f"{images}: images of shape {pixels.shape[1:]}, expected {IDX_IMAGE}.")
    _check_labels(labels, numbers, examples=len(pixels), images=images, classes=CLASSES)
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
    content = _content(path)
    expected = CIFAR10_EXAMPLES * (1 + CIFAR10_PIXELS)
    if len(content) != expected:
        raise DataError(
            f"{path}: {len(content)} bytes, expected {expected}, which is {CIFAR10_EXAMPLES} "
            f"records of {1 + CIFAR10_PIXELS}; the file {_cut_or_long(len(content), expected)}."
        )
    records = np.frombuffer(content, np.uint8).reshape(CIFAR10_EXAMPLES, -1)
    labels = records[:, 0].astype(np.int32)
    _check_labels(path, labels, examples=CIFAR10_EXAMPLES, images=path, classes=CLASSES)
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
    stream = io.BytesIO(_content(path))
    try:
        batch = _InertUnpickler(stream, encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{path}: not a readable CIFAR-10 pickle ({_reason(error)}).") from error
    if surplus := len(stream.read()):
        raise DataError(f"{path}: {surplus} bytes follow the end of the pickle, expected none.")
    if not isinstance(batch, dict):
        raise DataError(f"{path}: a pickled {type(batch).__name__}, expected a dictionary.")
    pixels, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: expected under 'labels' a list of whole numbers.")
    numbers = np.array(labels, dtype=object)
    _check_labels(path, numbers, examples=CIFAR10_EXAMPLES, images=path, classes=CLASSES)
    return _channels_last(_pickled_pixels(path, pixels)), numbers.astype(np.int32)


def read_npz(path: Path) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """Reads a set of one's own from the arrays of one npz file.

    The arrays are called `train_images, train_labels, test_images, test_labels`, or as Keras has
    it `x_train, y_train, x_test, y_test`. Images are uint8 or floating, of shape (N, H, W),
    (N, H, W, C) or (N, features); features become the channels of images of one pixel, so that
    each is standardized by itself. Labels are whole numbers from 0, of shape (N,) or (N, 1).

    Returns:
        Images (N, H, W, C), uint8 or float32, and labels (N,), of the training and the test split.

    Raises:
        MissingDataError: the file is not there.
        DataError: the file is damaged, lacks an array, or its arrays do not fit together.
    """
    if not path.is_file():
        raise MissingDataError(f"{path}: there is no such file.")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an npz archive, or its end is missing.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = archive.files
            names = next((names for names in NPZ_NAMES if set(names) <= set(found)), None)
            arrays = [archive[name] for name in names or ()]
    except Exception as error:  # zip, zlib and NumPy each have errors of their own
        raise DataError(f"{path}: not a readable npz archive ({_reason(error)}).") from error
    if names is None:
        raise DataError(
            f"{path}: holds the arrays {', '.join(found) or '(none)'}; expected "
            f"{', '.join(NPZ_NAMES[0])} or {', '.join(NPZ_NAMES[1])}."
        )
    return check_arrays(str(path), names, arrays)


def check_arrays(
    source: str, names: Sequence[str], arrays: Sequence[np.ndarray]
) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """Brings a set of one's own to the form of the published ones, as `read_npz` says.

    Args:
        source: Where it comes from, for messages.
        names: What each array is called there.
        arrays: Images and labels to train on, images and labels to test on.

    Raises:
        DataError: the arrays are not of that kind or do not fit together.
    """
    train_images = _own_images(f"{source}, {names[0]}", arrays[0])
    test_images = _own_images(f"{source}, {names[2]}", arrays[2])
    for what, train, test in (
        ("shape", train_images.shape[1:], test_images.shape[1:]),
        ("type", train_images.dtype, test_images.dtype),
    ):
        if train != test:
            raise DataError(
                f"{source}: {what} {test} of the test images, expected {train} as train."
            )
    # More classes than examples is no classification: most likely these are not labels.
    train_labels = _own_labels(source, names[1], arrays[1], train_images, classes=len(train_images))
    classes = int(train_labels.max()) + 1
    test_labels = _own_labels(source, names[3], arrays[3], test_images, classes=classes)
    return (train_images, train_labels), (test_images, test_labels)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise MissingDataError(f"{path}: there is no such file.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}).") from error
    if not content:
        raise DataError(f"{path}: the file is empty.")
    return content


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _cut_or_long(given: int, expected: int) -> str:
    return "is truncated" if given < expected else "has trailing bytes"


def _read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    content = _content(path)
    # The name does not tell: browsers unpack a download and leave the .gz in its name.
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}: the gzip stream is damaged ({_reason(error)}).") from error
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        raise DataError(
            f"{path}: starts with the bytes {content[:4].hex(' ') or '(none)'}, expected "
            f"{magic.hex(' ')}, an IDX file of bytes in {dimensions} dimension(s)."
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{path}: {len(content)} bytes, truncated within its {start}-byte header.")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path}: {len(content)} bytes, expected {expected} for the shape {shape} in its "
            f"header; the file {_cut_or_long(len(content), expected)}."
        )
    if expected == start:
        raise DataError(f"{path}: shape {shape} in its header, expected at least one example.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _check_labels(
    path: Path | str, labels: np.ndarray, *, examples: int, images: Path | str, classes: int
) -> None:
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
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which has no place there; nothing of it was run"
            )
        return _Inert(name)


def _pickled_pixels(path: Path, recipe: Any) -> UInt8[np.ndarray, "n 3072"]:
    match recipe:
        case _Inert(name="_reconstruct", state=(_, shape, dtype, columns_first, raw)):
            order = "F" if columns_first else "C"
        case _Inert(name="_frombuffer", arguments=(raw, dtype, shape, ("C" | "F") as order)):
            pass
        case _:
            raise DataError(f"{path}: expected under 'data' a NumPy array.")
    match raw:
        case _Inert(name="encode", arguments=(str() as text, *_)):
            raw = text.encode("latin1", errors="ignore")  # what gets lost shows in the length
    match dtype:
        case _Inert(name="dtype", arguments=("u1" | b"u1", *_)):
            pass
        case _:
            raise DataError(f"{path}: expected under 'data' an array of type uint8.")
    expected = (CIFAR10_EXAMPLES, CIFAR10_PIXELS)
    if shape != expected:
        raise DataError(f"{path}: 'data' of shape {shape}, expected {expected}.")
    if not isinstance(raw, bytes | bytearray) or len(raw) != math.prod(expected):
        raise DataError(f"{path}: expected under 'data' {math.prod(expected)} bytes.")
    return np.frombuffer(raw, np.uint8).reshape(expected, order=order)


def _own_images(where: str, images: np.ndarray) -> Images:
    if np.issubdtype(images.dtype, np.floating):
        with np.errstate(over="ignore"):  # what float32 cannot hold is reported below
            images = images.astype(np.float32)
        if wrong := images.size - np.count_nonzero(np.isfinite(images)):
            raise DataError(f"{where}: {wrong} values are not finite in float32.")
    elif images.dtype != np.uint8:
        raise DataError(f"{where}: images of type {images.dtype}, expected uint8 or floating.")
    if not 2 <= images.ndim <= 4 or images.size == 0:
        raise DataError(
            f"{where}: images of shape {images.shape}, expected (N, H, W), (N, H, W, C) or "
            "(N, features), none of them 0."
        )
    if images.ndim == 2:
        return images[:, np.newaxis, np.newaxis, :]
    return images[..., np.newaxis] if images.ndim == 3 else images


def _own_labels(
    source: str, name: str, labels: np.ndarray, images: np.ndarray, *, classes: int
) -> Labels:
    where = f"{source}, {name}"
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras has them for CIFAR-10
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where}: labels of type {labels.dtype} and shape {labels.shape}, expected "
            "whole numbers of shape (N,)."
        )
    _check_labels(where, labels, examples=len(images), images=source, classes=classes)
    return labels.astype(np.int32)
