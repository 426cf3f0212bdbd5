"""Batch normalization."""

import math
from dataclasses import field
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import Moments, moments, unbiased, update_running
from .shared import (
    Axes,
    AxisName,
    check_choice,
    in_statistics_dtype,
    normalized,
    other_axes,
    resolve_axes,
    with_mask,
)


class BatchNorm(nn.Module):
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
        excepted. A batch with a non-finite statistic, or wholly masked, leaves them alone.

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

    Source: Ioffe and Szegedy, 2015, "Batch Normalization", algorithms 1 and 2.
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

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: If a field has a value it cannot have.
        """
        check_choice(self, "running_variance", ("biased", "unbiased"))
        if isinstance(self.momentum, float | int) and not 0 <= self.momentum <= 1:
            raise ValueError(
                f"{type(self).__name__}: momentum={self.momentum} is the share of the running "
                "statistics that an update keeps, between 0 and 1, or None to average all batches."
            )
        if self.debias and self.momentum == 1:
            raise ValueError(
                f"{type(self).__name__}: debias=True needs a momentum below 1, since a momentum of "
                "1 takes in nothing that could be debiased."
            )
        super().__post_init__()

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
            mask: Broadcastable to the input; true where a value counts in the statistics.
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
        inputs = jnp.asarray(x)
        x = in_statistics_dtype(inputs, self.dtype, self.force_float32_reductions)
        feature_axes = resolve_axes(self.axis, x.ndim, "axis")
        reduced_axes = other_axes(feature_axes, x.ndim)
        features = tuple(x.shape[axis] for axis in feature_axes)

        if use_running_average:
            mean, var, _ = self._running_statistics(features, x.dtype)
            stored = Moments(
                counted=jnp.zeros(()),
                shift=jnp.expand_dims(mean.value, reduced_axes),
                residual=jnp.zeros((1,) * x.ndim, mean.value.dtype),
                variance=jnp.expand_dims(var.value, reduced_axes),
            )
            return normalized(self, inputs, x, stored, feature_axes, scale, bias)

        x, mask = with_mask(x, mask)
        y, batches = self._normalize_batch(inputs, x, mask, reduced_axes, feature_axes, scale, bias)
        # Statistics that nobody collects need no variables.
        if self.is_mutable_collection("batch_stats"):
            mean, var, count = self._running_statistics(features, x.dtype)
            if not self.is_initializing():
                mean.value, var.value, updates = update_running(
                    mean.value,
                    var.value,
                    count.value if count else jnp.zeros(()),
                    batches.mean.reshape(-1, *features),
                    batches.variance.reshape(-1, *features),
                    batches.counted.reshape(-1, *features),
                    momentum=self.momentum,
                    debias=self.debias,
                )
                if count:
                    count.value = updates
        return y

    def _running_statistics(self, features: tuple[int, ...], dtype: Any):
        """Declares mean, variance and, where it is needed, number of updates."""
        # Never below float32: the average of many batches lives in bits that half precision lacks.
        dtype = jnp.promote_types(dtype, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, features, dtype)
        var = self.variable("batch_stats", "var", jnp.ones, features, jnp.finfo(dtype).dtype)
        counted = self.momentum is None or self.debias
        count = self.variable("batch_stats", "count", jnp.zeros, ()) if counted else None
        return mean, var, count

    def _normalize_batch(
        self,
        inputs: Array,
        x: Array,
        mask: Array | None,
        reduced_axes: tuple[int, ...],
        feature_axes: tuple[int, ...],
        scale: ArrayLike | None,
        bias: ArrayLike | None,
    ) -> tuple[Array, Moments]:
        """Normalizes by batch statistics; returns those that enter the running ones as well."""
        # Initialization sees shapes only: its batch is often one example, its named axis absent.
        over_devices = {} if self.is_initializing() else self._over_devices()
        if not self.is_initializing():
            axis_size = lax.psum(1, **over_devices) if over_devices else 1
            self._refuse_single_value(x, math.prod(x.shape[a] for a in reduced_axes) * axis_size)
        batch = moments(
            x, reduced_axes, mask=mask, use_fast_variance=self.use_fast_variance, **over_devices
        )
        y = normalized(self, inputs, x, batch, feature_axes, scale, bias)
        return y, self._for_running(batch)

    def _over_devices(self) -> dict[str, Any]:
        if self.axis_name is None:
            return {}
        return {"axis_name": self.axis_name, "axis_index_groups": self.axis_index_groups}

    def _for_running(self, batch: Moments) -> Moments:
        if self.running_variance == "biased":
            return batch
        return batch._replace(variance=unbiased(batch))

    def _refuse_single_value(self, x: Array, values: int) -> None:
        if values == 1:
            raise ValueError(
                f"{type(self).__name__}: batch statistics of an input of shape {x.shape} with "
                f"axis={self.axis} would be taken over a single value per feature, whose variance "
                "is always 0. Use at least 2 examples, use_running_average=True, or a layer "
                "without batch statistics such as LayerNorm or GroupNorm."
            )
