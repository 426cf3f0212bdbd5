"""The Euclidean length of vectors, with a derivative where it is zero."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from .arguments import checked
from .pooling import squared_magnitude


@checked()
def length(
    x: Inexact[Array, "..."], axes: tuple[int, ...], *, mask: Bool[Array, "..."] | None = None
) -> Array:
    r"""Computes the Euclidean length of `x` over `axes`.

    .. math:: \|x\| = \sqrt{\sum |x|^2}

    Its derivative at the zero vector, which has none, is taken to be 0.

    Args:
        x: Values, float or complex.
        axes: Axes to reduce, which are kept with size 1.
        mask: Of the shape of `x`; true where a value counts. Masked values may be anything.

    Returns:
        The length, real; 1 where nothing was counted, so that a division by it changes nothing.
    """
    square = squared_magnitude(x)
    if mask is not None:
        square = jnp.where(mask, square, 0)
    total = jnp.sum(square, axes, keepdims=True)
    # The square root is kept off zero, where its derivative is infinite, before and after.
    positive = total > 0
    result = jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1)), 0)
    if mask is None:
        return result
    return jnp.where(jnp.any(mask, axes, keepdims=True), result, 1)
