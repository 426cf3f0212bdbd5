"""How arrays lie on the devices of a mesh whose axes are explicit, where their types say so.

JAX asks there what a reshape of a spread axis shall give, refuses to cut one unevenly, and selects
between arrays only if they are spread alike. Where no mesh is explicit, all this is nothing.
"""

import math
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from .arguments import ANY_NUMBERS, checked

Spec = tuple[Any, ...]


@checked(x=ANY_NUMBERS)
def spec_of(x: Any) -> Spec:
    """The names of the mesh axes that each axis of an array is spread over, None for none."""
    return tuple(jax.typeof(x).sharding.spec)


@checked(x=ANY_NUMBERS)
def spread_as(x: Array, spec: Spec) -> Array:
    """Spreads an array over devices; where it lies so already, returns it as it is."""
    return x if spec_of(x) == spec else jax.sharding.reshard(x, PartitionSpec(*spec))


@checked(x=ANY_NUMBERS)
def small_beside(x: Array, small: Array) -> Array:
    """Spreads what is to be broadcast to `x` as that is, but for axes of size 1."""
    spec = spec_of(x)
    return spread_as(
        small, tuple(s if n != 1 else None for s, n in zip(spec, small.shape, strict=True))
    )


@checked(x=ANY_NUMBERS)
def gathered(x: Array, axis: int) -> Array:
    """Puts an axis together that is spread."""
    return spread_as(x, tuple(s if a != axis else None for a, s in enumerate(spec_of(x))))


def split_axis(x: Array, axis: int, first: int, second: int) -> Array:
    """Cuts an axis in two, in its place.

    The first of the two is spread as the axis was. Where it does not divide, the axis is gathered.
    """
    shape = (*x.shape[:axis], first, second, *x.shape[axis + 1 :])
    if spec_of(x)[axis] is None:
        return x.reshape(shape)
    if first % devices_along(x, axis):
        return gathered(x, axis).reshape(shape)
    spec = spec_of(x)
    return lax.reshape(
        x, shape, out_sharding=PartitionSpec(*spec[: axis + 1], None, *spec[axis + 1 :])
    )


def join_axes(x: Array, axis: int) -> Array:
    """Makes one axis of two neighbours, in their place, spread as the first of them."""
    shape = (*x.shape[:axis], math.prod(x.shape[axis : axis + 2]), *x.shape[axis + 2 :])
    x = gathered(x, axis + 1)
    spec = spec_of(x)
    if spec[axis] is None:
        return x.reshape(shape)
    return lax.reshape(x, shape, out_sharding=PartitionSpec(*spec[: axis + 1], *spec[axis + 2 :]))


def devices_along(x: Array, axis: int) -> int:
    """How many parts an axis is spread over."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis]
    names = () if names is None else (names,) if isinstance(names, str) else names
    return math.prod(sharding.mesh.shape[name] for name in names)
