"""The loop: one compiled call an epoch, whatever the learning rate and the seed."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array
from pydantic import Field, PositiveFloat

from ..data import Dataset
from ..data.augment import Augmentation, augment
from ..data.batches import padded_batches, shuffled_batches, standardize
from ..spec import Count, Spec
from .optim import AdamSpec, SGDSpec, optimizer, weights_only
from .state import TrainState
from .step import Metrics, checked_logits, measure, no_metrics, train_step


class TrainSpec(Spec):
    """How long and how to train.

    Attributes:
        epochs: Passes over the training examples.
        validate_every: Epochs between two evaluations on the validation split; one comes after the
            last epoch in any case. The times to a target are known no finer.
        label_smoothing: Share of each label that is spread over all classes.
        precision: Dtype of the computation; parameters, statistics and loss are float32.
        initialization_scale: What the initial weights of dense layers and convolutions are
            multiplied by.
        augment: How training images are changed at random: `"none"`; `"flip"` for mirror images of
            half of them; `"crop_flip"` for a crop of each as well, moved by up to 4 pixels each
            way, with zeros, in the units of the files, coming in.
    """

    epochs: Count = 10
    validate_every: Count = 1
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    initialization_scale: PositiveFloat = 1.0
    augment: Augmentation = "none"


@dataclass(frozen=True)
class EpochMetrics:
    """Means over examples at the end of an epoch; training metrics are of the steps as they ran.

    Those on the validation split are None after an epoch without an evaluation.
    """

    train_loss: float
    train_accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        epochs: Metrics of each epoch done.
        diverged: Whether it was stopped because a loss was no longer finite.
        test_loss: Mean over the test split; None if it diverged or was not asked for.
        test_accuracy: Likewise.
        seconds: Wall time, compilation excluded; of several runs at a time, each takes longer.
        state: The state at the end; of a run that diverged, or among several, None.
    """

    epochs: list[EpochMetrics]
    diverged: bool
    test_loss: float | None
    test_accuracy: float | None
    seconds: float
    state: TrainState | None


class DeviceData(NamedTuple):
    """A data set on the device, in the units of its files.

    Attributes:
        images: All examples: uint8 or float32, (N, H, W, C); or int32, (N, ...).
        labels: Their classes, (N,).
        train: Indices of the examples to train on.
        mean: Mean over these, as `Dataset.mean`; None for images that stay as they are.
        deviation: Standard deviation likewise.
    """

    images: Array
    labels: Array
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
    """All that the programs read of a data set; shared by the trainers of a study."""

    data: DeviceData
    validation: Split
    test: Split
    classes: int


def place(dataset: Dataset, batch_size: int) -> Placed:
    """Puts a data set on the device.

    Args:
        dataset: Images, labels and splits.
        batch_size: Examples in a batch of an evaluation.
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
    data, validation, test = jax.device_put((data, validation, test))
    return Placed(DeviceData(*data), Split(*validation), Split(*test), dataset.classes)


class Trainer:
    """The compiled programs of one model on one data set, for all seeds and learning rates.

    A program trains one run, or several at a time (`width`): their arrays are stacked, and the
    call of an epoch is one for all. Another width may round differently.

    There are three programs: initialization, an epoch of training, and evaluation. They are traced
    when the trainer is built, so that a model that does not fit its input is found out at once, and
    compiled by `compile`, or by the first run. An epoch is shuffled, cut into batches and
    standardized inside its one call.

    Args:
        model: A Flax model that takes images and `train`.
        placed: The data set, on the device.
        optimizer_spec: The optimizer. Numbers of it that may differ between runs are given to
            `run`.
        train_spec: How long and how to train.
        batch_size: Examples in a step.
        width: Runs that the programs train at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        placed: Placed,
        optimizer_spec: SGDSpec | AdamSpec,
        train_spec: TrainSpec,
        batch_size: int,
        width: int = 1,
    ):
        self.model = model
        self.width = width
        self.steps_per_epoch = len(placed.data.train) // batch_size
        self._placed = placed
        self._optimizer_spec = optimizer_spec
        self._train_spec = train_spec
        self._batch_size = batch_size

        images = placed.data.images
        has_pixels = images.dtype != jnp.int32 and images.shape[1:3] != (1, 1)
        if train_spec.augment != "none" and not has_pixels:
            raise ValueError(
                f"train.augment={train_spec.augment} moves pixels, but the data set has "
                f"{'integers' if images.dtype == jnp.int32 else 'features'} and no images; leave "
                "it out."
            )
        functions = (self._initialize, self._epoch, self._evaluate)
        seed, traced = self._inputs(0, {})
        if width > 1:
            seed, traced = _stacked([(seed, traced)] * width)
            functions = map(_together, functions)
        initialization, one_epoch, evaluation = functions
        self._norms: set[str] = set()
        with nn.intercept_methods(self._note_norm):
            initialize = jax.jit(initialization).lower(seed, traced)
        state = initialize.out_info
        epoch = jax.jit(one_epoch, donate_argnums=0).lower(state, traced, placed.data)
        variables = (state.params, state.batch_stats)
        evaluate = jax.jit(evaluation).lower(*variables, placed.data, placed.test)
        self._lowered = (initialize, epoch, evaluate)
        self._compiling = threading.Lock()
        self._compiled: tuple[Any, Any, Any] | None = None

    def compile(self) -> tuple[Any, Any, Any]:
        """Compiles the programs for initialization, an epoch and evaluation, once."""
        with self._compiling:
            if self._compiled is None:
                initialize, epoch, evaluate = self._lowered
                # Initialization runs once a run, for milliseconds. Optimized, it would take longer
                # to compile than the epoch.
                quick: Any = {"xla_backend_optimization_level": 0}
                programs = initialize.compile(compiler_options=quick), epoch.compile()
                self._compiled = *programs, evaluate.compile()
            return self._compiled

    def memory_of_a_run(self) -> int:
        """Returns the bytes that an epoch of one run takes beside the data set, by its program."""
        _, epoch, _ = self.compile()
        analysis = epoch.memory_analysis()
        shared = sum(array.nbytes for array in jax.tree.leaves(self._placed.data))
        # The state is an argument that the result takes the place of.
        taken = analysis.argument_size_in_bytes - shared + analysis.temp_size_in_bytes
        return max(1, taken // self.width)

    def initialize(self, seed: int, values: dict[str, float] | None = None) -> TrainState:
        """Returns the state that a run starts from, where one run is trained at a time.

        Args:
            seed: Decides the initial weights and the order of examples.
            values: Numbers of the optimizer that differ from those it was built with.
        """
        compiled_initialize, *_ = self.compile()
        return compiled_initialize(*self._inputs(seed, values or {}))

    def initial_weights(self, seed: int) -> dict[str, list[float]]:
        """Tells the weights that a seed starts from, outside of the norm layers.

        Args:
            seed: Decides them.

        Returns:
            Path -> root mean square, first value, last value and shape, of each parameter whose
            values are not all the same.
        """
        compiled_initialize, *_ = self.compile()
        inputs = [self._inputs(seed, {})] * self.width
        of_one = _stacked(inputs) if self.width > 1 else inputs[0]
        leaves = jax.tree_util.tree_leaves_with_path(compiled_initialize(*of_one).params)
        told = {}
        for path, leaf in leaves:
            name = "/".join(str(getattr(it, "key", getattr(it, "name", it))) for it in path)
            values = np.asarray(leaf[0] if self.width > 1 else leaf)
            own = any(f"{name}/".startswith(f"{norm}/") for norm in self._norms)
            if not own and values.size and (values != values.flat[0]).any():
                size = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
                ends = float(values.flat[0]), float(values.flat[-1])
                told[name] = [size, *ends, *map(float, values.shape)]
        return told

    def _note_norm(self, call, arguments, named, context) -> Any:
        """Takes note of where in the model its norm layers are."""
        norm = getattr(self.model, "norm", None)
        norm = getattr(norm, "func", norm)
        # A layer that is called by itself, as inside of an NNX module, has no place in the model.
        if isinstance(norm, type) and isinstance(context.module, norm) and context.module.path:
            self._norms.add("/".join(context.module.path))
        return call(*arguments, **named)

    def run(
        self,
        seed: int,
        values: dict[str, float] | None = None,
        *,
        test: bool = False,
        after_epoch: Callable[[int, EpochMetrics], None] | None = None,
    ) -> Outcome:
        """Trains once, from initialization to the last epoch or to divergence.

        Args:
            seed: Decides the initial weights and the order of examples; the same seed gives every
                variant the same of both.
            values: Numbers of the optimizer that differ from those it was built with.
            test: Whether to evaluate on the test split at the end.
            after_epoch: Called with the number of epochs done and the metrics of the last one.
        """

        def after(_: int, epoch: int, metrics: EpochMetrics) -> None:
            if after_epoch is not None:
                after_epoch(epoch, metrics)

        (outcome,) = self.run_together([seed], [values or {}], test=test, after_epoch=after)
        return outcome

    def run_together(
        self,
        seeds: Sequence[int],
        values: Sequence[dict[str, float]],
        *,
        test: bool = False,
        after_epoch: Callable[[int, int, EpochMetrics], None] | None = None,
    ) -> list[Outcome]:
        """Trains up to `width` runs at a time, each as `run` would but for rounding.

        A run that diverges has no further epochs, and the others go on. Where there are fewer runs
        than `width`, the last one is trained several times and counted once.

        Args:
            seeds: Of each run.
            values: Likewise.
            test: Whether to evaluate on the test split at the end.
            after_epoch: Called with the place of a run among these, its number of epochs done and
                the metrics of the last one.
        """
        compiled_initialize, compiled_epoch, _ = self.compile()
        start = time.perf_counter()
        count = len(seeds)
        inputs = [self._inputs(*of_run) for of_run in zip(seeds, values, strict=True)]
        inputs += [inputs[-1]] * (self.width - count)
        seed, traced = _stacked(inputs) if self.width > 1 else inputs[0]
        epochs: list[list[EpochMetrics]] = [[] for _ in range(count)]
        left = list(range(count))
        state, train_sums = compiled_epoch(
            compiled_initialize(seed, traced), traced, self._placed.data
        )
        for epoch in range(1, self._train_spec.epochs + 1):
            sums = [train_sums]
            if epoch % self._train_spec.validate_every == 0 or epoch == self._train_spec.epochs:
                sums.append(self._sums_on(state, self._placed.validation))
            # The next epoch is handed over before the metrics of this one are waited for, so that
            # the device has no pause. After a divergence it is for nothing.
            if epoch < self._train_spec.epochs:
                state, train_sums = compiled_epoch(state, traced, self._placed.data)
            means = zip(*map(_means, sums), strict=True)
            metrics = [EpochMetrics(*chain(*of_run)) for of_run in means]
            for place in left:
                epochs[place].append(metrics[place])
                if after_epoch is not None:
                    after_epoch(place, epoch, metrics[place])
            left = [place for place in left if _is_finite(metrics[place])]
            if not left:
                break
        tested = _means(self._sums_on(state, self._placed.test)) if test and left else []
        seconds = time.perf_counter() - start
        return [
            Outcome(
                epochs[place],
                place not in left,
                *(tested[place] if tested and place in left else (None, None)),
                seconds,
                state if self.width == 1 and place in left else None,
            )
            for place in range(count)
        ]

    def _inputs(self, seed: int, values: dict[str, float]) -> tuple[Array, dict[str, Array]]:
        numbers = self._optimizer_spec.traced()
        traced = {name: np.float32(values.get(name, given)) for name, given in numbers.items()}
        return jax.device_put((np.uint32(seed), traced))

    def _optimizer(self, traced: dict[str, Array]):
        steps = self._train_spec.epochs * self.steps_per_epoch
        return optimizer(self._optimizer_spec, traced, steps, self.steps_per_epoch)

    def _initialize(self, seed, traced) -> TrainState:
        initial_key, order_key = jax.random.split(jax.random.key(seed))
        images = self._placed.data.images
        dtype = jnp.int32 if images.dtype == jnp.int32 else jnp.float32
        images = jnp.zeros((1, *images.shape[1:]), dtype)
        keys = {"params": initial_key, "dropout": initial_key}
        variables: Any = self.model.init(keys, images, train=True)
        name, kept = type(self.model).__name__, {"params", "batch_stats"}
        if others := sorted(variables.keys() - kept):
            raise ValueError(
                f"{name} has variables in {', '.join(others)}; expected params and batch_stats "
                "alone, which a study keeps from step to step. Keep what is not trained in "
                "batch_stats, as in self.variable('batch_stats', ...)."
            )
        if not jax.tree.leaves(variables.get("params")):
            raise ValueError(f"{name} has no parameters; expected some, for there is training.")
        params = variables["params"]
        scale = self._train_spec.initialization_scale
        params = jax.tree.map(
            lambda leaf, is_weight: scale * leaf if is_weight else leaf,
            params,
            weights_only(params),
        )
        return TrainState(
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=self._optimizer(traced).init(params),
            step=jnp.zeros((), jnp.int32),
            key=order_key,
        )

    def _epoch(self, state, traced, data) -> tuple[TrainState, Metrics]:
        transformation = self._optimizer(traced)
        order_key, key = jax.random.split(state.key)
        # A third part of the key, the same for all variants: for what is drawn in each step.
        draws_key = jax.random.fold_in(state.key, 2)
        batches = shuffled_batches(order_key, data.train, self._batch_size)

        def step(carry, batch):
            state, sums = carry
            step_key = jax.random.fold_in(draws_key, state.step)
            augment_key, dropout_key = jax.random.split(step_key)
            images = augment(augment_key, data.images[batch], self._train_spec.augment)
            state, metrics = train_step(
                self.model,
                transformation,
                self._placed.classes,
                self._train_spec.label_smoothing,
                state,
                self._standardized(data, images),
                data.labels[batch],
                dropout_key,
            )
            return (state, jax.tree.map(jnp.add, sums, metrics)), None

        carry, _ = lax.scan(step, (state.replace(key=key), no_metrics()), batches)
        return carry

    def _evaluate(self, params, batch_stats, data, split) -> Metrics:
        variables = {"params": params, "batch_stats": batch_stats}

        def add(index, sums):
            batch = split.batches[index]
            images = self._standardized(data, data.images[batch])
            output = self.model.apply(variables, images, train=False)
            logits = checked_logits(self.model, output, len(images), self._placed.classes)
            metrics = measure(logits, data.labels[batch], split.mask[index])
            return jax.tree.map(jnp.add, sums, metrics)

        return lax.fori_loop(0, split.filled, add, no_metrics())

    def _standardized(self, data: DeviceData, images: Array) -> Array:
        return standardize(images, data.mean, data.deviation, self._train_spec.precision)

    def _sums_on(self, state: TrainState, split: Split) -> Metrics:
        *_, compiled_evaluate = self.compile()
        return compiled_evaluate(state.params, state.batch_stats, self._placed.data, split)


def _together(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes of a function of one run one of several, whose first two arguments are stacked.

    An accelerator computes them at once. On a CPU, whose cores and caches one run fills, all at
    once take longer than one after the other, but for the smallest networks
    (`experiments/benchmarks/training.py` measures both).
    """

    def of_several(first: Any, second: Any, *shared: Any) -> Any:
        if jax.default_backend() == "cpu":
            return lax.map(lambda of_run: function(*of_run, *shared), (first, second))
        return jax.vmap(lambda *of_run: function(*of_run, *shared))(first, second)

    return of_several


def _stacked(trees: Sequence[Any]) -> Any:
    """Stacks the arrays of several runs along a first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _means(sums: Metrics) -> list[tuple[float, float]]:
    """Fetches the sums and returns mean loss and accuracy of each run."""
    fetched = (np.atleast_1d(values).tolist() for values in jax.device_get(sums))
    return [
        (loss / examples, correct / examples)
        for examples, loss, correct in zip(*fetched, strict=True)
    ]


def _is_finite(metrics: EpochMetrics) -> bool:
    losses = (metrics.train_loss, metrics.validation_loss)
    return all(loss is None or math.isfinite(loss) for loss in losses)
