"""Dynamic hyperbolic tangent."""

from dataclasses import field

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import dynamic_tanh
from .fields import CheckedModule
from .shared import checked, in_statistics_dtype, refuse_complex, scaled


class DynamicTanh(CheckedModule):
    r"""Squashes every value by a hyperbolic tangent of learned slope, in place of a normalization.

    .. math:: y = \tanh(\alpha x) \, \gamma + \beta

    The slope is one number for the whole layer; scale and bias lie on the last axis.

    State: none. `params` holds `alpha`, of shape ().

    Attributes:
        alpha_init: What the slope starts from. The paper sets it lower the wider a language model
            is, and higher in its attention blocks than elsewhere.
        dtype: Dtype of the result; by default that of input, scale and bias together.
        param_dtype: Dtype of the parameters.
        use_bias: Whether a bias (beta) is learned.
        use_scale: Whether a scale (gamma) is learned.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Zhu, Chen, He, LeCun and Liu, 2025, "Transformers without Normalization", section 4.
    """

    alpha_init: float = 0.5
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
        """Squashes the input; the arguments are those of `BatchNorm`.

        Raises:
            ValueError: If the input is complex: the tangent of complex numbers has poles.
        """
        inputs, _ = checked(self, x, mask, use_running_average)
        x = in_statistics_dtype(inputs, self.dtype, True)
        refuse_complex(self, x)
        slope = nn.initializers.constant(self.alpha_init)
        alpha = self.param("alpha", slope, (), self.param_dtype)
        return scaled(self, inputs, dynamic_tanh(x, alpha), scale, bias)
