"""Groups of channels: the statistics of each, given to its channels."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from .arguments import checked
from .moments import moments
from .pooling import MOMENTS, Moments, pool_moments
from .spread import gathered, join_axes, small_beside, split_axis


@checked()
def group_moments(
    x: Inexact[Array, "..."],
    axes: tuple[int, ...],
    groups: int,
    *,
    channel_axis: int = -1,
    epsilon: float | Array = 0.0,
    stored: Array | None = None,
    mask: Bool[Array, "..."] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    axis_index_groups: Any = None,
    use_fast_variance: bool = True,
) -> Moments:
    r"""Computes count, mean and variance over `axes` and groups of neighbouring channels.

    .. math:: \mu_g = \frac{1}{n} \sum_{c \in g} \sum x, \qquad
        \sigma_g^2 = \frac{1}{n} \sum_{c \in g} \sum |x - \mu_g|^2

    Args:
        x: Values of any shape, float or complex.
        axes: Non-negative axes to reduce, without that of the channels.
        groups: Number of groups; divides the number of channels.
        channel_axis: Axis of the channels.
        epsilon: As in `moments`.
        stored: As in `moments`.
        mask: Of the shape of `x`; true where a value counts.
        axis_name: Named axis over which sums and counts are pooled.
        axis_index_groups: Groups of indices of `axis_name` that are pooled among themselves.
        use_fast_variance: As in `moments`.

    Returns:
        The moments, of the rank of `x`: size 1 on `axes`, and on the axis of the channels each
        channel's are those of its group.
    """
    axis = channel_axis % x.ndim
    size = x.shape[axis] // groups

    def members(a):
        return split_axis(a, axis, groups, size)

    def spread(a):
        copies = jnp.broadcast_to(a, (*a.shape[: axis + 1], size, *a.shape[axis + 2 :]))
        return small_beside(x, join_axes(copies, axis))

    of = partial(
        moments,
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        use_fast_variance=use_fast_variance,
    )
    if not axes:  # Each channel of an example is a single number.
        cut = jax.tree.map(members, (x, stored, mask))
        return jax.tree.map(spread, of(cut[0], (axis + 1,), stored=cut[1], mask=cut[2]))

    # Channels are put together on the small arrays of their statistics, so that the input keeps
    # its layout: cut into groups it would be reduced over a last axis of a few channels.
    of_channel = of(x, axes, stored=stored, mask=mask)
    return jax.tree.map(spread, pool_axes(jax.tree.map(members, of_channel), (axis + 1,)))


@checked(statistics=MOMENTS)
def pool_axes(statistics: Moments, axes: tuple[int, ...]) -> Moments:
    """Moments of the union over some axes of moments, which are kept with size 1."""

    def to_front(a):
        for axis in axes:
            a = gathered(a, axis)
        kept = [axis for axis in range(a.ndim) if axis not in axes]
        a = jnp.transpose(a, (*axes, *kept))
        # Written out, since a size of -1 is undefined for an empty batch.
        return a.reshape(math.prod(a.shape[: len(axes)]), *a.shape[len(axes) :])

    pooled = pool_moments(jax.tree.map(to_front, statistics))
    return jax.tree.map(lambda a: jnp.expand_dims(a[0], axes), pooled)
