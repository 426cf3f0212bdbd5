"""Activations that belong to a normalization, and those that one can be built around."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .arguments import REAL_NUMBERS, checked

Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jax.nn.tanh,
    "sigmoid": jax.nn.sigmoid,
}


@checked(x=REAL_NUMBERS)
def thresholded_linear(x: Float[Array, "..."], threshold: Array) -> Array:
    r"""Cuts `x` off below a learned threshold.

    .. math:: y = \max(x, \tau)

    Both are compared, and the gradient to the threshold is summed, in the wider of their dtypes.
    The result has the dtype of `x`.

    Source: Singh and Krishnan, 2020, "Filter Response Normalization Layer", equation 3.
    """
    return jnp.maximum(x, threshold).astype(x.dtype)


@checked(x=REAL_NUMBERS)
def swish(x: Float[Array, "..."], v: Array) -> Array:
    r"""Gates `x` by its own sigmoid, at a learned slope.

    .. math:: y = x \, \sigma(v x)

    Source: Ramachandran, Zoph and Le, 2017, "Searching for Activation Functions", section 4.
    """
    return x * jax.nn.sigmoid(v * x)
