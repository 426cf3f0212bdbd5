"""Layer normalization."""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from .fields import CheckedModule
from .shared import Axes, AxisName, axes_of, normalized_by_own_moments, with_mask


class LayerNorm(CheckedModule):
    r"""Normalizes every example, or every position of it, by its own mean and variance.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    Mean and variance are taken over `reduction_axes`. A drop-in for `flax.linen.LayerNorm`. The
    paper reduces over all units of a layer; so does `reduction_axes=(1, 2, 3)` for images.

    State: none.

    Attributes:
        epsilon: Added to the variance.
        dtype: Dtype of the result; by default that of input and parameters together.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether a bias (beta) is learned.
        use_scale: Whether a scale (gamma) is learned.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        reduction_axes: Axes over which mean and variance are taken.
        feature_axes: Axes along which scale and bias vary.
        axis_name: Named axis over whose devices statistics are pooled, where an example is spread
            over several.
        axis_index_groups: Groups of indices of that axis that are pooled among themselves.
        use_fast_variance: If false, the two-pass formula of Flax, whose mean is rounded to the
            dtype. The default is as stable, and its mean is exact to more digits.
        force_float32_reductions: If false, half precision input keeps its precision in the
            statistics.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Ba, Kiros and Hinton, 2016, "Layer Normalization", equation 3.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
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
        inputs, mask = with_mask(self, x, mask, use_running_average)
        axes = axes_of(self, "reduction_axes", inputs.ndim)
        feature_axes = axes_of(self, "feature_axes", inputs.ndim)
        return normalized_by_own_moments(self, inputs, mask, axes, feature_axes, scale, bias)
