"""Scale normalization."""

import math
from dataclasses import field

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import length
from ..functional.normalize import reciprocal
from .fields import CheckedModule
from .shared import in_statistics_dtype, last_axis, scaled, with_mask


class ScaleNorm(CheckedModule):
    r"""Gives the vector of features at every position one learned length.

    .. math:: y = g \frac{x}{\max(\|x\|, \epsilon)}

    The Euclidean length is taken over the last axis. The scale g is one number; one given at the
    call may vary along the features. It learns no bias, but takes one at the call. Where g is the
    square root of the number of features, this is root mean square normalization without a scale,
    but for epsilon.

    State: none. `params` holds `scale`, of shape ().

    Attributes:
        epsilon: The least length that is divided by. The zero vector stays zero.
        dtype: Dtype of the result; by default that of input, scale and bias together.
        param_dtype: Dtype of the scale.
        use_scale: Whether a scale (g) is learned; without one the length is 1.
        scale_init: Initializer of the scale, called with shape (); by default the square root of
            the number of features.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Nguyen and Salazar, 2019, "Transformers without Tears: Improving the Normalization of
    Self-Attention", section 2.2.
    """

    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: Initializer | None = None
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
        axes = last_axis(self, x.ndim)
        size = length(x, axes, stored=inputs, mask=mask, epsilon=self.epsilon**2)
        size = jnp.maximum(size, self.epsilon)
        # Without an epsilon, zeros have no direction.
        y = x * jnp.where(size > 0, reciprocal(jnp.where(size > 0, size, 1)), 0)
        if scale is None and self.use_scale:
            initial = self.scale_init or nn.initializers.constant(math.sqrt(x.shape[-1]))
            scale = self.param("scale", initial, (), self.param_dtype).reshape((1,) * x.ndim)
        return scaled(self, inputs, y, scale, bias)
