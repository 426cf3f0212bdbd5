"""Filter response normalization."""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import moments, thresholded_linear
from ..functional.pooling import scaled_epsilon
from .fields import CheckedModule
from .shared import (
    AxisName,
    broadcast_to_input,
    in_statistics_dtype,
    last_axis,
    normalized,
    pooled_axis,
    refuse_complex,
    with_mask,
)


class FilterResponseNorm(CheckedModule):
    r"""Normalizes every channel of every example by its mean square, and cuts it off below.

    .. math:: y = \max\left(\frac{x}{\sqrt{\nu^2 + \epsilon}} \gamma + \beta, \; \tau\right),
        \qquad \nu^2 = \mathrm{mean}(|x|^2)

    The mean square is taken over the positions, all axes but the first, which holds the examples,
    and the last, which holds the channels. The threshold :math:`\tau` is learned, and the maximum
    is the activation (thresholded linear unit): no other should follow.

    Where an example has a single position, the mean square is that of a single value, and a layer
    with the fixed epsilon returns little but its sign; the paper then learns epsilon.

    State: none. `params` also holds `threshold` if `use_threshold`, and `epsilon` if
    `learn_epsilon`, of the shape of the features.

    Attributes:
        epsilon: Added to the mean square.
        dtype: Dtype of the result; by default that of input, scale and bias together.
        param_dtype: Dtype of the parameters.
        use_bias: Whether a bias (beta) is learned.
        use_scale: Whether a scale (gamma) is learned.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        axis_name: Named axis over whose devices the mean square is pooled, where an example is
            spread over several.
        axis_index_groups: Groups of indices of that axis that are pooled among themselves.
        learn_epsilon: Whether the absolute value of a parameter, which starts at 1e-4, is added to
            epsilon.
        use_threshold: Whether a threshold (tau) is learned, from 0. Without it the layer contains
            no activation.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Singh and Krishnan, 2020, "Filter Response Normalization Layer: Eliminating Batch
    Dependence in the Training of Deep Neural Networks", equations 1 to 3.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: Any = None
    learn_epsilon: bool = field(default=False, kw_only=True)
    use_threshold: bool = field(default=True, kw_only=True)
    use_running_average: bool | None = field(default=None, kw_only=True)

    @property
    def includes_activation(self) -> bool:
        """Whether the layer contains its activation."""
        return self.use_threshold

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
            ValueError: If there is a threshold and the input is complex.
        """
        inputs, mask = with_mask(self, x, mask, use_running_average)
        x = in_statistics_dtype(inputs, self.dtype, True)
        if self.use_threshold:
            refuse_complex(self, x)
        channels = last_axis(self, x.ndim)
        statistics = moments(
            x,
            tuple(range(1, x.ndim - 1)),
            # One that is learned is not negligible.
            epsilon=1.0 if self.learn_epsilon else self.epsilon,
            stored=inputs,
            mask=mask,
            **pooled_axis(self),
            use_mean=False,
        )

        def learned(name: str, start: float) -> Array:
            initial = nn.initializers.constant(start)
            value = self.param(name, initial, x.shape[-1:], self.param_dtype)
            return broadcast_to_input(f"FilterResponseNorm: {name}", value, x, channels)

        if self.learn_epsilon:
            more = scaled_epsilon(jnp.abs(learned("epsilon", 1e-4)), statistics.factors)
            statistics = statistics._replace(scaled_variance=statistics.scaled_variance + more)
        y = normalized(self, inputs, x, statistics, channels, scale, bias, centre=False)
        if self.use_threshold:
            y = thresholded_linear(y, learned("threshold", 0.0))
        return y
