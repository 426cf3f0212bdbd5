"""Sets of a user's own in folders of images, Parquet and ArrayRecord: the same set in each."""

import io
import re

import numpy as np
import polars as pl
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from flax.serialization import msgpack_serialize
from PIL import Image

from normlab.data import DataError, DataSpec, load
from normlab.data.rows import Rows

SIZES = {"train": 24, "test": 9}
CLASSES = ("cat", "dog", "owl")


def made(split, shape=(6, 5, 3)):
    """Images and labels, in the order of their classes, as folders have them."""
    count = SIZES[split]
    images = np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)
    return images, np.arange(count) * 3 // count


def encoded(image, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(image.squeeze()).save(content, kind)
    return content.getvalue()


def write_images(folder, split):
    for number, (image, label) in enumerate(zip(*made(split), strict=True)):
        of_class = folder / split / CLASSES[label]
        of_class.mkdir(parents=True, exist_ok=True)
        (of_class / f"{number:03}.png").write_bytes(encoded(image))
    (folder / split / ".hidden").write_text("")


def write_parquet(folder, split):
    """Two files, as large sets have them, of encoded images as Hugging Face has them."""
    images, labels = made(split)
    for part in (0, 1):
        here = slice(part * 10, (part * 10 + 10) if not part else None)
        image = [{"bytes": encoded(it), "path": None} for it in images[here]]
        frame = pl.DataFrame({"image": image, "label": labels[here]})
        frame.write_parquet(folder / f"{split}-{part}.parquet")


def write_records(folder, split):
    (folder / split).mkdir()
    writer = ArrayRecordWriter(str(folder / split / "0.array_record"), "group_size:1")
    for image, label in zip(*made(split), strict=True):
        writer.write(msgpack_serialize({"image": image, "label": int(label)}))
    writer.close()


def write_numbers(folder, split):
    """Features, a column each."""
    images, labels = made(split, (2,))
    columns = {"first": images[:, 0] / 2, "second": images[:, 1] / 2, "labels": labels * 0.5}
    pl.DataFrame(columns).write_parquet(folder / f"{split}.parquet")


def loaded(name, folder, targets="classes", stream=True, **options):
    spec = DataSpec(name=name, folder=str(folder), stream=stream, **{"batch_size": 4, **options})
    return load(spec, targets)


WRITERS = {"images": write_images, "parquet": write_parquet, "array_record": write_records}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_read_is_what_was_written_streamed_or_not(tmp_path, name):
    for split in SIZES:
        WRITERS[name](tmp_path, split)
    streamed, resident = (loaded(name, tmp_path, stream=it) for it in (True, False))
    assert isinstance(streamed.images, Rows)
    assert isinstance(resident.images, np.ndarray)
    images, labels = (np.concatenate(it) for it in zip(*map(made, SIZES), strict=True))
    order = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_array_equal(streamed.images[order], images[order])
    np.testing.assert_array_equal(resident.images, images)
    for dataset in (streamed, resident):
        np.testing.assert_array_equal(dataset.labels, labels)
        assert dataset.images.dtype == np.uint8
        assert len(dataset.test) == SIZES["test"]
        assert dataset.classes == len(CLASSES)
        np.testing.assert_allclose(dataset.mean, images[dataset.train].mean((0, 1, 2)), rtol=1e-6)


def test_columns_of_numbers_are_features_and_targets_of_regression(tmp_path):
    for split in SIZES:
        write_numbers(tmp_path, split)
    dataset = loaded("parquet", tmp_path, "values")
    features, labels = made("train", (2,))
    taken = dataset.images[np.arange(SIZES["train"])]
    np.testing.assert_array_equal(taken, np.float32(features / 2)[:, None, None, :])
    np.testing.assert_array_equal(dataset.labels[: SIZES["train"], 0], labels * 0.5)


def write_columns(kind, folder, split, columns):
    if kind == "parquet":
        pl.DataFrame(columns).write_parquet(folder / f"{split}.parquet")
        return
    writer = ArrayRecordWriter(str(folder / f"{split}.array_record"), "group_size:1")
    for values in zip(*columns.values(), strict=True):
        writer.write(msgpack_serialize(dict(zip(columns, values, strict=True))))
    writer.close()


@pytest.mark.parametrize("kind", ["parquet", "array_record"])
def test_columns_are_known_by_their_names_whatever_their_order(tmp_path, kind):
    """Test examples whose columns stand in another order had their features exchanged."""
    a, b, label = [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0], [0, 1, 0, 1]
    write_columns(kind, tmp_path, "train", {"b": b, "a": a, "label": label})
    write_columns(kind, tmp_path, "test", {"label": label, "a": a, "b": b})
    images = loaded(kind, tmp_path, validation=0.5, batch_size=1).images
    taken = np.asarray(images[np.arange(8)]).reshape(8, 2)
    # ArrayRecord's records have their keys in the order of the alphabet.
    names = np.float32([b, a] if kind == "parquet" else [a, b])
    np.testing.assert_array_equal(taken, np.tile(names.T, (2, 1)))
    write_columns(kind, tmp_path, "test", {"a": a, "c": b, "label": label})
    with pytest.raises(
        DataError, match=r"test.*: has the inputs a, c; expected (b, a|a, b), as those"
    ):
        loaded(kind, tmp_path)


def test_one_column_of_numbers_is_one_feature(tmp_path):
    """It was refused, as images of shape (1,)."""
    for split in SIZES:
        write_columns("parquet", tmp_path, split, {"a": [1.0, 2.0, 3.0], "label": [0, 1, 0]})
    images = loaded("parquet", tmp_path, validation=0.5, batch_size=1).images
    np.testing.assert_array_equal(images[np.arange(3)], np.float32([1, 2, 3]).reshape(3, 1, 1, 1))


def test_images_of_several_sizes_are_brought_to_one(tmp_path):
    """The shorter side to the size, the square in the middle cut out; or told how."""
    for split in SIZES:
        write_images(tmp_path, split)
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    (tmp_path / "test" / "owl" / "wide.png").write_bytes(encoded(wide))
    told = r"wide\.png: an image of shape \(10, 30, 3\), expected \(6, 5, 3\).*data\.image_size=N"
    with pytest.raises(DataError, match=told):
        loaded("images", tmp_path, stream=False)
    images = loaded("images", tmp_path, stream=False, image_size=5).images
    assert images.shape[1:] == (5, 5, 3)
    np.testing.assert_array_equal(images[-1, :, 1:4], 200)


def broken(folder):
    (folder / "train" / "cat" / "000.png").write_bytes(b"no image")


def transparent(folder):
    Image.new("RGBA", (5, 6)).save(folder / "train" / "cat" / "000.png")


def unknown_class(folder):
    (folder / "test" / "yak").mkdir()
    (folder / "test" / "yak" / "1.png").write_bytes(encoded(np.zeros((6, 5, 3), np.uint8)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (broken, "000.png: no image that can be read"),
        (transparent, "000.png: an image of mode RGBA; expected colors or gray"),
        (unknown_class, "the classes yak are not in"),
        (lambda it: (it / "train" / "notes.txt").write_text(""), "notes.txt: expected folders"),
        (lambda it: (it / "test" / "cat" / "a.txt").write_text(""), "a.txt: expected images alone"),
        # It was no class, without a word.
        (lambda it: (it / "train" / "yak").mkdir(), "yak: it holds no images; add some, or remove"),
        (lambda it: (it / "test").rename(it / "val"), "test: there is no such folder"),
    ],
)
def test_folders_that_are_no_set_of_images_are_refused(tmp_path, change, told):
    for split in SIZES:
        write_images(tmp_path, split)
    change(tmp_path)
    with pytest.raises(DataError, match=re.escape(told)):
        loaded("images", tmp_path)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"label": [0, 1]}, "has label; expected label or labels, and image or other columns"),
        ({"image": [[1.0], [2.0]]}, "has image; expected label"),
        ({"image": [[1.0], [2.0, 3.0]], "label": [0, 1]}, "image: values that make no array"),
        ({"image": [1.0, None], "label": [0, 1]}, "image: values are missing"),
        ({"a": [[1.0], [2.0]], "b": [1.0, 2.0], "label": [0, 1]}, "a: (1,) values an example"),
        ({"a": [1, 2], "label": [0, 1], "labels": [0, 1]}, "has label and labels; expected one"),
    ],
    ids=["no inputs", "no labels", "ragged", "missing", "mixed", "two labels"],
)
def test_columns_that_are_no_set_are_refused(tmp_path, columns, told):
    for split in SIZES:
        pl.DataFrame(columns).write_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match=re.escape(told)):
        loaded("parquet", tmp_path)


def test_what_is_no_such_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no train\*\.parquet, and no folder train"):
        loaded("parquet", tmp_path)
    for split in SIZES:
        (tmp_path / f"{split}.parquet").write_text("no Parquet")
        writer = ArrayRecordWriter(str(tmp_path / f"{split}.array_record"), "group_size:1")
        writer.write(b"no record")
        writer.close()
    with pytest.raises(DataError, match="no readable Parquet file"):
        loaded("parquet", tmp_path)
    with pytest.raises(DataError, match=r"expected records that flax\.serialization"):
        loaded("array_record", tmp_path)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "images"}, "images needs the path of its folder"),
        ({"name": "npz", "folder": "a", "image_size": 3}, "image_size=3 is for files of images"),
    ],
)
def test_what_does_not_go_together_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        DataSpec(**given)
