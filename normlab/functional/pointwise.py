"""Squashing functions that take the place of a normalization: each value by itself."""

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .arguments import BROADCAST, REAL_NUMBERS, checked


@checked(x=REAL_NUMBERS, alpha=BROADCAST)
def dynamic_tanh(x: Float[Array, "..."], alpha: ArrayLike) -> Array:
    r"""Squashes `x` by a hyperbolic tangent of learned slope.

    .. math:: y = \tanh(\alpha x)
    """
    return jnp.tanh(alpha * x)


@checked(x=REAL_NUMBERS, alpha=BROADCAST)
def dynamic_erf(x: Float[Array, "..."], alpha: ArrayLike, shift: ArrayLike) -> Array:
    r"""Squashes `x` by an error function of learned slope and place.

    .. math:: y = \mathrm{erf}(\alpha x + s)
    """
    return lax.erf(alpha * x + shift)
