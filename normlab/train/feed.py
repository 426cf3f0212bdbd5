"""What comes next: a data set that lies on the device, cut into batches where it lies."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from ..data import Dataset
from ..data.augment import Augmentation, cut_out, mixed_up, moved
from ..data.batches import padded_batches, shuffled_batches, standardize
from .mesh import put, whole
from .state import TrainState
from .step import Batch

# What one call of a program is handed beside the state, and how many batches of it to go through.
Part = tuple[Any, int]


class Feed(ABC):
    """What comes next in training and evaluation, and in which parts programs are handed it.

    What is called traced is called inside of programs.

    Args:
        images: All examples, or anything of their dtype and shape.
        labels: What is said of each, likewise; None where the targets are in the images.
        examples: How many there are to train on.
        outputs: How many numbers a model gives for each place.
        batch_size: Examples in a step.
        augmentation: How training images are changed at random.
        precision: Dtype of what the network gets.
    """

    spread = False
    """Whether parts hold examples, which lie spread over a mesh as batches do."""

    def __init__(
        self,
        images: Any,
        labels: Any,
        examples: int,
        outputs: int,
        batch_size: int,
        augmentation: Augmentation,
        precision: str,
    ):
        self._augmentation = augmentation
        self._refuse_what_cannot_be_changed(images)
        # Shape and dtype of one.
        self._images = images.shape[1:], images.dtype
        self._labels = None if labels is None else (labels.shape[1:], labels.dtype)
        self.outputs = outputs
        self.steps_per_epoch = examples // batch_size
        self.batch_size = batch_size
        self._precision = precision

    def example(self) -> Batch:
        """One example of zeros, to initialize with; traced."""
        shape, dtype = self._images
        labels = None
        if self._labels is not None:
            labels = jnp.zeros((1, *self._labels[0]), self._labels[1])
        return jnp.zeros((1, *shape), jnp.int32 if dtype == jnp.int32 else jnp.float32), labels

    @property
    @abstractmethod
    def shared(self) -> Any:
        """What all programs read and none changes."""

    @abstractmethod
    def coming(self, state: TrainState, last: int, width: int) -> Callable[[int], Iterable[Part]]:
        """Begins to bring what is trained on from some state on.

        Args:
            state: Of `width` runs, which stand at the same step.
            last: The step that they end with.
            width: Runs that are trained at a time.

        Returns:
            How many steps, all of one epoch -> the parts of them, in their order.
        """

    @abstractmethod
    def evaluation(self, split: str) -> Iterable[Part]:
        """Returns the parts of "validation" or "test"."""

    @abstractmethod
    def abstract_parts(self, width: int) -> tuple[Any, Any]:
        """Returns what parts to train on and to evaluate on are like."""

    @abstractmethod
    def epoch(
        self, shared: Any, part: Any, key: PRNGKeyArray
    ) -> Callable[[Any, PRNGKeyArray], Batch]:
        """Returns the batches of a part; traced.

        Args:
            shared: `shared`, as an argument of the program.
            part: A part to train on.
            key: Decides the order of the epoch.

        Returns:
            Number of the step, key of its augmentation -> the batch.
        """

    @abstractmethod
    def evaluated(self, shared: Any, part: Any, index: Any) -> tuple[Batch, Array]:
        """Returns a batch to evaluate on, and which of its examples count; traced."""

    def _trained(self, shared: Any, key: PRNGKeyArray, images: Array, labels: Any) -> Batch:
        moves, cutout, mixup = self._augmentation
        images = self._standardized(shared, moved(key, images, moves))
        if cutout is not None:
            images = cut_out(key, images, cutout)
        if mixup is not None:
            images, labels = mixed_up(key, images, labels, mixup, self.outputs)
        return images, labels

    def _standardized(self, shared: Any, images: Array) -> Array:
        return standardize(images, shared.mean, shared.deviation, self._precision)

    def _refuse_what_cannot_be_changed(self, images: Any) -> None:
        moves, cutout, mixup = self._augmentation
        integers = images.dtype == jnp.int32
        kind = "integers" if integers else "features"
        if (integers or images.shape[1:3] == (1, 1)) and (moves != "none" or cutout is not None):
            name = f"augment={moves} moves" if moves != "none" else f"cutout={cutout} cuts out"
            raise ValueError(
                f"train.{name} pixels, but the data set has {kind} and no images; leave it out."
            )
        if integers and mixup is not None:
            raise ValueError(
                f"train.mixup={mixup:g} takes means of examples, but the data set has integers; "
                "leave it out."
            )
        if cutout is not None and cutout > (most := min(images.shape[1:3])):
            raise ValueError(
                f"train.cutout={cutout} is the side of a square, but the images have "
                f"{' x '.join(map(str, images.shape[1:3]))} pixels; expected at most {most}."
            )


class DeviceData(NamedTuple):
    """A data set on the device, in the units of its files.

    Attributes:
        images: All examples: uint8 or float32, (N, H, W, C); or int32, (N, ...).
        labels: What is said of each, (N, ...); None where the targets are in the images.
        train: Indices of the examples to train on.
        mean: Mean over these, as `Dataset.mean`; None for images that stay as they are.
        deviation: Standard deviation likewise.
        groups: Of each example to train on, as `Dataset.groups`.
    """

    images: Array
    labels: Array | None
    train: Array
    mean: Array | None
    deviation: Array | None
    groups: Array | None


class Split(NamedTuple):
    """Examples to evaluate on, cut into batches.

    Attributes:
        batches: Indices, (batches, batch_size).
        mask: True where an index counts, of the same shape.
    """

    batches: Array
    mask: Array


class Placed(NamedTuple):
    """All that programs read of a data set; shared by the feeds of a study.

    Attributes:
        data: The examples.
        validation: Batches to tune on, and how many there are; what follows is padding.
        test: Batches to report on, likewise.
        outputs: How many numbers a model gives for each place.
    """

    data: DeviceData
    validation: tuple[Split, int]
    test: tuple[Split, int]
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
    data = [getattr(dataset, name) for name in DeviceData._fields]
    cut = (tuple(map(padded, split)) for split in splits)
    data, *placed = put((data, *cut), whole(mesh))
    validation, test = (
        (Split(*split), len(batches)) for split, (batches, _) in zip(placed, splits, strict=True)
    )
    return Placed(DeviceData(*data), validation, test, dataset.classes)


class Resident(Feed):
    """A data set on the device, shuffled, cut into batches and standardized by the programs.

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
        augmentation: Augmentation = Augmentation(),  # noqa: B008
        precision: str = "float32",
    ):
        data = placed.data
        super().__init__(
            data.images,
            data.labels,
            len(data.train),
            placed.outputs,
            batch_size,
            augmentation,
            precision,
        )
        self._placed = placed

    @property
    def shared(self) -> DeviceData:
        """The data set."""
        return self._placed.data

    def coming(self, state: TrainState, last: int, width: int) -> Callable[[int], Iterable[Part]]:
        """Returns what says that programs find all where it lies."""
        return lambda steps: [(None, steps)]

    def evaluation(self, split: str) -> Iterable[Part]:
        """Returns all batches of a split."""
        return [getattr(self._placed, split)]

    def abstract_parts(self, width: int) -> tuple[Any, Any]:
        """Returns nothing to train on, and the batches of a split."""
        return None, self._placed.test[0]

    def epoch(
        self, shared: DeviceData, part: Any, key: PRNGKeyArray
    ) -> Callable[[Any, PRNGKeyArray], Batch]:
        """Orders the examples of an epoch; traced."""
        batches = shuffled_batches(key, shared.train, self.batch_size, shared.groups)

        def batch(step: Any, key: PRNGKeyArray) -> Batch:
            indices = batches[step % self.steps_per_epoch]
            return self._trained(shared, key, shared.images[indices], _labels(shared, indices))

        return batch

    def evaluated(self, shared: DeviceData, part: Split, index: Any) -> tuple[Batch, Array]:
        """Returns a batch to evaluate on, and which of its examples count; traced."""
        indices = part.batches[index]
        images = self._standardized(shared, shared.images[indices])
        return (images, _labels(shared, indices)), part.mask[index]


def _labels(data: DeviceData, indices: Array) -> Array | None:
    return None if data.labels is None else data.labels[indices]
