"""Instance normalization."""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from .fields import CheckedModule
from .shared import (
    Axes,
    AxisName,
    axes_of,
    normalized_by_own_moments,
    other_axes,
    with_mask,
)


class InstanceNorm(CheckedModule):
    r"""Normalizes every channel of every example by its own mean and variance.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    Mean and variance are taken over all axes but the first, which holds the examples, and the
    feature axes. A drop-in for `flax.linen.InstanceNorm`.

    State: none.

    Attributes:
        epsilon: Added to the variance.
        dtype: Dtype of the result; by default that of input and parameters together.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether a bias (beta) is learned.
        use_scale: Whether a scale (gamma) is learned.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        feature_axes: Axes of the channels, along which scale and bias vary.
        axis_name: Named axis over whose devices statistics are pooled, where an example is spread
            over several.
        axis_index_groups: Groups of indices of that axis that are pooled among themselves.
        use_fast_variance: If false, the two-pass formula of Flax, whose mean is rounded to the
            dtype. The default is as stable, and its mean is exact to more digits.
        force_float32_reductions: If false, half precision input keeps its precision in the
            statistics.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Ulyanov, Vedaldi and Lempitsky, 2016, "Instance Normalization", equation 4.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
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
        """Normalizes the input; the arguments are those of `BatchNorm`.

        Raises:
            ValueError: If the feature axes include the first axis.
        """
        inputs, mask = with_mask(self, x, mask, use_running_average)
        feature_axes = axes_of(self, "feature_axes", inputs.ndim)
        if 0 in feature_axes:
            raise ValueError(
                "The channel axes cannot include the leading dimension as this is assumed to be "
                f"the batch axis: InstanceNorm was given feature_axes={self.feature_axes} for an "
                f"input of shape {inputs.shape}. Name other axes."
            )
        axes = other_axes((0, *feature_axes), inputs.ndim)
        return normalized_by_own_moments(self, inputs, mask, axes, feature_axes, scale, bias)
