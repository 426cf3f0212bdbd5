"""The learned part of a normalization, without the normalization."""

from dataclasses import field

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from .fields import CheckedModule
from .shared import checked, in_statistics_dtype, scaled


class Affine(CheckedModule):
    r"""Scales and shifts every feature.

    .. math:: y = \gamma x + \beta

    Features lie on the last axis. In a comparison it is the arm that has the parameters of a
    normalization and nothing else of it.

    State: none.

    Attributes:
        dtype: Dtype of the result; by default that of input, scale and bias together.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether a bias (beta) is learned.
        use_scale: Whether a scale (gamma) is learned.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale. ResMLP starts it at 0.1 to 1e-6, by depth, where it
            stands at the end of a residual branch.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Touvron et al., 2021, "ResMLP: Feedforward networks for image classification with
    data-efficient training", equation 1.
    """

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
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
        """Scales and shifts the input; the arguments are those of `BatchNorm`."""
        inputs, _ = checked(self, x, mask, use_running_average)
        return scaled(self, inputs, in_statistics_dtype(inputs, self.dtype, True), scale, bias)
