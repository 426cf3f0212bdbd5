"""Sums over axes between others, in blocks that a cache holds.

XLA for CPU computes what is to be summed, such as (x - mean) dy, beside the sum, as long as the
part of the array that goes into the sums of one leading index is small. Else it writes all of it
out and reads it again, for two to four times the time. So a large part is cut into blocks, and the
sums of the blocks are added up. The arrays are cut before anything is computed: a change of shape
in between would have it written out as well. On other platforms they are cut too, which costs
nothing in programs compiled for a TPU.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .apart import fence

# What goes into the sums of one leading index, in elements. Up to this many, all was computed
# beside the sum in each shape tried, from (32, 8, 8, 512) to (32, 56, 56, 64); with 50,000 in none.
# Blocks of less than half of this cost up to twice as much, by their number.
_MOST = 2**15

# Values in one sum. Where a length has no good divisor, the sums of blocks of 2 to 29 were so many
# that they took up to twice as long as the whole; of 61 and more they paid off.
_LEAST = 32


@dataclass(frozen=True)
class Blocks:
    """How arrays are cut for a sum over some axes.

    Attributes:
        axes: The axes of the sum, not negative and in order.
        axis: The one of them that is cut, or None where arrays are better left whole.
        size: What each block has of it.
    """

    axes: tuple[int, ...]
    axis: int | None = None
    size: int = 1

    def view(self, x: Array) -> Array:
        """An array of the rank of the large one, cut along the axis unless it has size 1 there."""
        if self.axis is None:
            return x
        length = x.shape[self.axis]
        cut = (1, 1) if length == 1 else (length // self.size, self.size)
        x = x.reshape(*x.shape[: self.axis], *cut, *x.shape[self.axis + 1 :])
        # Else a conversion that follows would be drawn before the change of shape.
        return fence(x)

    def whole(self, cut: Array, large: Array) -> Array:
        """Gives a cut array the shape of the large one."""
        return cut if self.axis is None else fence(cut).reshape(large.shape)

    def sum(self, cut: Array) -> Array:
        """Sums a cut array over the axes, which are kept with size 1 in the rank before."""
        if self.axis is None:
            return jnp.sum(cut, self.axes, keepdims=True)
        of_block = jnp.sum(cut, tuple(range(self.axis + 1, self.axes[-1] + 2)), keepdims=True)
        total = jnp.sum(fence(of_block), tuple(range(self.axes[0], self.axis + 1)), keepdims=True)
        return jnp.squeeze(total, self.axis)

    def spread(self, small: Array, large: Array) -> Array:
        """Broadcasts what is constant along the axes, in two steps; the transpose of `sum`.

        Args:
            small: With size 1 along the axes.
            large: What it is to be broadcast to, cut.
        """
        small = self.view(small)
        if self.axis is not None:
            copies = self.axes[0], self.axis + 1
            shape = [*small.shape]
            shape[slice(*copies)] = large.shape[slice(*copies)]
            small = fence(jnp.broadcast_to(small, shape))
        return jnp.broadcast_to(small, large.shape)


def blocks(x: Array, axes: tuple[int, ...]) -> Blocks:
    """How to cut an array for a sum over some axes."""
    whole = Blocks(axes)
    fixed = all(isinstance(n, int) for n in x.shape)  # unlike those of an exported program
    if not axes or not fixed or axes != tuple(range(axes[0], axes[-1] + 1)):
        return whole
    outside = math.prod(x.shape[: axes[0]])
    if outside <= 1 or axes[-1] == x.ndim - 1 or x.size // outside <= _MOST:
        return whole
    spread: Any = jax.typeof(x).sharding.spec
    for axis in axes:
        inside = math.prod(x.shape[axis + 1 :])
        if inside <= _MOST and spread[axis] is None:
            size = max(n for n in range(1, _MOST // inside + 1) if x.shape[axis] % n == 0)
            summed = size * math.prod(x.shape[axis + 1 : axes[-1] + 1])
            return Blocks(axes, axis, size) if summed >= _LEAST else whole
    return whole
