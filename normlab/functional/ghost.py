"""Ghost batches: cutting a batch into groups, and putting their statistics together."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from .moments import Moments, squared_magnitude

Grouping = Literal["contiguous", "strided"]
Remainder = Literal["error", "smaller_group", "merge_last"]


class Part(NamedTuple):
    """A run of examples that is cut into equal groups."""

    start: int
    groups: int
    group_size: int

    @property
    def stop(self) -> int:
        """The first example after the run."""
        return self.start + self.groups * self.group_size


def ghost_parts(examples: int, ghost_batch_size: int, remainder: Remainder) -> tuple[Part, ...]:
    """Plans the groups of a batch.

    With `examples = groups * ghost_batch_size + rest` there are at most two runs of equal groups:
    the full groups, and one group that holds the rest.

    Args:
        examples: Size of the batch.
        ghost_batch_size: Size of a group.
        remainder: What becomes of the rest: `"error"` refuses it, `"smaller_group"` makes it a
            group of its own, `"merge_last"` adds it to the last full group. A batch smaller than
            one group is one group for the latter two.

    Returns:
        One or two parts that cover the batch in order.

    Raises:
        ValueError: If the sizes do not divide and `remainder` is `"error"`.
    """
    if examples == 0:
        return (Part(0, 1, 0),)
    groups, rest = divmod(examples, ghost_batch_size)
    if rest == 0:
        return (Part(0, groups, ghost_batch_size),)
    if remainder == "error":
        raise ValueError(
            f"GhostBatchNorm: ghost_batch_size={ghost_batch_size} does not divide the batch of "
            f"{examples} examples. Give a divisor of {examples}, or remainder='smaller_group' or "
            "'merge_last'."
        )
    if remainder == "merge_last":
        groups, rest = groups - 1, rest + ghost_batch_size
    if groups <= 0:
        return (Part(0, 1, examples),)
    full = Part(0, groups, ghost_batch_size)
    return (full, Part(full.stop, 1, rest))


def split_groups(x: Array, part: Part, axis: int, grouping: Grouping) -> Array:
    """Takes a part of the examples along `axis` as `(groups, group_size)`, in its place.

    Contiguous group i holds examples i s, i s + 1, ... (s the size of a group); strided group i
    holds i, i + g, i + 2 g, ... (g the number of groups).
    """
    x = lax.slice_in_dim(x, part.start, part.stop, axis=axis)
    if grouping == "contiguous":
        return x.reshape(*x.shape[:axis], part.groups, part.group_size, *x.shape[axis + 1 :])
    x = x.reshape(*x.shape[:axis], part.group_size, part.groups, *x.shape[axis + 1 :])
    return jnp.swapaxes(x, axis, axis + 1)


def spread_groups(statistic: Array, part: Part, axis: int, grouping: Grouping) -> Array:
    """Gives each example of a part the statistic of its group.

    `statistic` has the groups along `axis` and size 1 along `axis + 1`; the result has the examples
    of the part along `axis`, in the order that `split_groups` took them from.
    """
    shape = list(statistic.shape)
    shape[axis + 1] = part.group_size
    statistic = jnp.broadcast_to(statistic, shape)
    if grouping == "strided":
        statistic = jnp.swapaxes(statistic, axis, axis + 1)
    return statistic.reshape(*shape[:axis], part.groups * part.group_size, *shape[axis + 2 :])


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
    share = groups.counted / jnp.maximum(count, 1)
    shift = pooled(share * groups.shift)
    residual = pooled(share * (groups.shift - shift + groups.residual))
    distance = squared_magnitude(groups.shift - shift + groups.residual - residual)
    variance = pooled(share * (groups.variance + distance))
    return Moments(count, shift, residual, jnp.where(count > 0, variance, 1))


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


def gather_groups(
    groups: Moments, *, axis_name: str | tuple[str, ...], axis_index_groups: Any = None
) -> Moments:
    """The groups of all devices, device by device, along the first axis.

    Arguments are those of `pool_moments`.
    """
    devices = lax.psum(1, axis_name, axis_index_groups=axis_index_groups)
    place = lax.axis_index(axis_name)
    if axis_index_groups is not None:
        order = np.argsort(np.concatenate([np.asarray(group) for group in axis_index_groups]))
        place = jnp.asarray(order % devices)[place]

    def gather(statistic):
        # A sum over devices, each with its own rows filled, since its result is known to be the
        # same everywhere, which `shard_map` does not know of `all_gather`.
        rows = jnp.zeros((devices, *statistic.shape), statistic.dtype).at[place].set(statistic)
        rows = lax.psum(rows, axis_name, axis_index_groups=axis_index_groups)
        return rows.reshape(-1, *statistic.shape[1:])

    return jax.tree.map(gather, groups)


def _sum_over_groups(
    values: Array, axis_name: str | tuple[str, ...] | None, axis_index_groups: Any
) -> Array:
    total = jnp.sum(values, axis=0, keepdims=True)
    if axis_name is None:
        return total
    return lax.psum(total, axis_name, axis_index_groups=axis_index_groups)
