"""Encoded images, as PNG and JPEG, and folders of them."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from .reading import DataError, MissingDataError, reason
from .rows import Rows

Pixels = UInt8[np.ndarray, "h w c"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GRAY = ("1", "L")
# What has no transparency and no more than a byte a channel.
_COLORS = ("P", "RGB", "CMYK")


class Decoder:
    """Makes arrays of encoded images, which must all be alike.

    Args:
        side: What the shorter side of each is brought to, before the square in its middle is cut
            out; None for images that have one size.
        where: Where the first one comes from, for messages.
        first: It: a file, its content, or an image of Pillow. All are gray if it is.
    """

    def __init__(self, side: int | None, where: str, first: Any):
        self._side = side
        self._mode = "L" if _opened(where, first).mode in _GRAY else "RGB"
        self.shape: tuple[int, ...] | None = None
        self.shape = self(where, first).shape

    def __call__(self, where: str, given: Any) -> Pixels:
        """Returns an image, (H, W, C).

        Raises:
            DataError: It cannot be read, or is not like the first.
        """
        from PIL import Image

        image = _opened(where, given)
        if image.mode not in (*_GRAY, *_COLORS):
            raise DataError(
                f"{where}: an image of mode {image.mode}; expected colors or gray of one byte each "
                "without transparency: convert it, as with image.convert('RGB')."
            )
        if self._mode == "L" and image.mode not in _GRAY:
            raise DataError(f"{where}: an image with colors, expected gray as the first one is.")
        image = image.convert(self._mode)
        if self._side is not None:
            scale = self._side / min(image.size)
            width, height = (max(self._side, round(scale * it)) for it in image.size)
            left, top = (width - self._side) // 2, (height - self._side) // 2
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            image = image.crop((left, top, left + self._side, top + self._side))
        pixels = np.asarray(image)
        pixels = pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
        if self.shape not in (None, pixels.shape):
            raise DataError(
                f"{where}: an image of shape {pixels.shape}, expected {self.shape} as the first "
                "one; give data.image_size=N, to bring the shorter side of each to N and cut out "
                "the square in its middle."
            )
        return pixels


class Files(Rows):
    """Files of images.

    Args:
        files: These.
        decoder: Of them.
    """

    def __init__(self, files: Sequence[Path], decoder: Decoder):
        assert decoder.shape is not None
        self._files, self._decoder = files, decoder
        self.shape, self.dtype = (len(files), *decoder.shape), np.dtype(np.uint8)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        files = [self._files[it] for it in indices]
        return np.stack([self._decoder(str(file), file) for file in files])


def read_pictures(place: Path, side: int | None) -> list[Any]:
    """Lists a folder of images, PLACE/train/CLASS/FILE and PLACE/test/CLASS/FILE.

    Returns:
        Images and labels to train on, images and labels to test on; classes are numbered in the
        order of their names.

    Raises:
        MissingDataError: there is no such folder.
        DataError: it has something else, or classes to test on that are not trained on.
    """
    parts = [_classes(place / split) for split in ("train", "test")]
    train, test = parts
    if empty := [name for name, files in train.items() if not files]:
        raise DataError(
            f"{place / 'train' / empty[0]}: it holds no images; add some, or remove the folder, so "
            "that it is no class."
        )
    if unknown := sorted(test.keys() - train.keys()):
        raise DataError(
            f"{place / 'test'}: the classes {', '.join(unknown)} are not in {place / 'train'}, "
            f"which has {', '.join(train)}."
        )
    numbers = {name: number for number, name in enumerate(train)}
    first = next(iter(train.values()))[0]
    decoder, columns = Decoder(side, str(first), first), []
    for part in parts:
        files = [file for of_class in part.values() for file in of_class]
        labels = [np.full(len(of_class), numbers[name]) for name, of_class in part.items()]
        columns += [Files(files, decoder), np.concatenate(labels)]
    return columns


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Returns the files of each class, both in the order of their names."""
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: there is no such folder, which has one for each class.")
    found: dict[str, list[Path]] = {}
    for of_class in sorted(os.scandir(folder), key=lambda it: it.name):
        if of_class.name.startswith("."):
            continue
        if not of_class.is_dir():
            raise DataError(f"{of_class.path}: expected folders of images, one for each class.")
        names = sorted(it for it in os.listdir(of_class) if not it.startswith("."))
        for name in names:
            if not name.lower().endswith(SUFFIXES):
                raise DataError(
                    f"{of_class.path}/{name}: expected images alone, as {', '.join(SUFFIXES)}."
                )
        found[of_class.name] = [Path(of_class, name) for name in names]
    if not any(found.values()):
        raise DataError(f"{folder}: it holds no images; expected a folder of them for each class.")
    return found


def is_encoded(given: Any) -> bool:
    """Whether a value of a column is an image: its content, as Hugging Face has it, or Pillow's."""
    return isinstance(given, bytes | dict) or hasattr(given, "getbands")


def _opened(where: str, given: Any) -> Any:
    """Returns an image of Pillow."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"{where}: an image, but Pillow is not installed; pip install 'normlab[images]'."
        ) from error
    if isinstance(given, Image.Image):
        return given
    content: Any = given.get("bytes") if isinstance(given, dict) else given
    try:
        image = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)
        image.load()
    except Exception as error:  # what is damaged may raise anything
        raise DataError(f"{where}: no image that can be read ({reason(error)}).") from error
    return image
