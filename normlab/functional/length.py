"""The Euclidean length of vectors, with a derivative where it is zero."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from .arguments import checked
from .moments import mean_square


@checked()
def length(
    x: Inexact[Array, "..."],
    axes: tuple[int, ...],
    *,
    mask: Bool[Array, "..."] | None = None,
    epsilon: float | Array = 0.0,
) -> Array:
    r"""Computes the Euclidean length of `x` over `axes`.

    .. math:: \|x\| = \sqrt{\sum |x|^2}

    Its derivative at the zero vector, which has none, is taken to be 0.

    Args:
        x: Values, float or complex.
        axes: Axes to reduce, which are kept with size 1.
        mask: Of the shape of `x`; true where a value counts. Masked values may be anything.
        epsilon: The square of a length beside which one need not be known that is too small for the
            squares of float32, below 1e-15.

    Returns:
        The length, real; 1 where nothing was counted, so that a division by it changes nothing.
    """
    total, factor = mean_square(x, x, None, mask, 1.0, axes=axes, epsilon=epsilon)
    # The square root is kept off zero, where its derivative is infinite, before and after.
    positive = total > 0
    result = jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1)) * (1 / factor), 0)
    if mask is None:
        return result
    return jnp.where(jnp.any(mask, axes, keepdims=True), result, 1)
