"""The Euclidean length of vectors, with a derivative where it is zero."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from .arguments import checked
from .moments import sum_of_squares


@checked()
def length(
    x: Inexact[Array, "..."],
    axes: tuple[int, ...],
    *,
    stored: Array | None = None,
    mask: Bool[Array, "..."] | None = None,
    epsilon: float | Array = 0.0,
) -> Array:
    r"""Computes the Euclidean length of `x` over `axes`.

    .. math:: \|x\| = \sqrt{\sum |x|^2}

    Its derivative at the zero vector, which has none, is taken to be 0.

    Args:
        x: Values, float or complex.
        axes: Axes to reduce, which are kept with size 1.
        stored: As in `moments`.
        mask: Of the shape of `x`; true where a value counts. Masked values may be anything.
        epsilon: The square of a length beside which one need not be known that is too small for the
            squares of float32, below 1e-15.

    Returns:
        The length, real; 1 where nothing was counted, so that a division by it changes nothing.
    """
    total, factor = sum_of_squares(x, axes, epsilon=epsilon, stored=stored, mask=mask)
    # The square root is kept off zero, where its derivative is infinite, before and after.
    positive = total > 0
    result = jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1)) * (1 / factor), 0)
    if mask is None:
        return result
    return jnp.where(jnp.any(mask, axes, keepdims=True), result, 1)
