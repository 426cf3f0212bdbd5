"""Moments of a set from those of its parts: groups, devices, mixtures."""

import functools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from .arguments import ANY_NUMBERS, AXIS_NAME, checked, number, plain
from .whole_range import factor_of


class Moments(NamedTuple):
    """Count, mean and variance over some axes, which are kept with size 1.

    The mean is held as a sum of two numbers, because one float32 cannot hold it where it is large
    against the deviation: at mean 1e4 the last bit of float32 is 1e-3. The variance is held as that
    of the values times a power of two, because float32 holds the square of no value above 2e19 or
    below 1e-19.

    Attributes:
        counted: How many values were counted, float32.
        shift: A number near the mean; a constant to differentiation.
        residual: What the shift lacks of the mean.
        scaled_variance: The biased variance of the values times the factor, mean of
            |factor (x - mean)|^2, real; 1 where nothing was counted.
        factor: A power of two, real; a constant to differentiation. It is 1 unless a square does
            not fit the dtype; None is 1 everywhere.
    """

    counted: Array
    shift: Array
    residual: Array
    scaled_variance: Array
    factor: Array | None = None

    @property
    def mean(self) -> Array:
        """The mean, rounded to the dtype; 0 where nothing was counted."""
        return self.shift + self.residual

    @property
    def variance(self) -> Array:
        """The biased variance: infinity where the dtype cannot hold it, 1 of no value."""
        return self.variance_times(1.0)

    @property
    def factors(self) -> Array:
        """The factor, also where it is not given."""
        return jnp.ones_like(self.scaled_variance) if self.factor is None else self.factor

    def variance_times(self, factor: float | Array) -> Array:
        """The biased variance of the values times another factor."""
        if self.factor is None and isinstance(factor, float) and factor == 1:
            return self.scaled_variance
        # One by one, since the square of a factor is not in the range. A division would be joined
        # with others by the compiler.
        ratio = factor * (1 / self.factors)
        return self.scaled_variance * ratio * ratio

    def deviation(self, epsilon: float | Array) -> Array:
        """The square root of the variance and epsilon, which fits the dtype where they do not."""
        factor = self.factors
        return jnp.sqrt(self.scaled_variance + scaled_epsilon(epsilon, factor)) * (1 / factor)

    @property
    def size(self) -> Array:
        """About as large as the deviation, for what has no derivative."""
        return lax.stop_gradient(jnp.sqrt(self.scaled_variance) * (1 / self.factors))

    def plain(self) -> "Moments":
        """The same with a factor of 1; variances that the dtype cannot hold are infinite."""
        return self._replace(scaled_variance=self.variance, factor=None)


def _size(distance: Array) -> Array:
    return jnp.abs(lax.stop_gradient(distance))


def common_factor(parts: Sequence[Moments], *sizes: Array) -> Array:
    """The factor with which variances of several moments, and some squares, are in the range."""
    size = functools.reduce(jnp.maximum, [*(it.size for it in parts), *sizes])
    # Where all have 1, small squares do not count.
    most = functools.reduce(jnp.maximum, [it.factors for it in parts])
    return jnp.minimum(factor_of(size), most)


def scaled_epsilon(epsilon: float | Array, factor: Array) -> Array:
    """What epsilon is beside a variance of values times a factor; not 0, as one divides by both."""
    # An epsilon that half precision cannot hold may be one that it can, times the factors.
    wide = jnp.promote_types(factor.dtype, jnp.float32)
    large = factor.astype(wide)
    info = jnp.finfo(factor.dtype)
    # With a factor, variances are about 1. Without, they may be as small as the least numbers of
    # half precision with all digits, and are not to be changed.
    least = max(float(info.smallest_subnormal), float(jnp.finfo(wide).tiny))
    least = jnp.where(factor == 1, least, float(info.tiny))
    return jnp.maximum(jnp.asarray(epsilon, wide) * large * large, least).astype(factor.dtype)


MOMENTS = plain(
    "moments, as functional.moments returns them",
    lambda value: (
        isinstance(value, Moments)
        and all(isinstance(part, np.ndarray | jax.Array) for part in value[:4])
        and isinstance(value.factor, np.ndarray | jax.Array | None)
    ),
)
_SHARE = plain("a share, a number from 0 to 1", number(0.0, 1.0))


@checked(first=MOMENTS, second=MOMENTS, weight=_SHARE)
def mix_moments(first: Moments, second: Moments, weight: float) -> Moments:
    r"""Moments of the mixture of two distributions, `1 - weight` of the first.

    .. math:: \mu = (1 - w) \mu_1 + w \mu_2, \qquad
        \sigma^2 = (1 - w) \sigma_1^2 + w \sigma_2^2 + w (1 - w) |\mu_2 - \mu_1|^2

    Where nothing was counted in the second, the mixture is the first. The counts are the first's.
    """
    share = jnp.where(second.counted > 0, weight, 0.0).astype(second.variance.dtype)
    # The means may be large against their distance: it is formed before anything is rounded.
    distance = second.shift - first.shift + (second.residual - first.residual)
    second = second._replace(scaled_variance=jnp.where(share > 0, second.scaled_variance, 0))
    factor = common_factor((first, second), jnp.where(share > 0, _size(distance), 0))
    variance = (1 - share) * first.variance_times(factor) + share * second.variance_times(factor)
    variance = variance + share * (1 - share) * squared_magnitude(distance * factor)
    return Moments(first.counted, first.shift, first.residual + share * distance, variance, factor)


@checked(moments=MOMENTS)
def unbiased(moments: Moments) -> Array:
    """The unbiased variance, n / (n - 1) times the biased one, for more than one value."""
    return moments.variance * (moments.counted / jnp.maximum(moments.counted - 1, 1))


@checked(x=ANY_NUMBERS)
def squared_magnitude(x: Array) -> Array:
    """The square of the absolute value, real for complex numbers too."""
    # The product of a complex number with its conjugate would carry a zero imaginary part along,
    # and the derivative of the absolute value is undefined at zero.
    if jnp.iscomplexobj(x):
        return lax.square(jnp.real(x)) + lax.square(jnp.imag(x))
    return lax.square(x)


@checked(groups=MOMENTS)
def pool_moments(
    groups: Moments,
    *,
    axis_name: str | tuple[str, ...] | None = None,
    axis_index_groups: Any = None,
) -> Moments:
    r"""Moments of the union of groups, from the moments of each.

    .. math:: \mu = \sum_g \frac{n_g}{n} \mu_g, \qquad
        \sigma^2 = \sum_g \frac{n_g}{n} \left(\sigma_g^2 + |\mu_g - \mu|^2\right)

    Args:
        groups: Moments with the groups along the first axis, and counts of the same shape.
        axis_name: Named axis over which the groups of all devices are pooled.
        axis_index_groups: Groups of indices of `axis_name` that are pooled among themselves.

    Returns:
        Moments whose first axis has size 1.
    """

    pooled = partial(_sum_over_groups, axis_name=axis_name, axis_index_groups=axis_index_groups)
    count = pooled(groups.counted)
    nonempty = groups.counted > 0
    # The 1 of an empty group may be infinite in the unit of the others.
    groups = groups._replace(scaled_variance=jnp.where(nonempty, groups.scaled_variance, 0))
    share = groups.counted / jnp.maximum(count, 1)
    shift = pooled(share * groups.shift)
    residual = pooled(share * (groups.shift - shift + groups.residual))
    distance = groups.shift - shift + groups.residual - residual
    distance = jnp.where(nonempty, distance, 0)
    if groups.factor is None:
        variance = pooled(share * (groups.scaled_variance + squared_magnitude(distance)))
        return Moments(count, shift, residual, jnp.where(count > 0, variance, 1))
    # No more than the most that any group has: where those have 1, small squares do not count.
    size, most = (
        jnp.max(jnp.where(nonempty, it, 0), 0, keepdims=True)
        for it in (jnp.maximum(groups.size, _size(distance)), groups.factors)
    )
    if axis_name is not None:
        size, most = (
            lax.pmax(it, axis_name, axis_index_groups=axis_index_groups) for it in (size, most)
        )
    factor = jnp.where(count > 0, jnp.minimum(factor_of(size), most), 1)
    square = squared_magnitude(distance * factor)
    variance = pooled(share * (groups.variance_times(factor) + square))
    return Moments(count, shift, residual, jnp.where(count > 0, variance, 1), factor)


@checked(groups=MOMENTS)
def average_moments(
    groups: Moments,
    *,
    axis_name: str | tuple[str, ...] | None = None,
    axis_index_groups: Any = None,
) -> Moments:
    """Plain averages of the means and variances of the groups in which anything was counted.

    Arguments and result are those of `pool_moments`. The variance between groups is left out.
    """
    pooled = partial(_sum_over_groups, axis_name=axis_name, axis_index_groups=axis_index_groups)
    nonempty = groups.counted > 0
    number = jnp.maximum(pooled(nonempty.astype(jnp.float32)), 1)
    shift, residual, variance = (
        pooled(jnp.where(nonempty, statistic, 0)) / number
        for statistic in (groups.shift, groups.residual, groups.variance)
    )
    return Moments(pooled(groups.counted), shift, residual, variance)


@checked(groups=MOMENTS, axis_name=AXIS_NAME)
def gather_groups(
    groups: Moments, *, axis_name: str | tuple[str, ...], axis_index_groups: Any = None
) -> Moments:
    """The groups of all devices, device by device, along the first axis.

    Arguments are those of `pool_moments`.
    """
    return jax.tree.map(partial(_gather, axis_name, axis_index_groups), groups)


def pool_devices(
    local: Moments,
    axis_name: str | tuple[str, ...],
    axis_index_groups: Any,
    *,
    counts_differ: bool,
) -> Moments:
    """Moments over all devices, in one exchange of small arrays.

    Args:
        local: Those of a device.
        axis_name: Named axis over which devices are pooled.
        axis_index_groups: Groups of indices of `axis_name` that are pooled among themselves.
        counts_differ: Whether the devices may have counted differently many values.
    """
    arrays = [local.counted, local.shift, local.residual, local.scaled_variance, local.factors]
    arrays = arrays if counts_differ else arrays[1:]
    stacked = jnp.stack(jnp.broadcast_arrays(*arrays))
    gathered = jnp.moveaxis(_gather(axis_name, axis_index_groups, stacked[None]), 1, 0)
    gathered = [
        (a if jnp.iscomplexobj(b) else a.real).astype(b.dtype)
        for a, b in zip(gathered, arrays, strict=True)
    ]
    if not counts_differ:
        gathered = [jnp.broadcast_to(local.counted, gathered[0].shape), *gathered]
    return jax.tree.map(lambda a: a[0], pool_moments(Moments(*gathered)))


def _gather(axis_name: str | tuple[str, ...], axis_index_groups: Any, x: Array) -> Array:
    """Puts together the rows of all devices."""
    devices = lax.psum(1, axis_name, axis_index_groups=axis_index_groups)
    place = lax.axis_index(axis_name)
    if axis_index_groups is not None:
        order = np.argsort(np.concatenate([np.asarray(group) for group in axis_index_groups]))
        place = jnp.asarray(order % devices)[place]
    # A sum over devices, each with its own rows filled, since its result is known to be the same
    # everywhere, which `shard_map` does not know of `all_gather`.
    rows = jnp.zeros((devices, *x.shape), x.dtype).at[place].set(x)
    rows = lax.psum(rows, axis_name, axis_index_groups=axis_index_groups)
    return rows.reshape(-1, *x.shape[1:])


def _sum_over_groups(
    values: Array, axis_name: str | tuple[str, ...] | None, axis_index_groups: Any
) -> Array:
    total = jnp.sum(values, axis=0, keepdims=True)
    if axis_name is None:
        return total
    return lax.psum(total, axis_name, axis_index_groups=axis_index_groups)
