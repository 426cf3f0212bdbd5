"""Examples that stay where they are, and are read when they are asked for."""

import re

import numpy as np
import pytest

from normlab.data import DataError, DataSpec, load
from normlab.data.rows import Joined, Rows

N = 40


def arrays(shape=(5, 4), dtype=np.uint8):
    rng = np.random.default_rng(0)
    train, test = ((rng.random((count, *shape)) * 200).astype(dtype) for count in (N, N // 2))
    return {
        "train_images": train,
        "train_labels": np.arange(N) % 3,
        "test_images": test,
        "test_labels": np.arange(N // 2) % 3,
    }


def as_npz(folder, given):
    np.savez(folder / "own.npz", **given)
    return folder / "own.npz"


def as_npy(folder, given):
    for name, array in given.items():
        np.save(folder / f"{name}.npy", np.asfortranarray(array))
    return folder


def loaded(place, stream, targets="classes", **options):
    spec = DataSpec(name="npz", folder=str(place), batch_size=4, stream=stream, **options)
    return load(spec, targets)


@pytest.mark.parametrize("write", [as_npz, as_npy])
@pytest.mark.parametrize(
    ("shape", "dtype", "targets"),
    [
        ((5, 4), np.uint8, "classes"),
        ((5, 4, 2), ">f8", "classes"),
        ((7,), np.float16, "classes"),
        ((7,), np.int64, "none"),
    ],
    ids=["bytes", "doubles", "features", "tokens"],
)
def test_mapped_arrays_are_the_set_that_is_read(tmp_path, write, shape, dtype, targets):
    given = arrays(shape, dtype)
    given["test_images"] = np.minimum(given["test_images"], given["train_images"].max())
    place = write(tmp_path, given)
    resident, streamed = (loaded(place, it, targets) for it in (False, True))
    assert isinstance(streamed.images, Rows)
    assert streamed.images.dtype == resident.images.dtype
    assert streamed.images.shape == resident.images.shape
    order = np.random.default_rng(1).permutation(len(resident.images))
    np.testing.assert_array_equal(streamed.images[order], resident.images[order])
    for name in ("labels", "train", "validation", "test", "mean", "deviation", "classes"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(resident, name))


def test_images_that_are_compressed_are_refused_to_be_streamed(tmp_path):
    np.savez_compressed(tmp_path / "own.npz", **arrays())
    with pytest.raises(DataError, match=r"train_images: it is compressed.*numpy\.savez, or unpack"):
        loaded(tmp_path / "own.npz", stream=True)


def test_values_that_are_not_finite_are_told_by_their_number_where_they_are_read(tmp_path):
    given = arrays(dtype=np.float32)
    given["train_images"][33, 2, 1] = np.nan
    place = as_npy(tmp_path, given)
    with pytest.raises(DataError, match=re.escape("train_images: 1 values are not finite")) as told:
        loaded(place, stream=True)
    assert "nan at (33, 2, 1)" in str(told.value)


def test_a_folder_that_lacks_an_array_is_refused(tmp_path):
    given = arrays()
    del given["test_labels"]
    with pytest.raises(DataError, match=r"lacks test_labels\.npy; expected train_"):
        loaded(as_npy(tmp_path, given), stream=False)


def test_what_fills_memory_is_told_to_be_streamed(tmp_path, monkeypatch):
    place = as_npz(tmp_path, arrays())
    monkeypatch.setattr("normlab.data.reading.available_memory", lambda: 4000)
    with pytest.raises(DataError, match=r"with data\.stream=true, take fewer or smaller examples"):
        loaded(place, stream=False)
    assert loaded(place, stream=True).images.shape == (N + N // 2, 5, 4, 1)


def test_joined_parts_are_those_of_one_array():
    parts = [np.arange(3), np.arange(3, 4), np.arange(4, 9)]
    indices = np.array([8, 0, 3, 3, 5, 2])
    np.testing.assert_array_equal(Joined(parts)[indices], indices)
