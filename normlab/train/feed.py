"""What comes next: a data set that lies on the device, cut into batches where it lies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from ..data import Dataset
from ..data.augment import Augmentation, augment
from ..data.batches import padded_batches, shuffled_batches, standardize
from .mesh import put
from .step import Batch


class DeviceData(NamedTuple):
    """A data set on the device, in the units of its files.

    Attributes:
        images: All examples: uint8 or float32, (N, H, W, C); or int32, (N, ...).
        labels: What is said of each, (N, ...); None where the targets are in the images.
        train: Indices of the examples to train on.
        mean: Mean over these, as `Dataset.mean`; None for images that stay as they are.
        deviation: Standard deviation likewise.
    """

    images: Array
    labels: Array | None
    train: Array
    mean: Array | None
    deviation: Array | None


class Split(NamedTuple):
    """Examples to evaluate on, cut into batches.

    Attributes:
        batches: Indices, (batches, batch_size).
        mask: True where an index counts, of the same shape.
        filled: How many of the batches to go through; the rest is padding.
    """

    batches: Array
    mask: Array
    filled: Array


class Placed(NamedTuple):
    """All that programs read of a data set; shared by the feeds of a study."""

    data: DeviceData
    validation: Split
    test: Split
    outputs: int


def place(dataset: Dataset, batch_size: int, mesh: Mesh | None = None) -> Placed:
    """Puts a data set on the device, or the whole of it on each device of a mesh.

    Args:
        dataset: Images, labels and splits.
        batch_size: Examples in a batch of an evaluation.
        mesh: The devices; None for one.
    """
    splits = [padded_batches(split, batch_size) for split in (dataset.validation, dataset.test)]
    # Of one shape, so that one program evaluates both.
    most = max(len(batches) for batches, _ in splits)

    def padded(array: np.ndarray) -> np.ndarray:
        return np.pad(array, ((0, most - len(array)), (0, 0)))

    # With NumPy, as JAX would compile a program for each operation.
    validation, test = (
        (padded(batches), padded(mask), np.int32(len(batches))) for batches, mask in splits
    )
    data = [getattr(dataset, name) for name in DeviceData._fields]
    data, validation, test = put((data, validation, test), mesh)
    return Placed(DeviceData(*data), Split(*validation), Split(*test), dataset.classes)


class Resident:
    """A data set on the device, shuffled, cut into batches and standardized by the programs.

    What is called traced is called inside of programs.

    Args:
        placed: The data set.
        batch_size: Examples in a step.
        augmentation: How training images are changed at random.
        precision: Dtype of what the network gets.
    """

    def __init__(
        self,
        placed: Placed,
        batch_size: int,
        augmentation: Augmentation = "none",
        precision: str = "float32",
    ):
        images = placed.data.images
        has_pixels = images.dtype != jnp.int32 and images.shape[1:3] != (1, 1)
        if augmentation != "none" and not has_pixels:
            raise ValueError(
                f"train.augment={augmentation} moves pixels, but the data set has "
                f"{'integers' if images.dtype == jnp.int32 else 'features'} and no images; leave "
                "it out."
            )
        self.outputs = placed.outputs
        self.steps_per_epoch = len(placed.data.train) // batch_size
        self._placed = placed
        self.batch_size = batch_size
        self._augmentation: Augmentation = augmentation
        self._precision = precision

    @property
    def shared(self) -> DeviceData:
        """What all programs read and none changes."""
        return self._placed.data

    def split(self, name: str) -> Split:
        """Returns the batches of "validation" or "test"."""
        return getattr(self._placed, name)

    def example(self) -> Batch:
        """One example of zeros, to initialize with; traced."""
        data = self.shared
        dtype = jnp.int32 if data.images.dtype == jnp.int32 else jnp.float32
        labels = data.labels
        if labels is not None:
            labels = jnp.zeros((1, *labels.shape[1:]), labels.dtype)
        return jnp.zeros((1, *data.images.shape[1:]), dtype), labels

    def epoch(self, data: DeviceData, key: PRNGKeyArray) -> Callable[[Any, PRNGKeyArray], Batch]:
        """Orders the examples of an epoch; traced.

        Args:
            data: `shared`, as an argument of the program.
            key: Decides the order.

        Returns:
            Number of the step in its epoch, key of its augmentation -> the batch.
        """
        batches = shuffled_batches(key, data.train, self.batch_size)

        def batch(step: Any, key: PRNGKeyArray) -> Batch:
            indices = batches[step]
            images = augment(key, data.images[indices], self._augmentation)
            return self._standardized(data, images), _labels(data, indices)

        return batch

    def evaluated(self, data: DeviceData, split: Split, index: Any) -> tuple[Batch, Array]:
        """Returns a batch to evaluate on, and which of its examples count; traced."""
        indices = split.batches[index]
        images = self._standardized(data, data.images[indices])
        return (images, _labels(data, indices)), split.mask[index]

    def _standardized(self, data: DeviceData, images: Array) -> Array:
        return standardize(images, data.mean, data.deviation, self._precision)


def _labels(data: DeviceData, indices: Array) -> Array | None:
    return None if data.labels is None else data.labels[indices]
