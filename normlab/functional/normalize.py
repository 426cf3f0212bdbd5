"""The normalization itself, given the statistics."""

import jax.numpy as jnp
from jaxtyping import Array, Inexact


def normalize(
    x: Inexact[Array, "..."],
    mean: Array,
    variance: Array,
    *,
    epsilon: float | Array,
    residual: Array | None = None,
    scale: Array | None = None,
    bias: Array | None = None,
) -> Array:
    r"""Centres and scales `x` by given statistics.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    Args:
        x: Values, float or complex.
        mean: Mean, of the rank of `x` and broadcastable to it, as all arguments below.
        variance: Variance, real and not negative.
        epsilon: A small number that keeps the square root off zero.
        residual: What `mean` lacks of the exact mean, if it is known (see `Moments`).
        scale: Factor, gamma; 1 if not given.
        bias: Summand, beta; 0 if not given.

    Returns:
        An array of the shape of `x`, in the dtype that all arguments promote to.
    """
    centred = x - mean
    if residual is not None:
        centred = centred - residual
    # Statistics and scale are small: their product is formed before it meets the large array. Not
    # by rsqrt, whose derivative has the power -3/2 of the variance, which underflows from 1e26.
    multiplier = 1 / jnp.sqrt(variance + jnp.asarray(epsilon, variance.dtype))
    if scale is not None:
        multiplier = multiplier * scale
    y = centred * multiplier
    return y if bias is None else y + bias
