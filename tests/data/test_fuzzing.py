"""Damaged files by the hundred, and each kind of damage that once got through."""

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from normlab.data import DataError, DataSpec, formats, load
from normlab.data.own import as_array, read_npz

FUZZING = Path(__file__).with_name("fuzzing.py")
# As many of each format; CONTRIBUTING.md says how thousands are tried.
EXECUTIONS = "90"

IMAGES = np.arange(32, dtype=np.float32).reshape(8, 4)
LABELS = np.arange(8) % 2
ARRAYS = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS}


@pytest.mark.parametrize("name", ["mnist", "npz", "cifar10_binary", "cifar10_python"])
def test_damaged_files_are_told_and_all_others_are_read_as_they_are(name):
    done = subprocess.run(
        [sys.executable, FUZZING, EXECUTIONS, "0", name], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def taken(read, *files):
    """Reads in a process of its own: the message, and the MiB that it took."""
    code = (
        "import sys, resource; from pathlib import Path; import normlab.data.sources, numpy\n"
        "from normlab.data.own import read_npz\n"
        "from normlab.data.formats import read_cifar10_python\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try:\n"
        f"    {read}(*map(Path, sys.argv[1:]))\n"
        "except normlab.data.DataError as error:\n"
        "    print(error)\n"
        "print((peak() - before) // 1024)\n"
    )
    command = [sys.executable, "-c", code, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    message, _, count = done.stdout.strip().rpartition("\n")
    return message, int(count)


def archive(path, compression=zipfile.ZIP_STORED, **members):
    """An npz file in which some members are not what they should be."""
    np.savez(path, **ARRAYS)
    with zipfile.ZipFile(path) as made:
        content = {name: made.read(name) for name in made.namelist()}
    with zipfile.ZipFile(path, "w", compression) as made:
        for name, held in (content | {f"{it}.npy": members[it] for it in members}).items():
            made.writestr(name, held)
    return path


def saved(array, shape=None):
    """What numpy.save writes, or with another shape in its header."""
    text = b"{'descr': '%s', 'fortran_order': False, 'shape': %s}" % (
        array.dtype.str.encode(),
        shape or str(array.shape).encode(),
    )
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + array.tobytes()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_python_unpacks_without_bounds_are_not_unpacked(tmp_path, method):
    # Regression: the eight bytes of its magic took all of the member, for zipfile asks these two
    # for everything that they make of their next four kilobytes.
    path = archive(tmp_path / "own.npz", method, x_train=saved(IMAGES) + bytes(2**27))
    assert path.stat().st_size < 2**17
    message, mebibytes = taken("read_npz", path)
    assert (
        f"own.npz, x_train: compressed by method {method}, expected that of numpy.savez" in message
    )
    assert mebibytes < 40


def test_a_header_of_an_array_that_is_a_bomb_is_not_read(tmp_path):
    # Regression: NumPy reads all of a header before it finds that it is too long.
    header = b"\x93NUMPY\2\0" + struct.pack("<I", 2**27) + b" " * 2**27
    path = archive(tmp_path / "own.npz", zipfile.ZIP_DEFLATED, x_train=header)
    message, mebibytes = taken("read_npz", path)
    assert "own.npz, x_train: a header of 134217728 bytes, expected at most 10000" in message
    assert mebibytes < 40


@pytest.mark.parametrize("kind", [b"]", b"}", b"\x8f"], ids=["lists", "dictionaries", "sets"])
def test_a_pickle_of_many_small_things_is_refused_before_it_is_built(tmp_path, kind):
    # Regression: a byte of a file made up to 216 of memory, of the largest file admitted 14 GB.
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x04(" + kind * 2**22 + b"l.")
    message, mebibytes = taken("read_cifar10_python", tmp_path / "data_batch_1")
    assert "data_batch_1: not a readable CIFAR-10 pickle (more than 161000 steps" in message
    assert mebibytes < 40


@pytest.mark.parametrize("digits", [30, 5000])
def test_a_label_of_many_digits_is_told_without_them(tmp_path, digits):
    # Regression: Python does not write out numbers of more than 4300 digits, and said so.
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"labels": [10**digits]}))
    with pytest.raises(DataError, match=r"data_batch_1: .*a number of more than 64 bits"):
        formats.read_cifar10_python(tmp_path / "data_batch_1")


def test_numbers_that_a_dictionary_is_slow_with_are_refused(tmp_path):
    # Numbers of the same hash: a dictionary of so many of them takes minutes.
    keys = {number * (2**61 - 1): None for number in range(9, 20)}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(keys))
    with pytest.raises(DataError, match="a number of more than 64 bits"):
        formats.read_cifar10_python(tmp_path / "data_batch_1")


def test_bytes_as_keys_are_read_from_every_version_of_pickle(tmp_path, monkeypatch):
    # Regression: up to version 2, Python 3 writes bytes as text to be encoded.
    monkeypatch.setattr(formats, "CIFAR10_EXAMPLES", 3)
    pixels = np.arange(3 * 3072, dtype=np.uint8).reshape(3, 3072)
    for protocol in range(6):
        for keys in ((b"data", b"labels"), ("data", "labels")):
            batch = dict(zip(keys, (pixels, [1, 2, 3]), strict=True))
            (tmp_path / "batch").write_bytes(pickle.dumps(batch, protocol))
            images, labels = formats.read_cifar10_python(tmp_path / "batch")
            assert labels.tolist() == [1, 2, 3]
            np.testing.assert_array_equal(images.transpose(0, 3, 1, 2).reshape(3, -1), pixels)


LONG = b"a" * 60_000
NPZ_MESSAGES = {
    "a name of many letters": ({LONG.decode(): b""}, ["x_train"], "holds the arrays aaaa"),
    "many names": (
        {f"m{it}": b"" for it in range(2000)},
        ["x_train"],
        "holds the arrays m0, m1, m",
    ),
    "a name of escapes": ({"\x1b[2J\n": b""}, ["x_train"], r"holds the arrays \x1b[2J\n, x_test"),
    "a header of many letters": (
        {"x_train": b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"x" * 9000},
        [],
        "x_train: its header is no header of an array (",
    ),
    "a shape of many numbers": (
        {"x_train": saved(IMAGES, b"(" + b"1, " * 900 + b")")},
        [],
        "for the shape (1, 1, 1, 1",
    ),
}


@pytest.mark.parametrize(("members", "without", "told"), NPZ_MESSAGES.values(), ids=NPZ_MESSAGES)
def test_messages_show_the_beginning_of_what_a_file_holds(tmp_path, members, without, told):
    path = archive(tmp_path / "own.npz", **members)
    with zipfile.ZipFile(path) as archived:
        content = {it: archived.read(it) for it in archived.namelist()}
    with zipfile.ZipFile(path, "w") as made:
        for name in sorted(content):
            if name.removesuffix(".npy") not in without:
                made.writestr(name, content[name])
    with pytest.raises(DataError) as caught:
        load(DataSpec(name="npz", folder=str(path)))
    message = str(caught.value)
    assert f"{path}" in message
    assert told in message
    assert len(message) < 1000
    assert message.replace("\n", "").isprintable()


def test_what_a_pickle_names_is_shown_in_short(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02c" + LONG + b"\n\x1b[31m\n.")
    with pytest.raises(DataError, match=r"it names a{60}\.\.\., which has no place") as caught:
        formats.read_cifar10_python(tmp_path / "data_batch_1")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("shape", [(1,) * 3000, [1], {"x": "y" * 9000}])
def test_a_shape_of_anything_is_shown_in_short(tmp_path, shape):
    class Pixels:
        def __reduce__(self):
            return np._core.numeric._frombuffer, (b"", np.dtype("u1"), shape, "C")

    content = pickle.dumps({"data": Pixels(), "labels": [0] * 10_000})
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=r"'data' of shape .*, expected") as caught:
        formats.read_cifar10_python(tmp_path / "data_batch_1")
    assert len(str(caught.value)) < 1000


def test_an_archive_of_several_disks_is_told(tmp_path):
    # Regression: Python's zipfile raises an error of its own where it only looks for an archive.
    path = archive(tmp_path / "own.npz")
    content = path.read_bytes()
    end = content.rindex(b"PK\5\6")
    path.write_bytes(content[:end] + struct.pack("<4sLQL", b"PK\6\7", 1, 0, 2) + content[end:])
    with pytest.raises(DataError, match=r"own\.npz: not .*npz archive"):
        read_npz(path)


def test_bytes_before_an_archive_are_refused_as_numpy_does(tmp_path):
    path = archive(tmp_path / "own.npz")
    path.write_bytes(b"\0" + path.read_bytes())
    with pytest.raises(DataError, match=r"own\.npz: not an npz archive, or its beginning"):
        read_npz(path)


@pytest.mark.parametrize("dtype", ["f2", "i1", "u2"])
def test_what_an_array_takes_once_it_is_converted_counts(tmp_path, monkeypatch, dtype):
    # Regression: a set of int8 became four times as large after it had been found to fit.
    arrays = {
        name: it if it is LABELS else np.ones((8, 4000), dtype) for name, it in ARRAYS.items()
    }
    np.savez(tmp_path / "own.npz", **arrays)
    monkeypatch.setattr("normlab.data.reading.available_memory", lambda: 4 * 200_000)
    with pytest.raises(DataError, match="the headers of its arrays announce 256 KB, expected at m"):
        read_npz(tmp_path / "own.npz")


def test_masks_in_lists_of_lists_are_found():
    row = np.ma.masked_equal([1, 2, 3], 2)
    with pytest.raises(DataError, match="4 of 12 values are masked"):
        as_array("train_images", [[row, row], [row, row]])


def test_text_that_is_encoded_otherwise_is_not_taken_for_pixels(tmp_path, monkeypatch):
    # Regression: whatever encoding a file asks for, it was taken for latin1.
    monkeypatch.setattr(formats, "CIFAR10_EXAMPLES", 3)
    batch = {"data": np.zeros((3, 3072), np.uint8), "labels": [1, 2, 3]}
    content = pickle.dumps(batch, protocol=2)
    (tmp_path / "batch").write_bytes(content.replace(b"latin1", b"latin2"))
    with pytest.raises(DataError, match="expected under 'data' 9216 bytes"):
        formats.read_cifar10_python(tmp_path / "batch")
