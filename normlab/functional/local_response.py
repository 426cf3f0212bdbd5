"""Local response normalization: each channel by the energy of its neighbours."""

import math
from numbers import Real
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Inexact

from .arguments import checked
from .normalize import reciprocal
from .pooling import squared_magnitude
from .spread import gathered, spec_of, spread_as


@checked()
def local_response(
    x: Inexact[Array, "..."],
    *,
    size: int,
    k: float,
    alpha: float,
    beta: float,
    average: bool,
    channel_axis: int = -1,
    mask: Bool[Array, "..."] | None = None,
) -> Array:
    r"""Divides each channel by a power of the summed squares of its neighbourhood.

    .. math:: y_i = x_i \Big/ \Big(k + \alpha
        \sum_{j=\max(0, i-\lfloor n/2 \rfloor)}^{\min(c-1, i+\lfloor n/2 \rfloor)}
        |x_j|^2\Big)^\beta

    Args:
        x: Values, float or complex.
        size: Size of the neighbourhood, n. An even one holds n + 1 channels, half of n on each
            side.
        k: Constant that keeps the divisor off zero.
        alpha: Weight of the sum.
        beta: Power of the divisor.
        average: Whether alpha is divided by `size`.
        channel_axis: Axis of the channels.
        mask: Of the shape of `x`; masked values are left out of the sums, as are channels beyond
            the first and the last.

    Returns:
        An array of the shape of `x`.
    """
    # In a large unit the squares of values up to 1e30 are in the range, at the usual
    # beta of 0.75. Those that it loses are
    # small beside k, which is in the range in that unit too. The unit is kept from the compiler,
    # which would draw its square out of the sum.
    exponent = _exponent(k, beta, x.dtype)
    unit = lax.optimization_barrier(jnp.asarray(2.0**-exponent, jnp.finfo(x.dtype).dtype))
    square = squared_magnitude(x * unit)
    if mask is not None:
        square = jnp.where(mask, square, 0)
    # Summed anew for each channel: differences of one cumulative sum would lose the digits of a
    # small neighbourhood beside a large one.
    axis = channel_axis % x.ndim
    reach = min(size // 2, x.shape[axis])
    of_axis = [reach if a == axis else 0 for a in range(x.ndim)]
    energy = lax.reduce_window(
        gathered(square, axis),
        0.0,
        lax.add,
        window_dimensions=tuple(2 * n + 1 for n in of_axis),
        window_strides=(1,) * x.ndim,
        padding=tuple((n, n) for n in of_axis),
    )
    energy = spread_as(energy, spec_of(x))
    base = k * 4.0**-exponent + (alpha / size if average else alpha) * energy
    return x * reciprocal(_power(base, beta)) * 2.0 ** (-2 * exponent * beta)


def _exponent(k: float | Array, beta: float, dtype: Any) -> int:
    """The power of two of the largest unit in which all that is made of k is in the range.

    Of the power of k, the derivative of its reciprocal has the square.
    """
    if not isinstance(k, Real) or k == 0:
        return 0
    info = jnp.finfo(dtype)
    least = (info.minexp + 4) / max(2 * beta, 1)
    room = math.floor(math.log2(float(k)) - least)
    return min(max(room // 2, 0), 3 * info.maxexp // 8)


def _power(base: Array, exponent: float) -> Array:
    """A power; where the exponent is in quarters by square roots, several times as fast."""
    if 4 * exponent not in (1, 2, 3, 4):
        return jnp.power(base, exponent)
    root = jnp.sqrt(base)
    return {1: jnp.sqrt(root), 2: root, 3: root * jnp.sqrt(root), 4: base}[int(4 * exponent)]
