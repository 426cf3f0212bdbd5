"""Gradient accumulation: one step of the optimizer over several micro-batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from ..objectives import Sums, add_sums

# Examples and the key of what is drawn -> gradients, sums and state.
Differentiated = Callable[[Any, PRNGKeyArray], tuple[Any, Sums, Any]]


def cut(batch: Any, count: int) -> Any:
    """Cuts a batch into micro-batches along a new first axis; the first has examples 0, k, 2 k, ...

    Of examples that lie spread over devices in their order, each device keeps its own.
    """

    def parts(leaf: Array) -> Array:
        return jnp.swapaxes(leaf.reshape(-1, count, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(parts, batch)


def accumulated(
    differentiated: Differentiated, parts: Any, key: PRNGKeyArray, state: Any
) -> tuple[Any, Sums, Any]:
    """Goes through micro-batches one after the other, each from the same state.

    Args:
        differentiated: What is computed of one.
        parts: They, stacked.
        key: What each gets a part of.
        state: The network's before the step.

    Returns:
        Gradients and sums, added up; and the state after. Floating numbers in that are averaged
        over what the micro-batches made of them: running statistics, which they enter with the same
        weight, make one step towards the average of theirs, and what all make the same of, as a
        count, has moved once. All else is as the last one left it.
    """
    count = len(jax.tree.leaves(parts)[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))

    def one(carry: tuple[Any, Sums, Any], given: Any) -> tuple[tuple[Any, Sums, Any], None]:
        gradients, sums, mean = carry
        number, part, key = given
        of_part, measured, after = differentiated(part, key)

        def averaged(mean: Array, after: Array) -> Array:
            if not jnp.issubdtype(after.dtype, jnp.inexact):
                return after
            # In a form that leaves equal numbers as they are, to the bit.
            moved = mean + (after - mean) / (number + 1).astype(after.dtype)
            return jnp.where(number == 0, after, moved)

        added = jax.tree.map(jnp.add, gradients, of_part), add_sums(sums, measured)
        return (*added, jax.tree.map(averaged, mean, after)), None

    first = jax.tree.map(lambda leaf: leaf[0], (parts, keys))
    shapes = jax.eval_shape(differentiated, *first)[:2]
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    result, _ = lax.scan(one, (*nothing, state), (jnp.arange(count), parts, keys))
    return result
