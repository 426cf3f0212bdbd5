"""Mean and variance of an array, right in float32 whatever the mean."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Inexact


class Moments(NamedTuple):
    """Count, mean and variance over some axes, which are kept with size 1.

    The mean is held as a sum of two numbers, because one float32 cannot hold it where it is large
    against the deviation: at mean 1e4 the last bit of float32 is 1e-3.

    Attributes:
        counted: How many values were counted, float32.
        shift: The mean to the precision of the dtype; a constant to differentiation.
        residual: What the shift lacks of the mean.
        variance: The biased variance, mean of |x - mean|^2, real; 1 where nothing was counted.
    """

    counted: Array
    shift: Array
    residual: Array
    variance: Array

    @property
    def mean(self) -> Array:
        """The mean, rounded to the dtype; 0 where nothing was counted."""
        return self.shift + self.residual


def moments(
    x: Inexact[Array, "..."],
    axes: tuple[int, ...],
    *,
    mask: Bool[Array, "..."] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    axis_index_groups: Any = None,
    use_mean: bool = True,
    use_fast_variance: bool = True,
) -> Moments:
    r"""Computes count, mean and variance of `x` over `axes`.

    .. math:: \mu = \frac{1}{n} \sum x, \qquad \sigma^2 = \frac{1}{n} \sum |x - \mu|^2

    The values are first shifted by their mean as float32 finds it. What is left has a mean near
    zero, so that its mean square less its squared mean loses nothing to cancellation. Neither
    result depends on the shift, hence no derivative flows through it.

    Args:
        x: Values of any shape, float or complex. The result has their precision, so half
            precision is to be converted by the caller.
        axes: Non-negative axes to reduce.
        mask: Of the shape of `x`; true where a value counts. Masked values may be anything.
        axis_name: Named axis or axes of `vmap` or `shard_map`, over which sums and counts are
            pooled.
        axis_index_groups: Groups of indices of `axis_name` that are pooled among themselves.
        use_mean: If false the mean is taken to be 0, and the variance is the mean square.
        use_fast_variance: If false, the two-pass formula as it stands, whose mean is one number
            of the dtype, as in Flax.

    Returns:
        The moments, of the rank of `x`.
    """

    def across_devices(total):
        if axis_name is None:
            return total
        return lax.psum(total, axis_name, axis_index_groups=axis_index_groups)

    def pooled(values):
        return across_devices(jnp.sum(values, axes, keepdims=True))

    def kept(values):
        return values if mask is None else jnp.where(mask, values, 0)

    if mask is not None:
        count = pooled(mask.astype(jnp.float32))
        divisor = jnp.maximum(count, 1).astype(jnp.finfo(x.dtype).dtype)
    else:
        count = across_devices(math.prod(x.shape[axis] for axis in axes))
        divisor = max(count, 1)

    if use_mean and use_fast_variance:
        shift = _one_number(lax.stop_gradient(pooled(kept(x)) / divisor))
        centred = kept(x - shift)
        residual = pooled(centred) / divisor
        mean_square = pooled(squared_magnitude(centred)) / divisor
        variance = jnp.maximum(mean_square - squared_magnitude(residual), 0)
    elif use_mean:
        shift = pooled(kept(x)) / divisor
        variance = pooled(squared_magnitude(kept(x - shift))) / divisor
        residual = jnp.zeros_like(shift)
    else:
        variance = pooled(squared_magnitude(kept(x))) / divisor
        shift = residual = jnp.zeros_like(variance)
    counted = jnp.broadcast_to(jnp.asarray(count, jnp.float32), variance.shape)
    if mask is not None or count == 0:
        variance = jnp.where(counted > 0, variance, 1)
    return Moments(counted, shift, residual, variance)


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


def mix_moments(first: Moments, second: Moments, weight: float) -> Moments:
    r"""Moments of the mixture of two distributions, `1 - weight` of the first.

    .. math:: \mu = (1 - w) \mu_1 + w \mu_2, \qquad
        \sigma^2 = (1 - w) \sigma_1^2 + w \sigma_2^2 + w (1 - w) |\mu_2 - \mu_1|^2

    Where nothing was counted in the second, the mixture is the first. The counts are the first's.
    """
    share = jnp.where(second.counted > 0, weight, 0.0).astype(second.variance.dtype)
    # The means may be large against their distance: it is formed before anything is rounded.
    distance = second.shift - first.shift + (second.residual - first.residual)
    variance = (1 - share) * first.variance + share * second.variance
    variance = variance + share * (1 - share) * squared_magnitude(distance)
    return Moments(first.counted, first.shift, first.residual + share * distance, variance)


def unbiased(moments: Moments) -> Array:
    """The unbiased variance, n / (n - 1) times the biased one, for more than one value."""
    return moments.variance * (moments.counted / jnp.maximum(moments.counted - 1, 1))


def squared_magnitude(x: Array) -> Array:
    """The square of the absolute value, real for complex numbers too."""
    # The product of a complex number with its conjugate would carry a zero imaginary part along,
    # and the derivative of the absolute value is undefined at zero.
    if jnp.iscomplexobj(x):
        return lax.square(jnp.real(x)) + lax.square(jnp.imag(x))
    return lax.square(x)
