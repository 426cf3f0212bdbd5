"""Batch normalization."""

import math
import warnings
from dataclasses import field
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import (
    Moments,
    mix_moments,
    moments,
    small_beside,
    unbiased,
    update_running,
)
from .fields import CheckedModule
from .shared import (
    Axes,
    AxisName,
    axes_of,
    check_statistics,
    in_statistics_dtype,
    normalized,
    other_axes,
    pooled_axis,
    with_mask,
)

# The layers that were warned of, by class and path.
_WARNED: set[tuple[type, tuple[str, ...]]] = set()


class BatchInput(NamedTuple):
    """What a call of a layer with batch statistics was given.

    Attributes:
        inputs: The input as it came, but for masked values that are not finite.
        x: The same in the dtype of the statistics.
        mask: In the shape of the input, or None.
        feature_axes: Axes that are not reduced.
        scale: Used instead of the learned scale, or None.
        bias: Likewise.
    """

    inputs: Array
    x: Array
    mask: Array | None
    feature_axes: tuple[int, ...]
    scale: ArrayLike | None
    bias: ArrayLike | None

    @property
    def reduced_axes(self) -> tuple[int, ...]:
        """Axes of the batch and its positions."""
        return other_axes(self.feature_axes, self.x.ndim)

    @property
    def features(self) -> tuple[int, ...]:
        """Sizes of the feature axes."""
        return tuple(self.x.shape[axis] for axis in self.feature_axes)


class Running(NamedTuple):
    """The variables that hold running statistics; None where a layer has no use for one."""

    mean: Any
    var: Any
    count: Any


class BatchNorm(CheckedModule):
    r"""Normalizes every feature by its mean and variance over the batch.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    In training, mean and (biased) variance are those of the batch over all axes but the feature
    axes; in evaluation they are the running ones. A drop-in for `flax.linen.BatchNorm`: fields,
    variables and numbers are the same, and what is added is keyword-only. Like Flax, and unlike
    the paper, the running variance is biased by default.

    Usage with explicit state::

        layer = normlab.BatchNorm()
        variables = layer.init(key, x, use_running_average=False)
        y, updated = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

    State:
        `batch_stats/mean`, `batch_stats/var`: shape of the features, in the dtype of the statistics
        and never below float32, from 0 and 1. `batch_stats/count`: number of updates so far, a
        float32 scalar, only where `momentum` is None or `debias` is set. They move when, and only
        when, the caller makes `batch_stats` mutable and batch statistics are in use, initialization
        excepted. A batch with a non-finite statistic, or wholly masked, leaves them alone; so does
        one whose variance their dtype cannot hold (deviations above 1e19 in float32), though it is
        normalized by it. A state that comes without a count which the layer needs is replaced whole
        by the first update.

    Attributes:
        use_running_average: Whether to normalize by the running statistics; here or at the call.
        axis: Feature axis or axes; all others are reduced.
        momentum: Share of the running statistics that an update keeps; None keeps the average of
            all batches.
        epsilon: Added to the variance.
        dtype: Dtype of the result; by default that of input and parameters together.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether a bias (beta) is learned.
        use_scale: Whether a scale (gamma) is learned.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        axis_name: Named axis (of `vmap` or `shard_map`) over whose devices statistics are pooled,
            by sums and counts. Under `jit` with a sharded batch they always are.
        axis_index_groups: Groups of indices of that axis that are pooled among themselves.
        use_fast_variance: If false, the two-pass formula of Flax, whose mean is rounded to the
            dtype. The default is as stable, and its mean is exact to more digits.
        force_float32_reductions: If false, half precision input keeps its precision in the
            statistics of the batch.
        running_variance: Whether the running variance takes in the `"biased"` variance of a batch
            or the `"unbiased"` one, n / (n - 1) times as large.
        debias: Whether the running statistics are zero-debiased, so that they hold the batch's own
            after one update, whatever the momentum.
        example_weight: Inference example weighing: in evaluation, statistics are those of the
            mixture of the running ones and, with this weight, those of the example over its
            positions.

    Source: Ioffe and Szegedy, 2015, "Batch Normalization", algorithms 1 and 2; for
    `example_weight` Summers and Dinneen, 2020, "Four Things Everyone Should Know to Improve Batch
    Normalization", section 3.1.
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: float | None = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    running_variance: Literal["biased", "unbiased"] = field(default="biased", kw_only=True)
    debias: bool = field(default=False, kw_only=True)
    example_weight: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: If a field has a value it cannot have.
        """
        super().__post_init__()
        if self.debias and isinstance(self.momentum, float | int) and self.momentum == 1:
            raise ValueError(
                f"{type(self).__name__}: debias=True needs a momentum below 1, since a momentum of "
                "1 takes in nothing that could be debiased."
            )

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> Array:
        """Normalizes the input.

        Args:
            x: Input of any rank.
            use_running_average: Whether to normalize by the running statistics.
            mask: Booleans, broadcastable to the input; true where a value counts in the
                statistics. Flax also takes numbers, and counts where they are not 0; here they are
                refused, since a mask may mean the contrary (1 where padding is, or minus infinity),
                and under `jit` nobody sees what is in it. Give `mask.astype(bool)` or `mask == 0`.
            scale: Used instead of the learned scale: of the shape of the features, or of the rank
                of the input and broadcastable to it.
            bias: Used instead of the learned bias, likewise.

        Returns:
            The normalized input, of the same shape.

        Raises:
            ValueError: If batch statistics are asked of a single value per feature.
        """
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        inputs, mask = with_mask(self, x, mask, use_running_average)
        x = in_statistics_dtype(inputs, self.dtype, self.force_float32_reductions)
        feature_axes = axes_of(self, "axis", x.ndim)
        given = BatchInput(inputs, x, mask, feature_axes, scale, bias)
        if use_running_average:
            return self._normalize(given, self._evaluation_moments(given))

        # Statistics that nobody collects need no variables.
        collected = self.is_mutable_collection("batch_stats")
        if not collected and self.has_variable("batch_stats", "var"):
            self._warn_that_nothing_is_collected()
        running = self._running(given) if collected or self._corrects_batch else None
        of_example, batches = self._batch_moments(given, running)
        y = self._normalize(given, of_example)
        if running and collected and not self.is_initializing():
            self._update(running, batches, given.features)
        return y

    def _warn_that_nothing_is_collected(self) -> None:
        told = (type(self), self.path)
        if told in _WARNED:
            return
        _WARNED.add(told)
        warnings.warn(
            f"{type(self).__name__} at {'/'.join(self.path) or 'the top'} normalizes by the "
            "statistics of the batch, and its running statistics stay as they are. To let them "
            "follow in training, write: y, updated = model.apply(variables, x, ..., "
            'mutable=["batch_stats"]); this is said once.',
            stacklevel=2,
        )

    # Whether batch statistics are corrected by the running ones, which then are always needed.
    _corrects_batch = False
    # Whether the running statistics include a mean.
    _keeps_mean = True

    def _running(self, given: BatchInput) -> Running:
        """Declares mean, variance and, where it is needed, number of updates."""
        # Never below float32: the average of many batches lives in bits that half precision lacks.
        dtype = jnp.promote_types(given.x.dtype, jnp.float32)
        real = jnp.finfo(dtype).dtype
        mean = count = None
        if self._keeps_mean:
            mean = self.variable("batch_stats", "mean", jnp.zeros, given.features, dtype)
        var = self.variable(
            "batch_stats", "var", lambda: self._from_average(jnp.ones(given.features, real))
        )
        counts = self.momentum is None or self.debias or self._corrects_batch
        # A state taken over from a layer that does not count lacks it, which is no matter until an
        # update is counted.
        if counts and (
            self.is_mutable_collection("batch_stats") or self.has_variable("batch_stats", "count")
        ):
            count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.float32)
        check_statistics(self, "var", var.value, given.features, negative=False)
        if mean:
            check_statistics(self, "mean", mean.value, given.features)
        if count:
            check_statistics(self, "count", count.value, (), negative=False)
        return Running(mean, var, count)

    def _update(self, running: Running, batches: Moments, features: tuple[int, ...]) -> None:
        """Lets the statistics of one or more batches enter the running ones."""
        batch_mean = batches.mean.reshape(-1, *features)
        # A restored checkpoint holds NumPy arrays.
        before = jnp.asarray(self._to_average(running.var.value))
        mean = jnp.asarray(running.mean.value) if running.mean else jnp.zeros_like(before)
        mean, average, updates = update_running(
            mean,
            before,
            jnp.asarray(running.count.value) if running.count else jnp.zeros((), before.dtype),
            batch_mean,
            self._to_average(batches.variance.reshape(-1, *features)),
            batches.counted.reshape(-1, *features),
            momentum=self.momentum,
            debias=self.debias,
        )
        # What did not move stays to the bit, which the way to the average and back may not keep.
        moved = average != before
        running.var.value = jnp.where(moved, self._from_average(average), running.var.value)
        if running.mean:
            running.mean.value = mean
        if running.count:
            running.count.value = updates

    def _to_average(self, variance: ArrayLike) -> Any:
        """What of a variance is averaged over batches."""
        return variance

    def _from_average(self, average: Array) -> Array:
        """The variance that belongs to such an average."""
        return average

    def _evaluation_moments(self, given: BatchInput) -> Moments:
        """The running statistics, mixed with those of each example if that is asked for."""
        running = self._running(given)
        variance = self._beside(given, running.var.value)
        variance = variance.astype(jnp.finfo(given.x.dtype).dtype)
        zeros = jnp.zeros((1,) * given.x.ndim, given.x.dtype)
        shift = residual = zeros
        if running.mean:
            mean = self._beside(given, running.mean.value)
            # What a mean of more digits than the input has beyond them.
            shift = mean.astype(jnp.promote_types(given.x.dtype, shift.dtype))
            residual = (mean - shift.astype(mean.dtype)).astype(shift.dtype)
        stored = Moments(jnp.zeros(zeros.shape, jnp.float32), shift, residual, variance)
        if not self.example_weight:
            return stored
        example = self._example_moments(given)
        if not running.mean:
            example = example._replace(shift=zeros, residual=zeros)
        return mix_moments(stored, example, self.example_weight)

    def _beside(self, given: BatchInput, statistic: ArrayLike) -> Array:
        """A running statistic in the rank of the input, and on its devices."""
        return small_beside(given.x, jnp.expand_dims(jnp.asarray(statistic), given.reduced_axes))

    def _batch_moments(self, given: BatchInput, running: Running | None) -> tuple[Moments, Moments]:
        """Returns the statistics to normalize by, and those that enter the running ones."""
        del running  # The batch is normalized by its own statistics alone.
        batch = self._moments_of_batch(given)
        return batch, self._for_running(batch)

    def _moments_of_batch(self, given: BatchInput) -> Moments:
        """The statistics over the reduced axes and all devices."""
        # Initialization sees shapes only: its batch is often one example, its named axis absent.
        over_devices = {} if self.is_initializing() else pooled_axis(self)
        batch = self._moments(given, given.reduced_axes, **over_devices)
        if not self.is_initializing():
            devices = lax.psum(1, **over_devices) if over_devices else 1
            positions = math.prod(given.x.shape[axis] for axis in given.reduced_axes)
            self._refuse_single_value(given.x, positions * devices * self._pooled_features(given))
        return batch

    def _example_moments(self, given: BatchInput) -> Moments:
        """The statistics of each example over its positions."""
        return self._moments(given, given.reduced_axes[1:])

    def _moments(self, given: BatchInput, axes: tuple[int, ...], **over_devices: Any) -> Moments:
        """The statistics over some of the reduced axes."""
        return moments(
            given.x,
            axes,
            epsilon=self.epsilon,
            stored=given.inputs,
            mask=given.mask,
            use_fast_variance=self.use_fast_variance,
            **over_devices,
        )

    def _pooled_features(self, given: BatchInput) -> int:
        """How many features share their statistics."""
        del given
        return 1

    def _normalize(self, given: BatchInput, statistics: Moments) -> Array:
        """Normalizes by given statistics, scales and shifts."""
        return normalized(
            self, given.inputs, given.x, statistics, given.feature_axes, given.scale, given.bias
        )

    def _for_running(self, batch: Moments) -> Moments:
        if self.running_variance == "biased":
            return batch.plain()
        return batch._replace(scaled_variance=unbiased(batch), factor=None)

    def _refuse_single_value(self, x: Array, values: int) -> None:
        if values == 1:
            raise ValueError(
                f"{type(self).__name__}: batch statistics of an input of shape {x.shape} with "
                f"axis={self.axis} would be taken over a single value per feature, whose variance "
                "is always 0. Use at least 2 examples, use_running_average=True, or a layer "
                "without batch statistics such as LayerNorm or GroupNorm."
            )
