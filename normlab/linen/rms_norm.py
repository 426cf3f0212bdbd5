"""Root mean square normalization."""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import moments
from .shared import (
    Axes,
    AxisName,
    in_statistics_dtype,
    normalized,
    resolve_axes,
    with_mask,
)


class RMSNorm(nn.Module):
    r"""Normalizes every example, or every position of it, by its root mean square.

    .. math:: y = \frac{x}{\sqrt{\mathrm{mean}(|x|^2) + \epsilon}} \gamma

    The mean is taken over `reduction_axes`. A drop-in for `flax.linen.RMSNorm`. It learns no bias,
    but takes one at the call.

    State: none.

    Attributes:
        epsilon: Added to the mean square.
        dtype: Dtype of the result; by default that of input and parameters together.
        param_dtype: Dtype of the scale.
        use_scale: Whether a scale (gamma) is learned.
        scale_init: Initializer of the scale.
        reduction_axes: Axes over which the mean square is taken.
        feature_axes: Axes along which the scale varies.
        axis_name: Named axis over whose devices statistics are pooled, where an example is spread
            over several.
        axis_index_groups: Groups of indices of that axis that are pooled among themselves.
        use_fast_variance: As in Flax, and without effect: there is no mean to subtract.
        force_float32_reductions: If false, half precision input keeps its precision in the
            statistics.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Zhang and Sennrich, 2019, "Root Mean Square Layer Normalization", equation 4.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = nn.initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    use_running_average: bool | None = field(default=None, kw_only=True)

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
        """Normalizes the input; the arguments are those of `BatchNorm`."""
        del use_running_average  # RMSNorm keeps no statistics.
        inputs = jnp.asarray(x)
        x = in_statistics_dtype(inputs, self.dtype, self.force_float32_reductions)
        x, mask = with_mask(x, mask)
        statistics = moments(
            x,
            resolve_axes(self.reduction_axes, x.ndim, "reduction_axes"),
            mask=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            use_mean=False,
        )
        feature_axes = resolve_axes(self.feature_axes, x.ndim, "feature_axes")
        return normalized(self, inputs, x, statistics, feature_axes, scale, bias)
