"""What comes next of a data set that stays where it is: read ahead while the device works."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from ..data import Dataset
from ..data.augment import Augmentation
from ..data.batches import padded_batches, shuffled_batches
from .feed import Feed, Part
from .mesh import put, split, whole
from .state import TrainState
from .step import Batch

# A program is handed as many batches at a time as these bytes hold, or one: few enough to keep
# several in memory, and many enough that calls of the program cost nothing.
PART_BYTES = 2**22
# Parts that are read at a time, and that lie ready.
AHEAD = min(16, os.cpu_count() or 1)


class Moments(NamedTuple):
    """What standardizes images; None for images that stay as they are.

    Attributes:
        mean: As `Dataset.mean`.
        deviation: As `Dataset.deviation`.
    """

    mean: Array | None
    deviation: Array | None


class Batches(NamedTuple):
    """Batches of one epoch or split, which a program is handed.

    Attributes:
        images: Examples, (batches, batch_size, ...); of several runs (runs, batches, ...).
        labels: What is said of each; None where the targets are in the images.
        mask: To evaluate on, which of the examples count; else None.
    """

    images: Any
    labels: Any
    mask: Any


class Streamed(Feed):
    """A data set that stays where it is, and of which the batches that come next are read ahead.

    The order is that of `Resident`: drawn from the key of a state, so that any state says what
    comes next, and a run that goes on gets the very example that it would have had. Each process
    reads the examples of its own devices alone.

    Args:
        dataset: Images, labels and splits.
        batch_size: Examples in a step.
        augmentation: How training images are changed at random.
        precision: Dtype of what the network gets.
        mesh: The devices that batches are spread over; None for one.
    """

    spread = True

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        augmentation: Augmentation = Augmentation(),  # noqa: B008
        precision: str = "float32",
        mesh: Mesh | None = None,
    ):
        super().__init__(
            dataset.images,
            dataset.labels,
            len(dataset.train),
            dataset.classes,
            batch_size,
            augmentation,
            precision,
        )
        self._dataset = dataset
        self._mesh = mesh
        self._moments = Moments(*put((dataset.mean, dataset.deviation), whole(mesh)))
        # On a device of this process, as each draws the order by itself.
        self._train, self._groups = jax.device_put((dataset.train, dataset.groups))
        self._orders = jax.jit(jax.vmap(self._ordered, (0, None, None)))
        self._rows = _rows_of_this_process(batch_size, mesh)
        size = int(np.prod(dataset.images.shape[1:])) * dataset.images.dtype.itemsize
        self._batches = min(max(1, PART_BYTES // (size * batch_size)), self.steps_per_epoch)
        # All batches of a part are of one epoch; the last of an epoch may have fewer.
        self._parts_per_epoch = -(-self.steps_per_epoch // self._batches)

    @property
    def shared(self) -> Moments:
        """What standardizes images."""
        return self._moments

    def coming(self, state: TrainState, last: int, width: int) -> Callable[[int], Iterable[Part]]:
        """Begins to read what comes next, from some state on."""
        # Fetched, since the steps that follow use the state up.
        keys = np.asarray(jax.random.key_data(state.key))
        step = int(np.asarray(state.step).flat[0])
        order = _Order(
            lambda keys: self._orders(jax.random.wrap_key_data(keys), self._train, self._groups),
            keys.reshape(width, -1),
            step // self.steps_per_epoch,
            1 + AHEAD // self._parts_per_epoch,
        )
        (first, _), (final, _) = self._part_of(step), self._part_of(last - 1)
        parts = _read_ahead(lambda number: self._to_train(order, number, last), first, final + 1)
        there: tuple[int, Any] = -1, None

        def take(steps: int) -> Iterator[Part]:
            nonlocal step, there
            end = step + steps
            while step < end:
                number, place = self._part_of(step)
                if there[0] != number:
                    there = number, self._put(next(parts), 1 if width == 1 else 2)
                count = min(end - step, self._batches - place)
                step += count
                yield there[1], count

        return take

    def evaluation(self, split: str) -> Iterable[Part]:
        """Reads a split."""
        indices, mask = padded_batches(getattr(self._dataset, split), self.batch_size)

        def read(number: int) -> Batches:
            here = slice(number * self._batches, (number + 1) * self._batches)
            return self._read(indices[here][:, self._rows], mask[here][:, self._rows])

        parts = _read_ahead(read, 0, -(-len(indices) // self._batches))
        for number, part in enumerate(parts):
            count = min(len(indices) - number * self._batches, self._batches)
            yield self._put(part, 1), count

    def abstract_parts(self, width: int) -> tuple[Any, Any]:
        """Returns shapes and dtypes."""
        several = (self._batches, self.batch_size)

        def like(before: tuple[int, ...]) -> list[Any]:
            return [
                it and jax.ShapeDtypeStruct((*before, *it[0]), it[1])
                for it in (self._images, self._labels)
            ]

        counted = jax.ShapeDtypeStruct(several, np.bool_)
        trained = like(several if width == 1 else (width, *several))
        return Batches(*trained, mask=None), Batches(*like(several), mask=counted)

    def epoch(
        self, shared: Moments, part: Batches, key: PRNGKeyArray
    ) -> Callable[[Any, PRNGKeyArray], Batch]:
        """Returns the batches of a part, which are in their order; traced."""

        def batch(step: Any, key: PRNGKeyArray) -> Batch:
            place = step % self.steps_per_epoch % self._batches
            images, labels, _ = jax.tree.map(lambda leaf: leaf[place], part)
            return self._trained(shared, key, images, labels)

        return batch

    def evaluated(self, shared: Moments, part: Batches, index: Any) -> tuple[Batch, Array]:
        """Returns a batch to evaluate on, and which of its examples count; traced."""
        images, labels, mask = jax.tree.map(lambda leaf: leaf[index], part)
        return (self._standardized(shared, images), labels), mask

    def _ordered(
        self, key: PRNGKeyArray, train: Array, groups: Array | None
    ) -> tuple[Array, Array]:
        """Returns the batches of the epoch that has a key, and the key of the next; traced."""
        order_key, next_key = jax.random.split(key)
        batches = shuffled_batches(order_key, train, self.batch_size, groups)
        return batches, jax.random.key_data(next_key)

    def _part_of(self, step: int) -> tuple[int, int]:
        """Returns the number of the part that has a step, and the step's place in it."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return epoch * self._parts_per_epoch + place // self._batches, place % self._batches

    def _to_train(self, order: "_Order", number: int, last: int) -> Batches:
        epoch, part = divmod(number, self._parts_per_epoch)
        here = slice(part * self._batches, (part + 1) * self._batches)
        # A run may end within an epoch.
        left = last - epoch * self.steps_per_epoch
        indices = order(epoch)[:, :left][:, here, self._rows]
        return self._read(indices[0] if len(indices) == 1 else indices)

    def _read(self, indices: np.ndarray, mask: np.ndarray | None = None) -> Batches:
        """Reads the examples of batches, ([runs,] batches, rows); a part has zeros after them."""
        missing = self._batches - indices.shape[-2]

        def filled(column: np.ndarray) -> np.ndarray:
            after = [(0, 0)] * column.ndim
            after[indices.ndim - 2] = 0, missing
            return np.pad(column, after) if missing else column

        def read(column: Any) -> np.ndarray | None:
            if column is None:
                return None
            taken = column[indices.reshape(-1)]
            return filled(taken.reshape(*indices.shape, *taken.shape[1:]))

        columns = map(read, (self._dataset.images, self._dataset.labels))
        return Batches(*columns, mask=None if mask is None else filled(mask))

    def _put(self, part: Batches, axis: int) -> Batches:
        """Puts a part on the device, or on those of this process along the axis of examples."""
        sharding = split(self._mesh, axis, self.batch_size)
        if sharding is None:
            return jax.device_put(part)

        def placed(leaf: np.ndarray) -> Array:
            shape = (*leaf.shape[:axis], self.batch_size, *leaf.shape[axis + 1 :])
            return jax.make_array_from_process_local_data(sharding, leaf, shape)

        return jax.tree.map(placed, part)


class _Order:
    """Which examples the batches of each epoch have; several threads ask.

    Args:
        drawn: Keys of an epoch, one a run -> its batches, (runs, batches, batch_size), and the
            keys of the next.
        keys: Of the first epoch.
        epoch: That.
        kept: How many epochs are kept behind the latest that was asked for.
    """

    def __init__(
        self, drawn: Callable[[Any], tuple[Any, Any]], keys: np.ndarray, epoch: int, kept: int
    ):
        self._drawn = drawn
        self._next = epoch, keys
        self._kept = kept
        self._known: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, epoch: int) -> np.ndarray:
        """Returns the batches of an epoch of each run, (runs, batches, batch_size)."""
        with self._lock:
            while epoch not in self._known:
                drawn, keys = self._next
                batches, keys = self._drawn(keys)
                self._known[drawn] = np.asarray(batches)
                self._known.pop(drawn - self._kept - 1, None)
                self._next = drawn + 1, np.asarray(keys)
            return self._known[epoch]


def _read_ahead(read: Callable[[int], Batches], first: int, end: int) -> Iterator[Batches]:
    """Reads the parts of some numbers in their order, several at a time in threads."""
    # It takes half a second to import, which is not for those who stream nothing.
    import grain

    options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
    return iter(grain.MapDataset.range(first, end).map(read).to_iter_dataset(options))


def _rows_of_this_process(batch_size: int, mesh: Mesh | None) -> np.ndarray:
    """Returns which examples of each batch lie on devices of this process, in their order."""
    rows = np.arange(batch_size)
    sharding = split(mesh, 0, batch_size)
    if sharding is None:
        return rows
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    own = {index[0].indices(batch_size) for index in places if index is not None}
    return np.concatenate([rows[slice(*it)] for it in sorted(own)])
