"""Keeping computations apart that a compiler for CPU would join to their loss.

A reduction that reads a large array, changes each value a little and sums runs at the speed of
memory, and so does an elementwise pass. XLA for CPU spoils both where a program holds several:

- Two reductions that begin alike, with a conversion to float32 or a difference to the mean, have
  their common beginning written out at full size. Forward and backward pass of a normalization are
  made of such pairs. What looks different to the compiler is left alone, so every reduction reads
  its arrays through as many optimization barriers as the number of its place; they vanish before
  code is made.
- What is done with the small result of a reduction is drawn into the reduction, or into the pass
  that it is broadcast to, and done there for every value anew. A selection keeps it out of the one,
  a division out of the other.

On other platforms, whose compilers do better unhindered, all this is nothing from the start. Nor is
there anything to gain with a small array, which a cache holds: there each program costs more than
what it reads.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

# In elements. Of 256 x 128, layers took up to a quarter longer in parts than whole; of 512 x 512,
# up to a third less.
_LEAST = 2**16

_apart = Primitive("apart")
_apart.def_impl(lambda x, **_: x)
_apart.def_abstract_eval(lambda x, **_: x)
ad.deflinear2(_apart, lambda cotangent, x, **parameters: [_apart.bind(cotangent, **parameters)])
batching.primitive_batchers[_apart] = lambda arrays, axes, **parameters: (
    _apart.bind(arrays[0], **parameters),
    axes[0],
)


def _selected(x: Array) -> Array:
    return lax.select(x == x, x, jnp.full_like(x, jnp.nan))


def _hindered(x: Array, *, place: int, small: bool) -> Array:
    for _ in range(place):
        x = lax.optimization_barrier(x)
    if small and jnp.issubdtype(x.dtype, jnp.floating):
        x = _selected(x) / lax.optimization_barrier(jnp.ones_like(x))
        x = _selected(x)
    return x


mlir.register_lowering(_apart, lambda context, x, **_: [x])
mlir.register_lowering(_apart, mlir.lower_fun(_hindered, multiple_results=False), platform="cpu")


def apart(place: int, arrays: Any, like: Array) -> Any:
    """Returns arrays as they are, for a computation that is to share nothing with other places.

    Args:
        place: A small positive number, for each computation over the same arrays another.
        arrays: An array, or a tree of them.
        like: The large array that they are about; those of other shapes are small. If it is not
            large after all, nothing is done.
    """
    sizes = [n for n in like.shape if isinstance(n, int)]  # others are of an exported program
    if len(sizes) == like.ndim and math.prod(sizes) < _LEAST:
        return arrays
    return jax.tree.map(lambda x: _apart.bind(x, place=place, small=x.shape != like.shape), arrays)


def fence(x: Array) -> Array:
    """Returns an array as it is, before which and after which a compiler computes on its own."""
    return _apart.bind(x, place=1, small=False)
