"""Small sets in the official file formats, written from their descriptions."""

import gzip
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest


def idx(array: np.ndarray) -> bytes:
    """IDX: two zero bytes, type 8, the number of dimensions, big-endian sizes, then the bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="session")
def mnist_arrays() -> dict[str, np.ndarray]:
    """Fifty and twenty images in MNIST's shapes, as many of each class."""
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (50, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), 5)),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (20, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), 2)),
    }


@pytest.fixture(scope="session")
def write_mnist(mnist_arrays):
    """Writes the four files into a folder."""

    def write(folder: Path, compressed: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in mnist_arrays.items():
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))

    return write


@pytest.fixture(scope="session")
def cifar10_records() -> np.ndarray:
    """One file of CIFAR-10: 10,000 rows of a label, then red, green and blue planes."""
    records = np.random.default_rng(1).integers(0, 256, (10_000, 3073), np.uint8)
    records[:, 0] = np.arange(10_000) % 10
    return records


@pytest.fixture(scope="session")
def cifar10_pickle(cifar10_records) -> bytes:
    """The same as a data_batch of the Python version: what Python 2 pickled, opcode by opcode."""
    pixels = cifar10_records[:, 1:].tobytes()
    return b"".join(
        [
            b"\x80\x02}(",  # protocol 2, a dictionary
            b"U\x0bbatch_labelU\x15training batch 1 of 5",
            b"U\x06labels](" + b"".join(b"K%c" % label for label in cifar10_records[:, 0]) + b"e",
            b"U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01M\x10'M\x00\x0c\x86",  # state: version 1, shape (10000, 3072),
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb",  # row by row, raw bytes
            b"U\tfilenames](U\x0fimage_00001.pnge",
            b"u.",
        ]
    )


@pytest.fixture
def big_folder(tmp_path):
    """A folder that is emptied at once, for files of many megabytes."""
    folder = tmp_path / "big"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)
