"""Running statistics: how those of a batch enter the ones kept for evaluation."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Real

from .arguments import RUNNING, checked
from .spread import Spec, spec_of, spread_as


@checked(**RUNNING)
def update_running(
    mean: Inexact[Array, "*features"],
    variance: Float[Array, "*features"],
    updates: Real[Array, ""],
    batch_mean: Inexact[Array, "batches *features"],
    batch_variance: Float[Array, "batches *features"],
    counts: Float[Array, "batches *features"],
    *,
    momentum: float | Array | None,
    debias: bool,
) -> tuple[Array, Array, Array]:
    r"""Lets the statistics of some batches, in order, enter the running ones.

    For each batch with statistics :math:`s`, momentum :math:`m` (the share kept) and :math:`n`
    updates including this one:

    .. math:: r \leftarrow r + w (s - r), \qquad
        w = \begin{cases} 1 - m & \text{exponential average} \\
            (1 - m) / (1 - m^n) & \text{the same, debiased} \\
            1 / n & \text{cumulative average (momentum None)} \end{cases}

    The debiased weight is the exponential average from zero divided by :math:`1 - m^n` (Kingma and
    Ba, 2015, section 3), written so that the value kept is the debiased one. All batches enter at
    once by the closed form of that recursion.

    A batch with a non-finite statistic, such as a variance that the dtype cannot hold, or of which
    nothing was counted, is passed over; a feature of which nothing was counted keeps its value.
    What is kept stays in the dtype and on the devices that it came in and on, whatever those of the
    batches are; a complex mean alone makes a real one complex.

    Args:
        mean: Running mean.
        variance: Running variance.
        updates: Number of updates so far, which debiased and cumulative averages go by.
        batch_mean: Means of the batches, in order.
        batch_variance: Variances of the batches.
        counts: Number of values behind each of them.
        momentum: Share of the old statistics that an update keeps; None for the plain average.
        debias: Whether the exponential average is debiased.

    Returns:
        The new mean, variance and number of updates.
    """
    # Which is that of the variance, since the mean may be complex.
    dtype = jnp.finfo(variance.dtype).dtype
    batch_mean = _like_running(batch_mean, mean)
    batch_variance = _like_running(batch_variance, variance)
    counts = spread_as(counts, _spec_of_batches(variance)).astype(dtype)
    number = updates.astype(dtype)
    features = tuple(range(1, batch_mean.ndim))
    # The difference of a number that is not finite to itself is NaN, and so is the sum.
    nothing = jnp.sum(batch_mean - batch_mean + (batch_variance - batch_variance), features)
    usable = (nothing == 0) & (jnp.max(counts, features, initial=0) > 0)

    new_number = number + jnp.sum(usable, dtype=dtype)
    if momentum is None:
        weights = usable.astype(dtype) / jnp.maximum(new_number, 1)
        kept = 1 - jnp.sum(weights)
    else:
        # Each usable batch multiplies all that came before it by the momentum.
        momentum = momentum if isinstance(momentum, float | int) else momentum.astype(dtype)
        decay = jnp.where(usable, jnp.asarray(momentum, dtype), jnp.ones((), dtype))
        later = jnp.concatenate([jnp.cumprod(decay[:0:-1])[::-1], jnp.ones(1, dtype)])
        weights = usable.astype(dtype) * (1 - momentum) * later
        kept = jnp.prod(decay)
        if debias:
            # Not 1 less the weights, of which rounding would leave a share of the initial value.
            total = _one_minus_power(momentum, new_number)
            before = jnp.where(number > 0, _one_minus_power(momentum, number), 0)
            weights, kept = weights / total, kept * before / total

    column = (-1,) + (1,) * mean.ndim

    # In the shape of the batches, as JAX asks of what it selects by on an explicit mesh.
    entered = usable.reshape(column) & (counts >= 0)
    counted = entered & (counts > 0)

    def average(old, batches):
        batches = jnp.where(counts > 0, batches, jnp.broadcast_to(old[None], batches.shape))
        batches = jnp.where(entered, batches, 0)
        new = kept * old + jnp.sum(weights.reshape(column) * batches, axis=0)
        return jnp.where(jnp.any(counted, axis=0), new, old)

    new_updates = new_number.astype(updates.dtype)
    return average(mean, batch_mean), average(variance, batch_variance), new_updates


def _like_running(batches: Array, running: Array) -> Array:
    """Statistics of batches in the dtype and on the devices of the running ones.

    Complex ones stay complex, since a real state cannot hold their mean.
    """
    dtype = running.dtype
    if jnp.iscomplexobj(batches):
        dtype = jnp.promote_types(dtype, jnp.complex64)
    return spread_as(batches, _spec_of_batches(running)).astype(dtype)


def _spec_of_batches(running: Array) -> Spec:
    return (None, *spec_of(running))


def _one_minus_power(momentum: float | Array, updates: Array) -> Array:
    """Returns 1 - momentum^updates without cancellation; 1 where that is 0."""
    # In double precision where it can be: the logarithm of a momentum near 1 has few digits left.
    if isinstance(momentum, float | int):
        logarithm = math.log(momentum) if momentum > 0 else -math.inf
    else:
        logarithm = jnp.log1p(momentum - 1)
    power = -jnp.expm1(jnp.maximum(updates, 1) * logarithm)
    return jnp.where(power > 0, power, 1.0)
