"""Derivatives as sums of terms that a compiler for CPU is to compute one by one."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jaxtyping import Array

from .apart import apart
from .blocks import blocks


def term(
    place: int, function: Callable[..., Array], like: Array, tangent: Array, *factors: Any
) -> Array:
    """One term of a derivative, apart from the others in the forward and in the backward pass.

    Where the tangent is small, the backward pass sums over the axes along which it is constant, and
    all is computed in `Blocks`.

    Args:
        place: As in `apart`.
        function: Linear in its first argument: element by element, or a sum of a large one.
        like: As in `apart`.
        tangent: The first argument, of the rank of `like`.
        factors: The others, what it is multiplied with. They are looked at again in the backward
            pass, so that nothing made of them is kept.
    """
    constant = tuple(a for a in range(like.ndim) if tangent.shape[a] == 1 != like.shape[a])
    cut = blocks(like, constant)

    # What is the same on all devices of `shard_map` becomes each device's own while it is small.
    # Else it would be after it is broadcast, and the backward pass would sum dy over the devices.
    varying = [jax.typeof(x).manual_axis_type.varying for x in (like, tangent)]
    axes = tuple(varying[0] - varying[1])
    tangent = lax.pcast(tangent, axes, to="varying") if axes else tangent

    def separate(tangent, *factors):
        factors = apart(place, factors, like)
        if not constant:
            # What comes back to a large tangent is added to other terms, best in one go.
            result = function(tangent, *factors)
            return result if result.shape == like.shape else apart(place, result, like)
        tangent = apart(place, tangent, like)
        tangent = cut.spread(tangent, cut.view(like))
        result = function(tangent, *jax.tree.map(cut.view, factors))
        return apart(place, cut.whole(result, like), like)

    return jax.checkpoint(separate, prevent_cse=False)(tangent, *factors)
