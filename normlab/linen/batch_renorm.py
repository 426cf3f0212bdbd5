"""Batch renormalization."""

import math
from dataclasses import field
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from ..functional import Moments
from ..functional.whole_range import factor_of
from .batch_norm import BatchInput, BatchNorm, Running


class BatchRenorm(BatchNorm):
    r"""Batch normalization corrected, within limits, to what the running statistics would give.

    .. math:: y = \left(\frac{x - \mu_B}{\sigma_B} r + d\right) \gamma + \beta, \qquad
        r = \mathrm{clip}\left(\frac{\sigma_B}{\sigma}, \frac{1}{r_{max}}, r_{max}\right), \quad
        d = \mathrm{clip}\left(\frac{\mu_B - \mu}{\sigma}, -d_{max}, d_{max}\right)

    with :math:`\sigma_B = \sqrt{\sigma_B^2 + \epsilon}` of the batch and the running mean and
    deviation :math:`\mu, \sigma`. No gradient flows through r and d. Without a limit it is
    normalization by running statistics; with r = 1 and d = 0 it is batch normalization. The limits
    are these until `start_steps` updates were made, and rise in a straight line to `r_max` at
    `r_steps` and `d_max` at `d_steps`.

    Fields and call are those of `BatchNorm`. An infinite limit is allowed, and is none at all from
    `r_steps` or `d_steps` on.

    State:
        That of `BatchNorm`, with `count` always. What is averaged over batches is the deviation
        with epsilon in it, as in the paper, from 1; `var` holds its square less epsilon, so that
        evaluation, and layers that take over the state, have a variance.

    Attributes:
        r_max: Limit of the factor r, at least 1.
        d_max: Limit of the summand d, at least 0.
        start_steps: Updates before which nothing is corrected.
        r_steps: Updates after which r has its full limit.
        d_steps: Updates after which d has its full limit.

    Source: Ioffe, 2017, "Batch Renormalization", algorithm 1; limits and steps of section 4.
    """

    r_max: float = field(default=3.0, kw_only=True)
    d_max: float = field(default=5.0, kw_only=True)
    start_steps: int = field(default=5_000, kw_only=True)
    r_steps: int = field(default=40_000, kw_only=True)
    d_steps: int = field(default=25_000, kw_only=True)

    _corrects_batch = True

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: If a limit or a number of steps has a value it cannot have.
        """
        super().__post_init__()
        for name in ("r_steps", "d_steps"):
            if getattr(self, name) < self.start_steps:
                raise ValueError(
                    f"BatchRenorm: {name}={getattr(self, name)} lies before "
                    f"start_steps={self.start_steps}; the limits rise from the one to the other."
                )

    def _batch_moments(self, given: BatchInput, running: Running | None) -> tuple[Moments, Moments]:
        assert running is not None  # For _corrects_batch is set.
        batch = self._moments_of_batch(given)
        mean = self._beside(given, running.mean.value).astype(batch.shift.dtype)
        variance = self._beside(given, running.var.value).astype(batch.scaled_variance.dtype)
        deviation = jnp.sqrt(variance + self.epsilon)
        batch_deviation = batch.deviation(self.epsilon)
        updates = jnp.asarray(running.count.value if running.count else 0, variance.dtype)
        r_max, d_max = self._limits(updates)
        r = lax.stop_gradient(jnp.clip(batch_deviation / deviation, 1 / r_max, r_max))
        distance = lax.stop_gradient(batch.shift - mean + batch.residual) / deviation
        d = lax.stop_gradient(_clip_magnitude(distance, d_max))
        # With the centre mu_B - d sigma_B / r and the deviation sigma_B / r, the correction is a
        # normalization like any other.
        # A deviation that overflows is not to make NaN of a correction that is none.
        distance = jnp.where(d == 0, 0, d * batch_deviation / r)
        # The square of r need not be in the range: it is taken in units in which r is about 1.
        unit = 1 / factor_of(r)
        ratio, factor = unit / r, batch.factors * unit
        beside = batch.factors * ratio
        corrected = batch._replace(
            residual=batch.residual - distance,
            scaled_variance=batch.scaled_variance * ratio * ratio
            + (self.epsilon * beside * beside - self.epsilon * factor * factor),
            factor=factor,
        )
        return corrected, self._for_running(batch)

    def _limits(self, updates: Array) -> tuple[Array, Array]:
        """The limits of r and d after some updates."""

        def rising(start: float, limit: float, steps: int) -> Array:
            if math.isinf(limit):
                return jnp.where(updates >= steps, limit, start)
            share = (updates - self.start_steps) / max(steps - self.start_steps, 1)
            share = jnp.where(updates >= steps, 1, jnp.clip(share, 0, 1))
            return start + share * (limit - start)

        return rising(1.0, self.r_max, self.r_steps), rising(0.0, self.d_max, self.d_steps)

    def _to_average(self, variance: ArrayLike) -> Any:
        return jnp.sqrt(variance + self.epsilon)

    def _from_average(self, average: Array) -> Array:
        # Rounding may take a variance that is small against epsilon below zero.
        return jnp.maximum(average**2 - self.epsilon, 0)


def _clip_magnitude(x: Array, limit: Array) -> Array:
    """Limits the absolute value, of complex numbers too."""
    if not jnp.iscomplexobj(x):
        return jnp.clip(x, -limit, limit)
    magnitude = jnp.abs(x)
    return x * jnp.where(magnitude > limit, limit / magnitude, 1)
