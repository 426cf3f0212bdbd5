"""Texts: the bytes of files, cut into blocks."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from ..errors import refused
from .reading import DataError, MissingDataError, exactly, opened, refuse_more_than_memory

# How many tokens there are: one for each byte, whatever is written with them.
BYTES = 256
TEST_SHARE = 0.1

Blocks = Int32[np.ndarray, "_ tokens"]


def read_text(place: Path, block: int) -> tuple[Blocks, Blocks]:
    """Reads a text as blocks of bytes, in their order, no byte in two of them.

    Args:
        place: A file; or a folder, whose files are put together in the order of their names,
            those in its folders too, but for names that begin with a dot.
        block: Bytes that are predicted of each block, which has one more.

    Returns:
        The blocks to train on, and those to test on, a tenth, which are the last ones. What is
        left over at the end is no block.

    Raises:
        MissingDataError: there is nothing at this place.
        DataError: it cannot be read, or has too few bytes.
    """
    content = bytearray()
    for file in _files(place):
        with opened(file) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            # As tokens, each takes four.
            refuse_more_than_memory(f"{place}: its bytes as tokens take", 4 * (len(content) + size))
            content += exactly(stream, size)
    if not content:
        raise DataError(f"{place}: it is empty; expected a text.")
    count = len(content) // (block + 1)
    tested = round(TEST_SHARE * count)
    if tested < 1:
        raise DataError(
            f"{place}: {len(content)} bytes make {count} blocks of {block + 1}, data.block and the "
            "byte before; expected at least 6, to train, tune and test on. Take a longer text or "
            "a smaller data.block."
        )
    tokens = np.frombuffer(content, np.uint8)[: count * (block + 1)]
    blocks = tokens.reshape(count, block + 1).astype(np.int32)
    return blocks[:-tested], blocks[-tested:]


def _files(place: Path) -> list[Path]:
    """Returns the files of a text, in their order."""
    if not os.path.isdir(place):
        return [place]
    found = []

    def refuse(error: OSError) -> None:
        raise DataError(refused("read", place, error, "name another place with data.folder"))

    for folder, folders, names in os.walk(place, onerror=refuse, followlinks=False):
        folders[:] = [it for it in folders if not it.startswith(".")]
        found += [Path(folder, it) for it in names if not it.startswith(".")]
    if not found:
        raise MissingDataError(f"{place}: the folder holds no file, expected a text.")
    return sorted(found, key=lambda file: file.relative_to(place).parts)
