"""The published sets themselves, from the folder that NORMLAB_DATA names."""

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from normlab.data import Dataset, DataSpec, load


@dataclass(frozen=True)
class Facts:
    """What is published of a set, and the validation split that normlab keeps for ever."""

    first_labels: list[int]
    class_counts: list[int]
    mean: list[float]
    deviation: list[float]
    files: list[str]
    validation: str


FACTS = {
    "mnist": Facts(
        first_labels=[5, 0, 4, 1, 9, 2, 1, 3],
        class_counts=[5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        mean=[0.1307],
        deviation=[0.3081],
        files=[
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ],
        validation="5f84fde986eeca1e5b69589a7ed1a942",
    ),
    "fashion_mnist": Facts(
        first_labels=[9, 0, 0, 3, 0, 2, 7, 2],
        class_counts=[6000] * 10,
        mean=[0.2860],
        deviation=[0.3530],
        files=[
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ],
        validation="b1d1774574afc43e31016e3f1214c2fe",
    ),
    "cifar10": Facts(
        first_labels=[6, 9, 9, 4, 1, 1, 2, 7],
        class_counts=[5000] * 10,
        mean=[0.4914, 0.4822, 0.4465],
        deviation=[0.2470, 0.2435, 0.2616],
        files=[
            "5dd7e06a14cb22eb9f671a540d1b7c25",
            "5ea93a67294ea407fff1d09f752e9692",
            "942cd6a4bcdd0dd3c604fbe906cb4421",
            "ae636b3ba5c66a11e91e8cb52e771fcb",
            "53f37980c15c3d472c316c40844f3f0d",
            "803d5f7f4d78ea53de84dbe85f74fb6d",
        ],
        validation="fe2566746a305817d145fd074f821ed1",
    ),
}


@pytest.fixture(scope="module", params=FACTS)
def dataset(request) -> Dataset:
    root = os.environ.get("NORMLAB_DATA")
    if not root:
        pytest.skip("NORMLAB_DATA names no folder of data sets")
    if not (Path(root) / request.param).is_dir():
        pytest.skip(f"the folder that NORMLAB_DATA names has no {request.param}")
    return load(DataSpec(name=request.param))


def official_files(dataset: Dataset) -> list[bytes]:
    """Puts the arrays back into the official format, uncompressed."""
    images, labels = dataset.images, dataset.labels.astype(np.uint8)
    if dataset.name == "cifar10":
        planes = images.transpose(0, 3, 1, 2).reshape(6, 10_000, -1)
        parts = zip(labels.reshape(6, 10_000, 1), planes, strict=True)
        return [np.concatenate(part, axis=1).tobytes() for part in parts]
    files = []
    for split in (slice(0, 60_000), slice(60_000, None)):
        n = len(labels[split])
        files.append(struct.pack(">IIII", 0x803, n, 28, 28) + images[split].tobytes())
        files.append(struct.pack(">II", 0x801, n) + labels[split].tobytes())
    return files


@pytest.mark.datasets
def test_nothing_is_lost_or_changed_in_reading(dataset):
    found = [hashlib.md5(content).hexdigest() for content in official_files(dataset)]
    assert found == FACTS[dataset.name].files


@pytest.mark.datasets
def test_published_facts_hold(dataset):
    facts = FACTS[dataset.name]
    split = len(dataset.labels) - 10_000
    np.testing.assert_array_equal(dataset.labels[:8], facts.first_labels)
    np.testing.assert_array_equal(np.bincount(dataset.labels[:split]), facts.class_counts)
    np.testing.assert_array_equal(dataset.test, np.arange(split, split + 10_000))
    pixels = dataset.images[:split]
    mean = pixels.mean((0, 1, 2)) / 255
    squares = np.square(pixels, dtype=np.uint16).mean((0, 1, 2), dtype=np.float64) / 255**2
    np.testing.assert_allclose(mean, facts.mean, atol=6e-5)
    np.testing.assert_allclose(np.sqrt(squares - mean**2), facts.deviation, atol=6e-5)
    # The constants that a run uses come from the examples to train on, four fifths of these.
    np.testing.assert_allclose(dataset.mean / 255, facts.mean, rtol=0.01)
    np.testing.assert_allclose(dataset.deviation / 255, facts.deviation, rtol=0.01)


@pytest.mark.datasets
def test_validation_split_is_stratified_and_never_changes(dataset):
    facts = FACTS[dataset.name]
    split = len(dataset.labels) - 10_000
    assert len(dataset.validation) == split // 5
    found = np.bincount(dataset.labels[dataset.validation])
    assert np.abs(found - np.array(facts.class_counts) / 5).max() <= 1
    training_split = np.sort(np.concatenate([dataset.train, dataset.validation]))
    np.testing.assert_array_equal(training_split, np.arange(split))
    content = dataset.validation.astype("<i4").tobytes()
    assert hashlib.md5(content).hexdigest() == facts.validation
