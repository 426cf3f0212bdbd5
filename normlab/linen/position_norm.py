"""Positional normalization."""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import moments
from .fields import CheckedModule
from .shared import (
    AxisName,
    in_statistics_dtype,
    last_axis,
    normalized,
    pooled_axis,
    with_mask,
)


class PositionNorm(CheckedModule):
    r"""Normalizes the channels at every position by their mean and variance, and keeps these.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    Mean and variance are taken over the last axis. The mean and the deviation
    :math:`\sqrt{\sigma^2 + \epsilon}` hold the structure of an image; later layers of a generator
    may take them in again (moment shortcut), as bias and scale::

        y, kept = PositionNorm().apply(variables, x, mutable=["intermediates"])
        (mean,), (deviation,) = kept["intermediates"]["mean"], kept["intermediates"]["deviation"]

    State:
        `intermediates/mean`, `intermediates/deviation`: a tuple with an array for each call, of
        the rank of the input with size 1 on the channels; only where the caller makes the
        collection mutable.

    Attributes:
        epsilon: Added to the variance.
        dtype: Dtype of the result; by default that of input, scale and bias together.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether a bias (beta) is learned.
        use_scale: Whether a scale (gamma) is learned.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        axis_name: Named axis over whose devices statistics are pooled, where the channels are
            spread over several.
        axis_index_groups: Groups of indices of that axis that are pooled among themselves.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Li, Wu, Weinberger and Belongie, 2019, "Positional Normalization", section 3.
    """

    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = False
    use_scale: bool = False
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: Any = None
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
        x = in_statistics_dtype(inputs, self.dtype, True)
        channels = last_axis(self, x.ndim)
        statistics = moments(
            x,
            channels,
            epsilon=self.epsilon,
            stored=inputs,
            mask=mask,
            **pooled_axis(self),
        )
        self.sow("intermediates", "mean", statistics.mean)
        self.sow("intermediates", "deviation", statistics.deviation(self.epsilon))
        return normalized(self, inputs, x, statistics, channels, scale, bias)
