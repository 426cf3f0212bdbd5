"""Texts: their bytes in order, in blocks that do not overlap, split by position."""

import os
from pathlib import Path

import numpy as np
import pytest

from normlab.data import DataError, DataSpec, MissingDataError, load

CONTENT = bytes(range(256)) * 4


def text(place, **given):
    return load(DataSpec(name="text", folder=str(place), batch_size=2, **given), "none")


def bytes_of(dataset, split):
    return dataset.images[getattr(dataset, split)].astype(np.uint8).tobytes()


def test_blocks_hold_every_byte_once_in_its_order_train_then_validation_then_test(tmp_path):
    (tmp_path / "one.txt").write_bytes(CONTENT)
    dataset = text(tmp_path / "one.txt", block=9)
    assert (dataset.images.dtype, dataset.images.shape) == (np.int32, (102, 10))
    assert (dataset.labels, dataset.classes) == (None, 256)
    assert [len(getattr(dataset, it)) for it in ("train", "validation", "test")] == [74, 18, 10]
    parts = [bytes_of(dataset, split) for split in ("train", "validation", "test")]
    assert b"".join(parts) == CONTENT[:1020]


def test_a_blocks_length_is_what_is_predicted_and_128_if_not_given(tmp_path):
    (tmp_path / "one.txt").write_bytes(CONTENT * 10)
    assert text(tmp_path / "one.txt").images.shape[1:] == (129,)


def test_files_of_a_folder_are_put_together_by_name_without_hidden_ones(tmp_path):
    parts = {"a.txt": CONTENT[:300], "b/c.txt": "Größe".encode() * 20, "d.md": CONTENT[300:]}
    for name, content in {**parts, ".complete": b"no", ".git/x": b"no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    dataset = text(tmp_path, block=4)
    joined = b"".join(parts.values())
    splits = [bytes_of(dataset, it) for it in ("train", "validation", "test")]
    assert b"".join(splits) == joined[: len(joined) // 5 * 5]


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (None, "there is no such file.*\nName a file of text, or a folder"),
        ("folder", "the folder holds no file, expected a text"),
        (b"", "it is empty; expected a text"),
        (b"0123456789" * 4, "40 bytes make 4 blocks of 10, data.block and the byte before"),
    ],
)
def test_what_is_no_text_is_refused_with_the_remedy(tmp_path, made, told):
    place = tmp_path / "one"
    if made == "folder":
        place.mkdir()
    elif made is not None:
        place.write_bytes(made)
    with pytest.raises(DataError, match=r"(?s)" + told):
        text(place, block=9)


def test_without_a_place_it_is_in_the_folder_of_data(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "one.txt").write_bytes(CONTENT)
    assert len(load(DataSpec(name="text", block=9, batch_size=2), "none").images) == 102
    monkeypatch.delenv("NORMLAB_DATA")
    with pytest.raises(MissingDataError, match=r"NORMLAB_DATA is not set, nor data.folder"):
        load(DataSpec(name="text"), "none")


def test_an_objective_of_labels_and_blocks_of_other_sets_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no labels beside its bytes.*objective.name=next_token"):
        load(DataSpec(name="text", folder=str(tmp_path)))
    with pytest.raises(ValueError, match="block=9 cuts a text, but name=digits"):
        DataSpec(block=9)


@pytest.mark.datasets
def test_a_real_text():
    place = Path(os.environ["NORMLAB_DATA"], "text")
    dataset = load(DataSpec(name="text", block=128), "none")
    assert len(dataset.images) == (place / "kjv.txt").stat().st_size // 129
    # Of a byte, 4.4 million times, by how often each is there: between 4 and 5 bits.
    shares = np.bincount(dataset.images[dataset.train].ravel(), minlength=256) / (
        len(dataset.train) * 129
    )
    entropy = -sum(it * np.log2(it) for it in shares if it)
    assert 4 < entropy < 5
