"""Mean and variance of an array, right in float32 whatever the mean."""

import math
from functools import partial
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Inexact

from .apart import apart
from .arguments import checked
from .blocks import Blocks, blocks
from .pooling import Moments, pool_devices, squared_magnitude
from .terms import term
from .whole_range import squares_in_range


@checked()
def moments(
    x: Inexact[Array, "..."],
    axes: tuple[int, ...],
    *,
    epsilon: float | Array = 0.0,
    stored: Array | None = None,
    mask: Bool[Array, "..."] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    axis_index_groups: Any = None,
    use_mean: bool = True,
    use_fast_variance: bool = True,
) -> Moments:
    r"""Computes count, mean and variance of `x` over `axes`.

    .. math:: \mu = \frac{1}{n} \sum x, \qquad \sigma^2 = \frac{1}{n} \sum |x - \mu|^2

    The values are first shifted by a number s near their mean, in one pass with mean square and
    mean of what is left:

    .. math:: \mu = s + \rho, \qquad \rho = \frac{1}{n} \sum (x - s), \qquad
        \sigma^2 = \frac{1}{n} \sum |x - s|^2 - |\rho|^2

    The shift is the mean of all values, of those that count, or of a sixteenth where that is
    cheaper. Then :math:`|\rho|^2 \leq 16 \sigma^2`, and cancellation costs at most as many units in
    the last place, usually one. Neither result depends on it: no derivative flows through.

    Args:
        x: Values of any shape, float or complex. The result has their precision, so half
            precision is to be converted by the caller.
        axes: Non-negative axes to reduce, in order.
        epsilon: What will be added to the variance. Beside it, a variance too small for the squares
            of float32, below 1e-30, need not be known.
        stored: The array that `x` was converted from, if it was. Without a mask its values are
            read instead of those of `x`, which take up more room; the derivative is that to `x`.
        mask: Of the shape of `x`; true where a value counts. Masked values may be anything.
        axis_name: Named axis or axes of `vmap` or `shard_map`, over which the moments are pooled
            by counts.
        axis_index_groups: Groups of indices of `axis_name` that are pooled among themselves.
        use_mean: If false the mean is taken to be 0, and the variance is the mean square.
        use_fast_variance: If false, the two-pass formula as it stands, whose mean is one number
            of the dtype, as in Flax.

    Returns:
        The moments, of the rank of `x`.
    """
    if mask is not None:
        count = jnp.sum(mask, axes, keepdims=True, dtype=jnp.float32)
        divisor = jnp.maximum(count, 1).astype(jnp.finfo(x.dtype).dtype)
    else:
        count = math.prod(x.shape[axis] for axis in axes)
        divisor = max(count, 1)
        symbol = not isinstance(divisor, int)  # of an exported program
        divisor = (
            jnp.asarray(divisor).astype(jnp.finfo(x.dtype).dtype) if symbol else float(divisor)
        )

    def mean(values):
        values = values if mask is None else jnp.where(mask, values, 0)
        return jnp.sum(values, axes, keepdims=True) / divisor

    read = x if stored is None else stored
    shift = residual = None
    if use_mean and use_fast_variance and mask is None:
        shift = _near_mean(lax.stop_gradient(read), axes, x.dtype)
        residual = _mean(read, x, shift, axes, 1)
    elif use_mean:
        shift = lax.stop_gradient(mean(x))
        shift = _one_number(shift) if use_fast_variance else shift
        residual = mean(x - shift)
    variance, factor = mean_square(read, x, shift, mask, divisor, axes=axes, epsilon=epsilon)
    if residual is not None and use_fast_variance:
        mean_of_squares = variance
        variance = jnp.maximum(variance - squared_magnitude(residual * factor), 0)
        # Where both overflow, their difference would be NaN.
        variance = jnp.where(jnp.isinf(mean_of_squares), mean_of_squares, variance)
    elif residual is not None:
        # The mean is the shift, for what rounding took from that is not looked at. But it is what
        # moves: the shift is a constant.
        variance = variance - _derivatives_alone(squared_magnitude(residual * factor))
        residual = _derivatives_alone(residual)
    shift = jnp.zeros_like(variance) if shift is None else shift
    residual = jnp.zeros_like(shift) if residual is None else residual
    counted = jnp.broadcast_to(jnp.asarray(count, jnp.float32), variance.shape)
    if mask is not None or count == 0:
        variance = jnp.where(counted > 0, variance, 1)
        factor = jnp.where(counted > 0, factor, 1)
    local = Moments(counted, shift, residual, variance, factor)
    if axis_name is None:
        return local
    return pool_devices(local, axis_name, axis_index_groups, counts_differ=mask is not None)


@jax.custom_jvp
def _derivatives_alone(x: Array) -> Array:
    """Zeros that have the derivatives of x; where those are not asked for, x is not computed."""
    return jnp.zeros_like(x)


@_derivatives_alone.defjvp
def _(primals, tangents):
    return _derivatives_alone(*primals), tangents[0]


# In elements of the last axis. Of rows of 64 a part took a CPU longer than all; of 768 and of 4096
# it saved a GPU time and a CPU nothing.
_LEAST_OF_PARTS = 512


def _near_mean(x: Array, axes: tuple[int, ...], dtype: Any) -> Array:
    """A number near the mean over the axes: that of some of the values, where it is cheaper."""
    if x.size == 0:
        return jnp.zeros([1 if axis in axes else n for axis, n in enumerate(x.shape)], dtype)
    if not axes:
        return x.astype(dtype)
    # The first axis is the batch, which may be spread over devices, and so may another one that its
    # type names. (Of one that only the compiler knows to be spread, it sends the part around.) Of
    # the last a part is cheaper to read than all if it is a few cache lines. Of few digits none can
    # be spared.
    spread = jax.typeof(x).sharding.spec
    length = x.shape[-1]
    long = isinstance(length, int) and length >= _LEAST_OF_PARTS  # not a symbol
    last = x.ndim if long else x.ndim - 1
    axis = next((a for a in axes if 0 < a < last and spread[a] is None), None)
    if axis is not None and jnp.finfo(dtype).nmant >= 23:
        x = lax.slice_in_dim(x, 0, -(-x.shape[axis] // 16), axis=axis)
    return _one_number(jnp.mean(x.astype(dtype), axes, keepdims=True))


def _one_number(x: Array) -> Array:
    """Rounds off the last bit, so that every place of a compiled program sees the same number.

    A compiler that computes a mean anew where it is used may contract the division with the
    subtraction that follows, and so subtract a number that is not the one it subtracts elsewhere:
    at mean 1e4 that is as much as the deviation of 1e-2 can bear. A rounding keeps them apart.
    """
    if jnp.iscomplexobj(x):
        return lax.complex(_one_number(x.real), _one_number(x.imag))
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, info.nmant - 1)


# Two reductions with their derivatives. Of `stored` and `x`, which are the same numbers, the one is
# read and the other has the tangent: rounded to half precision for each of several terms, a
# gradient would be worse and slower. The tangent of `stored` is that of `x`, and left out.


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _mean(stored: Array, x: Array, shift: Array, axes: tuple[int, ...], place: int) -> Array:
    """The mean of x - shift, which is taken to be constant."""
    count = max(math.prod(x.shape[axis] for axis in axes), 1)
    stored, shift = apart(place, (stored, shift), x)
    cut = blocks(x, axes)
    centred = cut.view(stored).astype(x.dtype) - cut.view(shift)
    return apart(place, cut.sum(centred) / count, x)


@_mean.defjvp
def _(axes, place, primals, tangents):
    x, tangent = primals[1], tangents[1]
    count = max(math.prod(x.shape[axis] for axis in axes), 1)

    def derivative(tangent):
        return jnp.sum(tangent, axes, keepdims=True) / count

    return _mean(*primals, axes, place), term(place, derivative, x, tangent)


def mean_square(
    stored: Array,
    x: Array,
    shift: Array | None,
    mask: Array | None,
    divisor: float | Array,
    *,
    axes: tuple[int, ...],
    epsilon: float | Array,
) -> tuple[Array, Array]:
    """The mean of |f (x - shift)|^2, and the factor f that keeps it in the range of the dtype.

    The derivative to x is the mean of 2 Re(f^2 (x - shift)* dx); shift and factor are constant.

    Args:
        stored: As in `moments`.
        x: As in `moments`.
        shift: What is subtracted, in the shape of the result; None for 0.
        mask: True where a value counts; None if all do.
        divisor: How many count.
        axes: To reduce.
        epsilon: As in `moments`.
    """
    # Of an epsilon that is an array, nothing is known.
    known = float(epsilon) if isinstance(epsilon, Real) else None
    return _mean_square_compiled(stored, x, shift, mask, divisor, axes, known)


def sum_of_squares(
    x: Array,
    axes: tuple[int, ...],
    *,
    epsilon: float | Array,
    stored: Array | None = None,
    mask: Array | None = None,
) -> tuple[Array, Array]:
    """The sum of |f x|^2, and the factor f, as in `mean_square`."""
    read = x if stored is None else stored
    return mean_square(read, x, None, mask, 1.0, axes=axes, epsilon=epsilon)


@partial(jax.custom_jvp, nondiff_argnums=(5, 6))
def _mean_square(
    stored: Array,
    x: Array,
    shift: Array | None,
    mask: Array | None,
    divisor: Any,
    axes: tuple[int, ...],
    epsilon: float | None,
) -> tuple[Array, Array]:
    stored, shift = apart(2, (stored, shift), x)
    cut = blocks(x, axes)

    def mean(factor):
        centred = cut.view(stored).astype(x.dtype)
        centred = centred if shift is None else centred - cut.view(shift)
        centred = centred if factor is None else centred * _viewed(cut, factor)
        square = squared_magnitude(centred)
        square = square if mask is None else jnp.where(cut.view(mask), square, 0)
        return apart(2, cut.sum(square) / divisor, x)

    return squares_in_range(mean, epsilon)


def _viewed(cut: Blocks, factor: Array) -> Array:
    return cut.view(factor) if factor.ndim else factor


@_mean_square.defjvp
def _(axes, epsilon, primals, tangents):
    stored, x, shift, mask, divisor = primals
    result, factor = _mean_square(*primals, axes, epsilon)

    def derivative(tangent, stored, shift, mask, factor, weight):
        centred = stored.astype(x.dtype) if shift is None else stored.astype(x.dtype) - shift
        centred = centred if mask is None else jnp.where(mask, centred, 0)
        # One factor here and one after the sum: the square of one is not in the range.
        product = jnp.real(jnp.conj(centred * factor) * tangent)
        return jnp.sum(product, axes, keepdims=True) * weight

    weight = factor * (2 / divisor)
    tangent = term(3, derivative, x, tangents[1], stored, shift, mask, factor, weight)
    return (result, factor), (tangent, jnp.zeros_like(factor))


# Outside of `jax.jit` a branch is compiled at each call, unless it is part of a function that is
# compiled once.
_mean_square_compiled = jax.jit(_mean_square, static_argnums=(5, 6), inline=True)
