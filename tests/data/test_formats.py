"""The readers: what they return, and that no damaged or hostile file gets through."""

import gzip
import os
import pickle
import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.data.formats import read_cifar10_binary, read_cifar10_python, read_idx_pair
from normlab.data.own import read_npz
from normlab.data.reading import DataError, MissingDataError

IMAGES = np.random.default_rng(2).integers(0, 256, (6, 28, 28), np.uint8)
LABELS = np.array([0, 9, 3, 3, 1, 7], np.uint8)


def idx(shape: tuple[int, ...], content: bytes, magic: bytes = b"\x00\x00\x08") -> bytes:
    return magic + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


GOOD_IMAGES = idx((6, 28, 28), IMAGES.tobytes())
GOOD_LABELS = idx((6,), LABELS.tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


def write(folder, images=GOOD_IMAGES, labels=GOOD_LABELS):
    (folder / "images").write_bytes(images)
    (folder / "labels").write_bytes(labels)
    return folder / "images", folder / "labels"


# IDX


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx_values_shapes_and_types(folder, pack):
    images, labels = read_idx_pair(*write(folder, pack(GOOD_IMAGES), pack(GOOD_LABELS)))
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(images, IMAGES[..., None])
    np.testing.assert_array_equal(labels, LABELS)


IDX_DAMAGE = {
    "empty": ({"images": b""}, "images: the file is empty"),
    "page instead of file": ({"images": b"<html>404"}, r"images: .* 3c 68 74 6d, expected 00 00"),
    "labels as images": ({"images": GOOD_LABELS}, r"images: .* 00 00 08 01, expected 00 00 08 03"),
    "images as labels": ({"labels": GOOD_IMAGES}, r"labels: .* 00 00 08 03, expected 00 00 08 01"),
    "floats": ({"images": idx((6, 28, 28), b"", b"\0\0\r")}, r"images: .* 00 00 0d 03, expected"),
    "cut header": ({"images": GOOD_IMAGES[:9]}, "images: 9 bytes, truncated within its 16-byte"),
    "cut": ({"images": GOOD_IMAGES[:-1]}, "images: 4719 bytes, expected 4720 .* truncated"),
    "trailing": (
        {"labels": GOOD_LABELS + b"\n"},
        "labels: more bytes than the 14 expected .* trailing",
    ),
    "no examples": ({"images": idx((0, 28, 28), b"")}, "images: .* expected at least one"),
    "huge": ({"images": idx((2**32 - 1,) * 3, b"x")}, r"\(4294967295, 4294967295\), expected"),
    "shape": ({"images": idx((6, 14, 56), IMAGES.tobytes())}, r"\(14, 56\), expected \(28, 28\)"),
    "count": ({"labels": idx((5,), b"\0" * 5)}, "labels: 5 labels, expected 6, .*images"),
    "label 10": ({"labels": idx((6,), b"\1\2\n\1\2\13")}, "label 10 at example 2, .* 0 to 9 .2 of"),
    "gzip cut": ({"images": gzip.compress(GOOD_IMAGES)[:2000]}, "images: the gzip .* damaged"),
    "gzip of nothing": ({"images": gzip.compress(b"")}, "images: .*none.*, expected 00 00 08 03"),
    "gzip checksum": (
        {"images": gzip.compress(GOOD_IMAGES)[:-8] + b"\0" * 8},
        "images: the gzip stream is damaged",
    ),
    "gzip body": ({"labels": b"\x1f\x8b\x08\x00" + b"\xff" * 40}, "labels: the gzip .* damaged"),
}


@pytest.mark.parametrize(("files", "message"), IDX_DAMAGE.values(), ids=IDX_DAMAGE)
def test_damaged_idx_names_the_file_and_the_fault(folder, files, message):
    paths = write(folder, **files)
    with pytest.raises(DataError, match=message) as raised:
        read_idx_pair(*paths)
    assert str(folder) in str(raised.value)
    assert not isinstance(raised.value, MissingDataError)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), pack=st.sampled_from([bytes, gzip.compress]))
def test_every_truncation_of_idx_is_an_error(folder, data, pack):
    content = pack(GOOD_IMAGES)
    paths = write(folder, content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DataError, match="images: "):
        read_idx_pair(*paths)


def test_a_missing_file_is_a_file_not_found_error(folder):
    assert issubclass(MissingDataError, FileNotFoundError)
    assert issubclass(MissingDataError, DataError)
    for read in (read_cifar10_binary, read_cifar10_python, read_npz):
        with pytest.raises(MissingDataError, match="nothing-here"):
            read(folder / "nothing-here")
        with pytest.raises(MissingDataError, match=re.escape(str(folder))):
            read(folder)  # a folder is no file


# CIFAR-10, binary


def assert_is_the_file(images, labels, records):
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert images.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(labels, records[:, 0])
    # Row 4, column 9 stands in each plane at 4 * 32 + 9.
    np.testing.assert_array_equal(images[77, 4, 9], records[77, 1 + 137 :: 1024])
    np.testing.assert_array_equal(
        images, records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    )


def test_cifar10_binary_values_shapes_and_types(big_folder, cifar10_records):
    path = big_folder / "data_batch_1.bin"
    path.write_bytes(cifar10_records.tobytes())
    assert_is_the_file(*read_cifar10_binary(path), cifar10_records)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "the file is empty"),
        (lambda content: content[:-3073], "30726927 bytes, expected 30730000.* is truncated"),
        (
            lambda content: content + b"\0",
            "more bytes than the 30730000 expected, .* trailing bytes",
        ),
        (lambda content: content[:6146] + b"\xff" + content[6147:], "label 255 at example 2, exp"),
    ],
    ids=["empty", "a record less", "a byte more", "label 255"],
)
def test_damaged_cifar10_binary_is_an_error(big_folder, cifar10_records, damage, message):
    path = big_folder / "test_batch.bin"
    path.write_bytes(damage(cifar10_records.tobytes()))
    with pytest.raises(DataError, match=f"test_batch.bin: {message}"):
        read_cifar10_binary(path)


# CIFAR-10, Python


def test_cifar10_python_as_python_2_wrote_it(big_folder, cifar10_records, cifar10_pickle):
    path = big_folder / "data_batch_1"
    path.write_bytes(cifar10_pickle)
    assert_is_the_file(*read_cifar10_python(path), cifar10_records)
    trusted = pickle.loads(cifar10_pickle, encoding="bytes")  # the test's file is well-formed
    np.testing.assert_array_equal(trusted[b"data"], cifar10_records[:, 1:])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cifar10_python_as_this_python_writes_it(big_folder, cifar10_records, protocol):
    batch = {
        "data": np.asfortranarray(cifar10_records[:, 1:])
        if protocol > 3
        else cifar10_records[:, 1:],
        "labels": cifar10_records[:, 0].tolist(),
    }
    path = big_folder / "data_batch_1"
    path.write_bytes(pickle.dumps(batch, protocol=protocol))
    assert_is_the_file(*read_cifar10_python(path), cifar10_records)


class Runs:
    """Pickles as a call of what it is given."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["whole", "in list", "as data", "as key"])
def test_a_pickle_that_would_run_something_runs_nothing(tmp_path, protocol, place):
    victim = tmp_path / "victim"
    call = Runs(os.system, f"touch {victim}")
    batch = {"whole": call, "in list": [call], "as data": {"data": call}, "as key": {call: 1}}
    content = pickle.dumps(batch[place], protocol=protocol)
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_1: .*names \w+\.system, .*nothing of it was"):
        read_cifar10_python(path)
    assert not victim.exists()
    pickle.loads(content)
    assert victim.exists(), "the test's pickle is harmless, so it proves nothing"


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02(S'touch VICTIM'\nios\nsystem\n.",  # INST
        b"\x80\x02(cos\nsystem\nU\x0ctouch VICTIMo.",  # OBJ
        b"\x80\x02cos\nsystem\nU\x0ctouch VICTIM\x85\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x05numpy\x8c\x13__builtins__.system\x93\x8c\x01x\x85R.",  # a dotted name
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93)R.",
        b"\x80\x02cnumpy\nload\nU\x06VICTIM\x85R.",  # of an admitted module
        b"\x80\x02cbuiltins\ngetattr\n(cnumpy\ndtype\nU\x04typetR.",
        b"\x80\x02ccopyreg\n_reconstructor\n.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02Pidentity\n.",  # a persistent identity
    ],
)
def test_no_opcode_reaches_what_is_not_admitted(tmp_path, content):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError, match="data_batch_1: not a readable CIFAR-10 pickle"):
        read_cifar10_python(path)
    assert os.listdir(tmp_path) == ["data_batch_1"]


def test_admitted_names_are_not_executed_either(tmp_path, cifar10_pickle):
    # NumPy would take eight bytes of an array of objects for an address.
    forged = cifar10_pickle.replace(b"U\x02u1", b"U\x02O8")
    # Given a state, a class or function would be changed for whoever uses it next.
    poison = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\x08__call__Nsb."
    for content, message in ((forged, "array of type uint8"), (poison, "expected a dictionary")):
        path = tmp_path / "data_batch_1"
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_cifar10_python(path)
        path.write_bytes(cifar10_pickle)
        assert len(read_cifar10_python(path)[1]) == 10_000
        path.unlink()


PIXELS = np.zeros((10_000, 3072), np.uint8)
TEN_THOUSAND = [3] * 10_000
PICKLE_DAMAGE = {
    "a list": ([1, 2], "a pickled list, expected a dictionary"),
    "no data": ({"labels": TEN_THOUSAND}, "under 'data' a NumPy array"),
    "no labels": ({"data": PIXELS}, "under 'labels' a list of whole numbers"),
    "fine labels of CIFAR-100": ({"data": PIXELS, "fine_labels": TEN_THOUSAND}, "'labels' a list"),
    "labels of text": ({"data": PIXELS, "labels": ["3"] * 10_000}, "list of whole numbers"),
    "label 10": ({"data": PIXELS, "labels": [*TEN_THOUSAND[1:], 10]}, "label 10 at example 9999"),
    "label 2**62": ({"data": PIXELS, "labels": [2**62, *TEN_THOUSAND[1:]]}, "label 4611686018427"),
    "labels less": ({"data": PIXELS, "labels": TEN_THOUSAND[1:]}, "9999 labels, expected 10000"),
    "images less": ({"data": PIXELS[1:], "labels": TEN_THOUSAND}, r"\(9999, 3072\), expected"),
    "floats": ({"data": PIXELS[:9] * 1.0, "labels": TEN_THOUSAND}, "array of type uint8"),
    "a list of images": ({"data": [[0]], "labels": TEN_THOUSAND}, "'data' a NumPy array"),
}


@pytest.mark.parametrize(("batch", "message"), PICKLE_DAMAGE.values(), ids=PICKLE_DAMAGE)
def test_unfit_cifar10_pickle_is_an_error(big_folder, batch, message):
    path = big_folder / "test_batch"
    path.write_bytes(pickle.dumps(batch, protocol=4))
    with pytest.raises(DataError, match=f"test_batch: .*{message}"):
        read_cifar10_python(path)


@pytest.mark.parametrize("kept", [0, 1, 2, 40, 20_000, 20_200, 1_000_000, -1])
def test_truncated_cifar10_pickle_is_an_error(big_folder, cifar10_pickle, kept):
    path = big_folder / "data_batch_3"
    path.write_bytes(cifar10_pickle[:kept])
    with pytest.raises(DataError, match="data_batch_3: "):
        read_cifar10_python(path)


def test_array_of_fewer_bytes_than_its_shape_is_an_error(big_folder, cifar10_pickle):
    start = cifar10_pickle.index(b"T" + struct.pack("<i", 30_720_000))
    end = start + 5 + 30_720_000
    path = big_folder / "data_batch_1"
    path.write_bytes(cifar10_pickle[:start] + b"U\x05pixel" + cifar10_pickle[end:])
    with pytest.raises(DataError, match="data_batch_1: expected under 'data' 30720000 bytes"):
        read_cifar10_python(path)


def test_trailing_bytes_after_the_pickle_are_an_error(big_folder, cifar10_pickle):
    path = big_folder / "data_batch_1"
    path.write_bytes(cifar10_pickle + b"xyz")
    with pytest.raises(DataError, match="3 bytes follow the end of the pickle"):
        read_cifar10_python(path)


# npz


def arrays(shape=(6, 5, 4), dtype=np.uint8, **replaced):
    rng = np.random.default_rng(3)
    images = (rng.random((2, *shape)) * 200).astype(dtype)
    labels = np.arange(shape[0]) % 3
    made = {
        "train_images": images[0],
        "train_labels": labels,
        "test_images": images[1],
        "test_labels": labels[::-1],
    }
    return {**made, **replaced}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 5, 4), (6, 5, 4, 1)), ((6, 5, 4, 2), (6, 5, 4, 2)), ((6, 7), (6, 1, 1, 7))],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_npz_values_shapes_and_types(tmp_path, save, shape, expected, dtype):
    given = arrays(shape, dtype)
    save(tmp_path / "own.npz", **given)
    (train_images, train_labels), (test_images, test_labels) = read_npz(tmp_path / "own.npz")
    assert (
        train_images.dtype == test_images.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    )
    assert train_labels.dtype == test_labels.dtype == np.int32
    np.testing.assert_array_equal(
        train_images, given["train_images"].astype(train_images.dtype).reshape(expected)
    )
    np.testing.assert_array_equal(
        test_images, given["test_images"].astype(test_images.dtype).reshape(expected)
    )
    np.testing.assert_array_equal(train_labels, given["train_labels"])
    np.testing.assert_array_equal(test_labels, given["test_labels"])


def test_npz_with_keras_names_and_columns_of_labels(tmp_path):
    given = arrays()
    np.savez(
        tmp_path / "keras.npz",
        x_train=given["train_images"],
        y_train=given["train_labels"][:, None].astype(np.uint8),
        x_test=given["test_images"],
        y_test=given["test_labels"][:, None].astype(np.uint8),
    )
    (train_images, train_labels), (_, test_labels) = read_npz(tmp_path / "keras.npz")
    np.testing.assert_array_equal(train_images[..., 0], given["train_images"])
    np.testing.assert_array_equal(train_labels, given["train_labels"])
    np.testing.assert_array_equal(test_labels, given["test_labels"])


NPZ_DAMAGE = {
    "too many dimensions": ({"train_images": np.zeros((6, 1, 1, 1, 1))}, "train_images: .*shape"),
    "one dimension": ({"train_images": np.zeros(6)}, r"train_images: .*\(6,\), expected"),
    "no examples": ({"test_images": np.zeros((0, 5, 4), np.uint8)}, r"test_images: .*\(0, 5, 4\)"),
    "whole numbers": (
        {"train_images": np.zeros((6, 5, 4), int)},
        "type uint8 of the test images, expected int32",
    ),
    "not a number": ({"test_images": np.full((6, 5, 4), np.nan)}, "120 values are not finite"),
    "beyond float32": ({"test_images": np.full((6, 5, 4), 1e39)}, "120 values are not finite"),
    "other shape": ({"test_images": np.zeros((6, 4, 5), np.uint8)}, r"shape \(4, 5, 1\) of the te"),
    "other type": ({"test_images": np.zeros((6, 5, 4))}, "type float32 of the test"),
    "count": ({"test_labels": np.arange(5) % 3}, "5 labels, expected 6"),
    "one hot": (
        {"train_labels": np.eye(6, dtype=int)},
        r"train_labels: .*int64 and shape \(6, 6\)",
    ),
    "real labels": ({"train_labels": np.arange(6) / 2}, "train_labels: labels of type float64"),
    "negative": ({"train_labels": np.array([0, 1, -1, 0, 1, 2])}, "label -1 at example 2, exp"),
    "no labels at all": (
        {"train_labels": np.arange(6) * 1000},
        "label 1000 at example 1, exp.* 5 ",
    ),
    "unknown test class": ({"test_labels": np.array([0, 1, 2, 3, 0, 0])}, "label 3 at example 3"),
    "beyond int32": ({"test_labels": np.array([2**32, 1, 2, 0, 0, 0])}, "label 4294967296"),
}


@pytest.mark.parametrize(("replaced", "message"), NPZ_DAMAGE.values(), ids=NPZ_DAMAGE)
def test_unfit_npz_is_an_error(tmp_path, replaced, message):
    np.savez(tmp_path / "own.npz", **arrays(**replaced))
    with pytest.raises(DataError, match=rf"own\.npz.*{message}"):
        read_npz(tmp_path / "own.npz")


def test_npz_of_other_arrays_names_those_found_and_those_expected(tmp_path):
    np.savez(tmp_path / "own.npz", x_train=np.zeros(2), labels=np.zeros(2))
    message = r"own.npz: holds the arrays x_train, labels; expected train_images.* or x_train, y_"
    with pytest.raises(DataError, match=message):
        read_npz(tmp_path / "own.npz")


def test_npz_of_objects_runs_nothing(tmp_path):
    victim = tmp_path / "victim"
    labels = np.array([Runs(os.system, f"touch {victim}")] * 6, dtype=object)
    np.savez(tmp_path / "own.npz", **arrays(train_labels=labels))
    with pytest.raises(DataError, match=r"own\.npz, train_labels: .*Objects are never read"):
        read_npz(tmp_path / "own.npz")
    assert not victim.exists()


def test_single_array_file_is_no_npz(tmp_path):
    np.save(tmp_path / "own.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"own\.npy: not an npz archive"):
        read_npz(tmp_path / "own.npy")


def test_npz_with_a_flipped_byte_is_an_error(tmp_path):
    np.savez(tmp_path / "own.npz", **arrays())
    content = bytearray((tmp_path / "own.npz").read_bytes())
    content[230] ^= 1  # within the first array
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"own\.npz: not a readable npz archive .*CRC"):
        read_npz(tmp_path / "own.npz")


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_every_truncation_of_npz_is_an_error(folder, share):
    path = folder / "cut.npz"
    np.savez_compressed(path, **arrays())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"cut\.npz: "):
        read_npz(path)
