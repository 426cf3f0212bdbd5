"""What a training step of each arm of a study costs, on each of some targets."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ..compare.arm import Arm
from ..compare.executors.local import COMPILING_THREADS
from ..compare.study import Study, StudyError
from ..data import DataSpec, describe, load
from ..data.formats import CLASSES
from ..errors import UserError
from ..models import network_of
from ..spec import Targets
from ..train.programs import abstract_state, lower_step
from ..train.step import Steps
from .program import ProgramCost, read
from .targets import Target


class CostError(UserError):
    """A step cannot be compiled for a target."""


@dataclass(frozen=True)
class StepCost:
    """What a training step of one arm costs each device of one target.

    Attributes:
        target: The target, by name.
        chips: How many devices share the step.
        arm: The arm.
        normalized: Bytes of what enters the normalization layers of one device in one step.
        program: The costs.
    """

    target: str
    chips: int
    arm: str
    normalized: int
    program: ProgramCost

    @property
    def passes(self) -> float | None:
        """Memory traffic, in readings of all that enters the normalization layers."""
        return self.program.traffic / self.normalized if self.normalized else None


def study_cost(
    study: Study,
    targets: list[Target],
    examples_per_chip: int | None = None,
    advance: Callable[[str], None] = lambda compiled: None,
) -> list[StepCost]:
    """Compiles the training step of each arm for each target.

    A step is what training runs: forward, backward, and the optimizer's update of the state, with
    the study's own values where it tunes some. On several devices each has its part of the batch
    and all parameters. The order of examples and their standardization are left out. Nothing runs,
    and no images are read unless the study's data is a file of its own.

    Args:
        study: The study.
        targets: Where the step would run.
        examples_per_chip: Each device's part of a batch; by default the study's whole batch, so
            that the batch grows with the devices.
        advance: Called with what has been compiled.

    Returns:
        One cost for each arm and target, target by target, in the order of the study.

    Raises:
        StudyError: A layer does not fit the model or the batch.
        CostError: The program does not compile, as where memory does not suffice.
    """

    def one(pair: tuple[Target, Arm]) -> StepCost:
        target, arm = pair
        cost = _step_cost(study.for_arm(arm), arm, target, examples_per_chip)
        advance(f"{arm.title} on {target.name}")
        return cost

    pairs = [(target, arm) for target in targets for arm in study.arms()]
    with ThreadPoolExecutor(COMPILING_THREADS) as pool:
        return list(pool.map(one, pairs))


@dataclass(frozen=True)
class _Examples:
    image_shape: tuple[int, ...]
    classes: int
    count: int
    dtype: str
    label: np.ndarray | None  # of one


def _examples(spec: DataSpec, targets: Targets, precision: str) -> _Examples:
    """What a program knows of a data set, without its images where that is possible."""
    known = {listing.name: listing for listing in describe()}.get(spec.name)
    if known is None or not known.image_shape or not known.examples or targets != "classes":
        dataset = load(spec, targets)
        dtype = "int32" if dataset.images.dtype == "int32" else precision
        labels = dataset.labels
        return _Examples(
            dataset.image_shape,
            dataset.classes,
            len(dataset.train),
            dtype,
            labels if labels is None else labels[:1],
        )
    label = np.zeros(1, np.int32)
    return _Examples(known.image_shape, CLASSES, known.examples, precision, label)


def _step_cost(study: Study, arm: Arm, target: Target, examples_per_chip: int | None) -> StepCost:
    """Compiles the step of one arm, whose overrides are in the study, for one target."""
    data = _examples(study.data, study.objective.targets, study.train.precision)
    integers = data.dtype == "int32"
    chips = len(target.devices)
    count = chips * (examples_per_chip or study.data.batch_size)
    steps = Steps(
        network_of(study.network(arm, data.classes, integers=integers)),
        study.objective,
        data.classes,
        study.optimizer,
        study.train,
        max(1, data.count // count),
    )
    dtype = jnp.int32 if integers else jnp.float32
    example = jnp.zeros((1, *data.image_shape), dtype), jax.tree.map(jnp.asarray, data.label)

    def placed(of_one: Any, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *of_one.shape[1:]), dtype, sharding=target.split)

    inputs, label = example
    batch = placed(inputs, data.dtype), jax.tree.map(lambda it: placed(it, it.dtype), label)
    entering: list[int] = []
    layer = study.variants[arm.variant].layer_class
    try:
        study.train.refuse_uneven(count)
        state = abstract_state(steps, example)
        with nn.intercept_methods(partial(_measure, entering, layer)):
            lowered = lower_step(steps, state, batch, target.whole)
    except ValueError as error:  # a layer that does not fit the model or the batch
        raise StudyError(f"variants.{arm.title}: {error}") from error
    try:
        compiled = lowered.compile(target.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        raise CostError(f"variants.{arm.title}, target {target.name!r}: {error}") from error
    return StepCost(target.name, chips, arm.title, sum(entering) // chips, read(compiled))


def _measure(entering: list[int], layer: type[nn.Module], call, args, kwargs, context) -> Any:
    """Notes the bytes that enter a layer, for `flax.linen.intercept_methods`."""
    if type(context.module) is layer and context.method_name == "__call__":
        entering.append(math.prod(args[0].shape) * args[0].dtype.itemsize)
    return call(*args, **kwargs)
