"""Labels by their kind: what is taken, what comes of it, and what is refused with what remedy."""

import numpy as np
import pytest

import normlab
from normlab.data import DataError, DataSpec, load
from normlab.data.sources import LOADERS

N = 60
IMAGES = np.arange(N * 12, dtype=np.float32).reshape(N, 2, 2, 3)
FLAGS = np.arange(N)[:, None] % [2, 3] == 0
VALUES = np.linspace(0, 1, N)
POSITIONS = (np.arange(N * 4) % 4 - 1).reshape(N, 2, 2)


@pytest.fixture(autouse=True)
def _nothing_stays_registered():
    yield
    LOADERS.pop("own", None)


def loaded(targets, labels, images=IMAGES, spec=None):
    normlab.register_data("own", lambda: (images, labels, images[::-1], labels[::-1]))
    return load(DataSpec(batch_size=16, name="own", **(spec or {})), targets)


@pytest.mark.parametrize(
    ("targets", "labels", "dtype", "outputs"),
    [
        ("flags", FLAGS, np.uint8, 2),
        ("flags", FLAGS.astype(np.int64), np.uint8, 2),
        ("values", VALUES, np.float32, 1),
        ("values", np.arange(N), np.float32, 1),
        ("values", np.stack([VALUES, -VALUES], 1), np.float32, 2),
        ("positions", POSITIONS, np.int32, 3),
        ("classes", np.arange(N) % 3, np.int32, 3),
    ],
)
def test_labels_of_each_kind(targets, labels, dtype, outputs):
    dataset = loaded(targets, labels)
    assert (dataset.labels.dtype, dataset.classes) == (dtype, outputs)
    expected = labels[:, None] if targets == "values" and labels.ndim == 1 else labels
    np.testing.assert_allclose(dataset.labels[:N], expected, rtol=1e-7)


def test_npz_files_have_labels_of_each_kind_or_none(tmp_path):
    path = tmp_path / "own.npz"
    spec = DataSpec(batch_size=16, name="npz", folder=str(path))
    arrays = {"train_images": IMAGES, "test_images": IMAGES}
    np.savez(path, **arrays, train_labels=VALUES, test_labels=VALUES)
    assert load(spec, "values").labels.shape == (2 * N, 1)
    np.savez(path, **arrays)
    dataset = load(spec, "none")
    assert (dataset.labels, dataset.classes) == (None, 12)
    with pytest.raises(DataError, match="expected train_images, train_labels, test_images"):
        load(spec)


def test_tokens_are_numbered_by_those_to_train_on():
    tokens = np.arange(N * 3).reshape(N, 3) % 7
    normlab.register_data("own", lambda: (tokens, tokens))
    spec = DataSpec(batch_size=16, name="own")
    assert load(spec, "none").classes == 7
    normlab.register_data("own", lambda: (tokens, tokens + 1))
    LOADERS["own"] = lambda: (tokens, tokens + 1)
    with pytest.raises(DataError, match="a token of number 7, but those to train on 0 to 6"):
        load(spec, "none")
    LOADERS["own"] = lambda: (tokens - 1, tokens)
    with pytest.raises(DataError, match="a token of number -1; expected whole numbers from 0"):
        load(spec, "none")


BAD = VALUES.copy()
BAD[7] = np.nan


@pytest.mark.parametrize(
    ("targets", "labels", "told"),
    [
        ("flags", np.arange(N), "but the objective expects flags, truth values or whole"),
        ("flags", FLAGS * 2, r"2 at \(0, 0\), but flags are 0 or 1"),
        ("flags", FLAGS.astype(np.float32), "labels of type float32"),
        ("values", FLAGS, "labels of type bool"),
        ("values", BAD, r"1 values are not finite in float32, as nan at \(7,\)"),
        ("values", 1e9 + VALUES, "does not resolve; take an offset out of them"),
        ("positions", np.arange(N), "but the objective expects classes of positions"),
        ("positions", POSITIONS - 1, r"-2 at .* and -1 where a position is left out"),
        ("positions", np.zeros((N, 2, 2), int), "no position has a class above 0"),
        ("classes", VALUES, r"objective: \{name: regression\}"),
        ("values", VALUES[:7], "7 labels, expected 60"),
    ],
)
def test_what_is_refused_says_what_was_expected(targets, labels, told):
    with pytest.raises(DataError, match=told):
        loaded(targets, labels)


def test_test_labels_are_of_the_shape_and_classes_of_those_to_train_on():
    LOADERS["own"] = lambda: (IMAGES, FLAGS, IMAGES, FLAGS[:, :1])
    spec = DataSpec(batch_size=16, name="own")
    with pytest.raises(DataError, match=r"test_labels: labels of shape \(60, 1\), expected \(2,\)"):
        load(spec, "flags")
    LOADERS["own"] = lambda: (IMAGES, POSITIONS, IMAGES, POSITIONS + 1)
    with pytest.raises(DataError, match=r"3 at .*classes are 0 to 2"):
        load(spec, "positions")


def test_published_sets_have_classes():
    with pytest.raises(
        DataError, match=r"data\.name=digits has classes, but the objective expects"
    ):
        load(DataSpec(), "values")
    dataset = load(DataSpec(), "none")
    assert (dataset.labels, dataset.classes) == (None, 64)


def test_what_has_no_classes_is_split_without_strata_and_the_same_way():
    one, other = loaded("values", VALUES), loaded("values", VALUES**2)
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(one, split), getattr(other, split))
    held = one.validation
    assert len(held) == 12
    assert not np.array_equal(np.diff(held), np.full(11, 5))  # shuffled
