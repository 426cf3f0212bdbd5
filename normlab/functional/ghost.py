"""Ghost batches: cutting a batch into groups, and giving each example what its group has."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .arguments import ANY_NUMBERS, checked, plain
from .spread import devices_along, join_axes, split_axis

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


def _is_part(value: Any) -> bool:
    return isinstance(value, Part) and all(isinstance(n, int) and n >= 0 for n in value)


_PART = plain("one of the parts that ghost_parts returns", _is_part)
_PARTS = plain(
    "the parts that ghost_parts returns",
    lambda value: isinstance(value, tuple) and all(map(_is_part, value)),
)


@checked()
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


@checked(x=ANY_NUMBERS, parts=_PARTS)
def lie_within_devices(x: Array, parts: tuple[Part, ...], axis: int, grouping: Grouping) -> bool:
    """Whether each group is on one device, as far as the type of `x` says what is on others."""
    devices = devices_along(x, axis)
    if devices == 1:
        return True
    return len(parts) == 1 and grouping == "contiguous" and parts[0].groups % devices == 0


@checked(x=ANY_NUMBERS, part=_PART)
def split_groups(x: Array, part: Part, axis: int, grouping: Grouping) -> Array:
    """Takes a part of the examples along `axis` as `(groups, group_size)`, in its place.

    Contiguous group i holds examples i s, i s + 1, ... (s the size of a group); strided group i
    holds i, i + g, i + 2 g, ... (g the number of groups).
    """
    x = lax.slice_in_dim(x, part.start, part.stop, axis=axis)
    if grouping == "contiguous":
        return split_axis(x, axis, part.groups, part.group_size)
    return jnp.swapaxes(split_axis(x, axis, part.group_size, part.groups), axis, axis + 1)


@checked(statistic=ANY_NUMBERS, part=_PART)
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
    return join_axes(statistic, axis)
