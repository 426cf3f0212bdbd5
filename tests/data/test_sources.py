"""Named sets: where they are found, how they are split, what is said when something is missing."""

import dataclasses
import gzip
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits

import normlab
from normlab.data import DataError, Dataset, DataSpec, MissingDataError, describe, load, sources
from normlab.data.sources import LOADERS


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch):
    """The machine's own sets play no part here."""
    monkeypatch.delenv("NORMLAB_DATA", raising=False)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataSpec())


def counts(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    return np.bincount(dataset.labels[indices], minlength=dataset.classes)


def assert_sound(dataset: Dataset) -> None:
    """What holds for every data set."""
    n = len(dataset.labels)
    together = np.concatenate([dataset.train, dataset.validation, dataset.test])
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < n
    assert len(dataset.images) == n
    assert dataset.labels.min() >= 0
    assert dataset.labels.max() < dataset.classes
    assert dataset.image_shape == dataset.images.shape[1:]
    assert dataset.images.dtype in (np.uint8, np.float32)
    for array in (dataset.labels, dataset.train, dataset.validation, dataset.test):
        assert array.dtype == np.int32
    pixels = dataset.images[dataset.train].astype(np.float64)
    assert dataset.mean.dtype == dataset.deviation.dtype == np.float32
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    expected = pixels.std((0, 1, 2))
    np.testing.assert_allclose(dataset.deviation, np.where(expected, expected, 1), rtol=1e-6)


# Digits


def test_digits_are_the_same_where_scikit_learn_keeps_its_file_elsewhere(
    digits, monkeypatch, tmp_path
):
    elsewhere = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(sources, "find_spec", lambda name: elsewhere)
    again = load(DataSpec(name="digits"))
    np.testing.assert_array_equal(again.images, digits.images)
    np.testing.assert_array_equal(again.labels, digits.labels)


def test_digits_are_scikit_learns(digits):
    assert_sound(digits)
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.images.dtype == np.uint8
    assert digits.images.max() == 16
    assert digits.classes == 10
    given = load_digits()
    theirs = np.column_stack([given.data.astype(int), given.target])
    ours = np.column_stack([digits.images.reshape(-1, 64), digits.labels])
    np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))
    assert len(np.unique(ours, axis=0)) == 1797


def test_digits_splits_cover_everything_and_are_stratified(digits):
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1150, 288, 359)
    whole = np.bincount(digits.labels)
    assert np.abs(counts(digits, digits.test) - 0.2 * whole).max() <= 1
    rest = whole - counts(digits, digits.test)
    assert np.abs(counts(digits, digits.validation) - 0.2 * rest).max() <= 1


def test_digits_split_is_the_same_on_every_machine(digits):
    """Results of one machine are compared with those of another: never change these."""
    arrays = (digits.images, digits.labels, digits.train, digits.validation, digits.test)
    found = [hashlib.md5(array.astype("<i4").tobytes()).hexdigest()[:8] for array in arrays]
    assert found == ["fd02afb9", "ff4aa049", "278de224", "ed64f5fe", "7676eced"]


def test_test_split_does_not_depend_on_the_validation_share(digits):
    other = load(DataSpec(validation=0.5))
    np.testing.assert_array_equal(other.test, digits.test)
    np.testing.assert_array_equal(other.images, digits.images)
    assert len(other.validation) == 719
    assert_sound(other)


def test_a_share_of_the_training_examples_is_that_number_of_them():
    share, number = load(DataSpec(train_share=0.2)), load(DataSpec(train_examples=230))
    np.testing.assert_array_equal(share.train, number.train)
    assert len(share.train) == 230
    with pytest.raises(ValueError, match=r"train_examples=100 and train_share=0\.5 both say"):
        DataSpec(train_examples=100, train_share=0.5)


@pytest.mark.parametrize("train_examples", [64, 100, 1149, 1150])
def test_fewer_training_examples_leave_the_other_splits_alone(digits, train_examples):
    fewer = load(DataSpec(train_examples=train_examples))
    assert_sound(fewer)  # so mean and deviation come from these few alone
    assert len(fewer.train) == train_examples
    assert set(fewer.train) <= set(digits.train)
    expected = counts(digits, digits.train) * train_examples / 1150
    assert np.abs(counts(fewer, fewer.train) - expected).max() <= 1
    np.testing.assert_array_equal(fewer.validation, digits.validation)
    np.testing.assert_array_equal(fewer.test, digits.test)


def test_requests_that_a_set_is_too_small_for_name_key_and_limit():
    with pytest.raises(DataError, match=r"data\.train_examples=1151, .* 1150 examples to train"):
        load(DataSpec(train_examples=1151))
    with pytest.raises(DataError, match=r"data\.batch_size=65, but digits has 64 examples"):
        load(DataSpec(train_examples=64, batch_size=65))
    with pytest.raises(DataError, match=r"data\.validation=0\.0001 leaves 1438 .* 0 to tune on"):
        load(DataSpec(validation=1e-4))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2, 0.29, 0.5, 0.7, 0.89, 1.0])
@pytest.mark.parametrize("n", [1, 2, 10, 100, 997])
def test_stratified_split_takes_the_share_of_the_whole_and_of_each_class(n, share):
    rng = np.random.default_rng(n)
    labels = rng.integers(0, 7, 2 * n).astype(np.int32)
    indices = rng.permutation(2 * n)[:n].astype(np.int32)
    kept, held = sources._stratified(labels, indices, share)
    assert len(held) == np.rint(n * share)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.sort(indices))
    per_class = np.bincount(labels[indices], minlength=7)
    assert np.abs(np.bincount(labels[held], minlength=7) - share * per_class).max() <= 1


# What a config may say


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "npz"}, "npz needs the path of its file, folder=FILE.npz"),
        ({"name": "digits", "folder": "x"}, "reads no folder, but folder=x; leave it out"),
        ({"name": "svhn"}, "of digits, mnist, fashion_mnist, cifar10, npz"),
        ({"name": "mnst"}, "did you mean 'mnist'"),
        ({"batch_size": 0}, "greater than 0"),
        ({"validation": 0.0}, "greater than 0"),
        ({"validation": 0.9}, "less than 0.9"),
        ({"train_examples": 0}, "greater than 0"),
        ({"name": "mnist", "folder": ""}, "at least 1 character"),
        ({"batchsize": 3}, "Extra inputs are not permitted"),
    ],
)
def test_spec_refuses(fields, message):
    with pytest.raises(ValidationError, match=message):
        DataSpec(**fields)


# Official files


@pytest.mark.parametrize("compressed", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("given", ["folder", "parent", "variable"])
def test_mnist_is_found_and_read(
    tmp_path, monkeypatch, write_mnist, mnist_arrays, compressed, given
):
    write_mnist(tmp_path / "mnist", compressed)
    folder = {"folder": tmp_path / "mnist", "parent": tmp_path, "variable": None}[given]
    if folder is None:
        monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    spec = DataSpec(name="mnist", folder=folder and str(folder), batch_size=8)
    dataset = load(spec)
    assert_sound(dataset)
    assert dataset.image_shape == (28, 28, 1)
    assert dataset.classes == 10
    np.testing.assert_array_equal(
        dataset.images[:50, ..., 0], mnist_arrays["train-images-idx3-ubyte"]
    )
    np.testing.assert_array_equal(
        dataset.images[50:, ..., 0], mnist_arrays["t10k-images-idx3-ubyte"]
    )
    np.testing.assert_array_equal(
        dataset.labels,
        np.concatenate([mnist_arrays[f"{split}-labels-idx1-ubyte"] for split in ("train", "t10k")]),
    )
    np.testing.assert_array_equal(dataset.test, np.arange(50, 70))
    np.testing.assert_array_equal(counts(dataset, dataset.train), [4] * 10)
    np.testing.assert_array_equal(counts(dataset, dataset.validation), [1] * 10)


def test_folder_of_the_config_comes_before_the_variable(tmp_path, monkeypatch, write_mnist):
    write_mnist(tmp_path / "here")
    (tmp_path / "there" / "mnist").mkdir(parents=True)
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path / "there"))
    assert len(load(DataSpec(name="mnist", folder=str(tmp_path / "here"), batch_size=8)).labels)
    with pytest.raises(MissingDataError):
        load(DataSpec(name="mnist"))


def test_folder_is_taken_from_the_working_directory_and_the_home(
    tmp_path, monkeypatch, write_mnist
):
    write_mnist(tmp_path / "sets" / "mnist")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("sets", "~/sets", "./sets/mnist/"):
        assert load(DataSpec(name="mnist", folder=folder, batch_size=8)).classes == 10


def test_fashion_mnist_is_found_where_the_system_keeps_it(tmp_path, monkeypatch, write_mnist):
    assert sources._PUBLISHED["fashion_mnist"].system_folder == "/usr/share/datasets/fashion-mnist"
    write_mnist(tmp_path / "fashion-mnist")
    moved = dataclasses.replace(
        sources._PUBLISHED["fashion_mnist"], system_folder=str(tmp_path / "fashion-mnist")
    )
    monkeypatch.setitem(sources._PUBLISHED, "fashion_mnist", moved)
    assert load(DataSpec(name="fashion_mnist", batch_size=8)).name == "fashion_mnist"
    # An incomplete folder below NORMLAB_DATA does not hide it.
    (tmp_path / "fashion_mnist").mkdir()
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    assert load(DataSpec(name="fashion_mnist", batch_size=8)).name == "fashion_mnist"


def test_missing_set_lists_every_place_and_the_remedies(tmp_path, monkeypatch, write_mnist):
    with pytest.raises(MissingDataError, match="NORMLAB_DATA is not set"):
        load(DataSpec(name="mnist"))

    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    with pytest.raises(MissingDataError) as raised:
        load(DataSpec(name="mnist"))
    message = str(raised.value)
    assert f"{tmp_path}/mnist: lacks t10k-labels-idx1-ubyte\n" in message
    assert "data.folder=FOLDER" in message
    assert "NORMLAB_DATA" in message
    assert "train-images-idx3-ubyte" in message

    with pytest.raises(MissingDataError) as raised:
        load(DataSpec(name="fashion_mnist", folder=str(tmp_path / "nowhere")))
    message = str(raised.value)
    assert f"{tmp_path}/nowhere: no such folder\n" in message
    assert f"{tmp_path}/nowhere/fashion_mnist: no such folder\n" in message
    assert "apt install dataset-fashion-mnist" in message

    with pytest.raises(MissingDataError) as raised:
        load(DataSpec(name="cifar10", folder=str(tmp_path)))
    message = str(raised.value)
    for place in ("", "cifar10/"):
        for subfolder in ("cifar-10-batches-bin", "cifar-10-batches-py"):
            assert f"{tmp_path}/{place}{subfolder}: no such folder\n" in message
    assert "data_batch_1.bin" in message


def test_damaged_file_of_a_set_comes_with_the_remedy(tmp_path, write_mnist):
    write_mnist(tmp_path)
    damaged = tmp_path / "train-labels-idx1-ubyte.gz"
    damaged.write_bytes(gzip.compress(gzip.decompress(damaged.read_bytes())[:-4]))
    with pytest.raises(DataError) as raised:
        load(DataSpec(name="mnist", folder=str(tmp_path)))
    message = str(raised.value)
    assert message.startswith(f"{damaged}: 54 bytes, expected 58")
    assert "Get it again: The official files are" in message
    assert not isinstance(raised.value, MissingDataError)


def test_splits_exchanged_between_sets_of_files_are_noticed(tmp_path, write_mnist):
    write_mnist(tmp_path)
    train, test = (tmp_path / f"{split}-labels-idx1-ubyte.gz" for split in ("train", "t10k"))
    test.write_bytes(train.read_bytes())
    with pytest.raises(DataError, match=r"t10k-labels.*: 50 labels, expected 20, .*t10k-images"):
        load(DataSpec(name="mnist", folder=str(tmp_path)))


@pytest.fixture
def cifar10(big_folder, cifar10_records, cifar10_pickle) -> Path:
    """Both versions, each file the same but for the first image, which is black in file i but i."""
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], start=1):
        marked = cifar10_records[0].copy()
        marked[1:] = i
        original = cifar10_records[0, 1:].tobytes()
        for folder, file, content in (
            ("bin", f"{name}.bin", cifar10_records.tobytes()),
            ("py", name, cifar10_pickle),
        ):
            place = big_folder / f"cifar-10-batches-{folder}"
            place.mkdir(exist_ok=True)
            (place / file).write_bytes(content.replace(original, marked[1:].tobytes(), 1))
    return big_folder


def test_cifar10_is_the_same_in_both_versions_in_the_order_of_the_files(cifar10, cifar10_records):
    for place in (cifar10, cifar10 / "cifar-10-batches-py"):
        dataset = load(DataSpec(name="cifar10", folder=str(place)))
        assert dataset.images.shape == (60_000, 32, 32, 3)
        np.testing.assert_array_equal(dataset.images[::10_000, 5, 6, 2], [1, 2, 3, 4, 5, 6])
        np.testing.assert_array_equal(dataset.labels, np.tile(cifar10_records[:, 0], 6))
        image = cifar10_records[7, 1:].reshape(3, 32, 32).transpose(1, 2, 0)
        np.testing.assert_array_equal(dataset.images[50_007], image)
        np.testing.assert_array_equal(dataset.test, np.arange(50_000, 60_000))
        assert (len(dataset.train), len(dataset.validation)) == (40_000, 10_000)
    # With one file of the binary version gone, the other is taken.
    (cifar10 / "cifar-10-batches-bin" / "data_batch_2.bin").unlink()
    assert describe_place(cifar10, "cifar10") == str(cifar10 / "cifar-10-batches-py")


def describe_place(folder: Path, name: str) -> str:
    _, paths = sources._find(name, str(folder))
    return str(paths[0].parent)


# npz


def save(path: Path, dtype=np.float32, n=40, shape=(6,), mean=0.0, deviation=1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    images = (rng.normal(size=(n + 10, *shape)) * deviation + mean).astype(dtype)
    labels = np.arange(n + 10) % 4
    np.savez(
        path,
        train_images=images[:n],
        train_labels=labels[:n],
        test_images=images[n:],
        test_labels=labels[n:],
    )
    return images


def test_npz_features_are_standardized_one_by_one(tmp_path):
    images = save(tmp_path / "own.npz", mean=np.arange(6), deviation=np.array([1, 2, 3, 4, 0, 6]))
    dataset = load(DataSpec(name="npz", folder=str(tmp_path / "own.npz"), batch_size=8))
    assert_sound(dataset)
    assert dataset.image_shape == (1, 1, 6)
    assert dataset.classes == 4
    assert dataset.deviation[4] == 1
    assert dataset.mean[4] == 4
    np.testing.assert_array_equal(dataset.images[:, 0, 0], images)
    np.testing.assert_array_equal(dataset.test, np.arange(40, 50))


def test_an_order_by_class_has_the_class_of_each_example_to_train_on(digits):
    dataset = load(DataSpec(order="by_class"))
    np.testing.assert_array_equal(dataset.groups, dataset.labels[dataset.train])
    np.testing.assert_array_equal(dataset.train, digits.train)
    assert digits.groups is None


def test_an_order_by_class_needs_a_class_of_each_example(tmp_path):
    (tmp_path / "text.txt").write_text("In the beginning " * 200)
    spec = DataSpec(name="text", folder=str(tmp_path), block=16, batch_size=4, order="by_class")
    with pytest.raises(DataError, match="do not have one class each"):
        load(spec, "none")


def test_moments_at_a_large_mean(tmp_path):
    save(tmp_path / "own.npz", n=1000, shape=(5, 5, 2), mean=1e4, deviation=1e-2)
    dataset = load(DataSpec(name="npz", folder=str(tmp_path / "own.npz")))
    assert_sound(dataset)
    assert 0.009 < dataset.deviation[0] < 0.011


def test_constant_channel_has_deviation_one_whatever_its_value(tmp_path):
    # Regression: the mean of many times 0.1 is not 0.1, so that a naive deviation is 1e-17.
    images = np.full((20, 7, 7, 1), 0.1, np.float32)
    labels = np.arange(20) % 2
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    dataset = load(DataSpec(name="npz", folder=str(tmp_path / "own.npz"), batch_size=8))
    assert dataset.deviation == 1
    assert dataset.mean == np.float32(0.1)


def test_missing_npz_names_the_path_and_the_remedy(tmp_path):
    with pytest.raises(MissingDataError, match=r"none\.npz: there is no such file") as raised:
        load(DataSpec(name="npz", folder=str(tmp_path / "none.npz")))
    assert "numpy.savez(FILE, train_images=" in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_unfit_npz_comes_with_the_remedy(tmp_path):
    np.savez(tmp_path / "own.npz", images=np.zeros(3))
    with pytest.raises(DataError, match=r"holds the arrays images; expected .*\n.*numpy\.savez"):
        load(DataSpec(name="npz", folder=str(tmp_path / "own.npz")))


# Listing


def test_describe_says_what_is_where(tmp_path, monkeypatch, write_mnist):
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    listing = {entry.name: entry for entry in describe()}
    published = ["digits", "mnist", "fashion_mnist", "cifar10"]
    own = ["npz", "images", "parquet", "array_record", "hf", "text"]
    assert list(listing) == published + own
    assert listing["mnist"].place == str(tmp_path / "mnist")
    assert (listing["mnist"].examples, listing["mnist"].image_shape) == (70_000, (28, 28, 1))
    assert listing["digits"].place == "part of scikit-learn"
    assert listing["cifar10"].place is None
    assert "cifar.html" in listing["cifar10"].remedy
    assert listing["npz"].place is None
    assert "numpy.savez" in listing["npz"].remedy


def test_listing_needs_neither_jax_nor_scikit_learn():
    code = (
        "import sys, normlab.data; normlab.data.describe();"
        "print([name for name in ('jax', 'flax', 'sklearn', 'scipy') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(sources.__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert ran.stdout.strip() == "[]"


# Registered


@pytest.fixture
def registered():
    """Registers a loader under the name "own", for one test."""

    def register(loader):
        normlab.register_data("own", loader)
        return DataSpec(name="own", batch_size=8)

    yield register
    LOADERS.pop("own", None)


def features(n=40, classes=3):
    labels = np.arange(n) % classes
    return np.random.default_rng(0).normal(size=(n, 4)) + 10 * labels[:, None], labels


def test_a_registered_set_is_that_of_an_npz_file_with_the_same_arrays(registered, tmp_path):
    train, test = features(), features(9)
    np.savez(
        tmp_path / "own.npz",
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
    )
    ours = load(registered(lambda: (*train, *test)))
    theirs = load(DataSpec(name="npz", folder=str(tmp_path / "own.npz"), batch_size=8))
    for field in ("images", "labels", "train", "validation", "test", "mean", "deviation"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    assert (ours.name, ours.classes) == ("own", 3)
    np.testing.assert_array_equal(ours.images[ours.test].reshape(9, 4), np.float32(test[0]))


def test_a_registered_set_is_listed_with_where_it_comes_from(registered):
    registered(features)
    assert describe()[-1].name == "own"
    assert describe()[-1].place == f"registered by {features.__module__}"


def fails():
    raise KeyError("column")


@pytest.mark.parametrize(
    ("loader", "told"),
    [
        (fails, "its loader failed: KeyError: 'column'"),
        (lambda: features(), "its loader returned 2 values; expected train_images, train_labels"),
        (lambda: (*features(), *features(8, 4)), "test_labels: label 3 at example 3"),
        (lambda: (*features(), features(8)[0], np.ones(8)), "labels of type float64"),
        (lambda: (*features(), np.ones((8, 5)), features(8)[1]), r"shape \(1, 1, 5\) of the test"),
        (lambda: (*features(), np.full((8, 4), np.nan), features(8)[1]), "32 values are not fin"),
    ],
)
def test_what_a_loader_returns_wrongly_is_told_as_its_own(registered, loader, told):
    with pytest.raises(DataError, match=told) as raised:
        load(registered(loader))
    assert "register_data('own')" in str(raised.value)


def test_registration_refuses_names_that_are_taken_and_what_needs_arguments(registered):
    registered(features)
    registered(features)
    with pytest.raises(ValueError, match=r"'own' is taken by .*features; choose another"):
        registered(fails)
    with pytest.raises(ValueError, match="'mnist' is normlab's own; choose another"):
        normlab.register_data("mnist", features)
    with pytest.raises(ValueError, match="can be called without"):
        normlab.register_data("other", lambda folder: None)
