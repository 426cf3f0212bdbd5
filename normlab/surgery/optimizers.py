"""The state of an optimizer whose parameters have been replaced."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ..errors import UserError
from .given import Path, is_state, variables_of

# A gradient that no clipping by norm cuts off, and no square of it underflows.
_SMALL = 2.0**-13


class Optimization(NamedTuple):
    """An optimizer and its state.

    Attributes:
        optimizer: A transformation of gradients from Optax.
        state: Its state, for the parameters before they are replaced.
    """

    optimizer: optax.GradientTransformation
    state: Any


class Origin(NamedTuple):
    """What a parameter was made of.

    Attributes:
        path: Path of the parameter it comes from, without the collection.
        factor: What that was multiplied by, in its shape; None for 1. Where it is 0, nothing is
            known of the gradient, and the state begins anew.
    """

    path: Path
    factor: Array | None = None


class Carried(NamedTuple):
    """A new state of an optimizer.

    Attributes:
        state: The state.
        fates: Path and shape of each of its arrays, and whether the array was carried over.
    """

    state: Any
    fates: list[tuple[Path, tuple[int, ...], bool]]


def optimization_of(given: Any, optimizer: Any, state: Any, function: str) -> Optimization | None:
    """Returns the optimizer that is to go on, of a state of training or given apart, if any.

    Raises:
        ValueError: If half of it is given, or it is given twice.
    """
    if is_state(given):
        if state is not None:
            raise UserError(
                f"{function}: a state of training and optimizer_state were given, but the state "
                "has its own opt_state. Give only one of them."
            )
        held = {name: jax.tree.structure(value) for name, value in variables_of(given).items()}
        mirrors = [name for name in held if name != "params" and held[name] == held["params"]]
        if mirrors:
            raise UserError(
                f"{function}: {', '.join(mirrors)} of the state has the structure of its params, "
                f"and would not be changed along. Take it out, and give it to {function} by itself "
                "as {'params': ..., 'batch_stats': ...}."
            )
        optimizer = getattr(given, "tx", None) if optimizer is None else optimizer
        state = getattr(given, "opt_state", None)
    if optimizer is None and state is None:
        return None
    if optimizer is None or state is None:
        missing = "optimizer" if optimizer is None else "optimizer_state"
        raise UserError(
            f"{function}: to carry the state of an optimizer, both optimizer and its state are "
            f"needed; {missing} is missing. Give it as {missing}=."
        )
    return Optimization(optimizer, state)


def carry(
    optimization: Optimization, before: Any, after: Any, origins: Mapping[Path, Origin]
) -> Carried:
    r"""Carries the state of an optimizer over to other parameters.

    The state of a parameter that comes from another is that one's; what else the optimizer keeps,
    such as its count of steps, stays. All else begins anew. Where a parameter was multiplied by s,
    its gradient is divided by s, and what the optimizer keeps of the power p of the gradient by

    .. math:: m' = m / s^p

    with p found by trial: 1 for momentum, 2 for a mean of squares.

    Args:
        optimization: The optimizer with its state before.
        before: The parameters before.
        after: Those after.
        origins: What those after come from, by their paths; the others are new.

    Returns:
        The state for the parameters after.

    Raises:
        ValueError: If the state is not one of the optimizer for the parameters before, or a scaled
            parameter has a state that is no power of its gradient.
    """
    optimizer, state = optimization
    expected = jax.tree.structure(jax.eval_shape(optimizer.init, before))
    if jax.tree.structure(state) != expected:
        raise UserError(
            "the state of the optimizer is not one of this optimizer for these parameters: "
            f"{jax.tree.structure(state)} was given, and {expected} expected. Give the optimizer "
            "and the parameters that the state was made for."
        )
    old_paths, new_paths = _paths(before), _paths(after)
    by_names = {names: keys for keys, names in old_paths.items()}
    kept = jax.tree_util.tree_leaves_with_path(state)
    powers = _Powers(optimizer, before)
    old = {keys: (leaf, index) for index, (keys, leaf) in enumerate(kept)}
    fresh, structure = jax.tree_util.tree_flatten_with_path(optimizer.init(after))
    leaves, fates = [], []
    for keys, leaf in fresh:
        start, names = _split(keys, new_paths)
        origin = origins.get(names) if names is not None else Origin(())
        found, index = None, 0
        if origin:
            place = (*start, *by_names.get(origin.path, ()))
            found, index = old.get(place, (None, 0))
        if origin and origin.factor is not None and found is not None:
            found = _scaled(found, origin, powers.of(index), _words(keys))
        carried = found is not None and jnp.shape(found) == jnp.shape(leaf)
        leaves.append(jnp.asarray(found, leaf.dtype) if carried else leaf)
        fates.append((_words(keys), jnp.shape(leaf), carried))
    return Carried(jax.tree.unflatten(structure, leaves), fates)


def _scaled(kept: Any, origin: Origin, power: int | None, path: Path) -> Array:
    factor = origin.factor
    assert factor is not None  # For only what was multiplied is scaled.
    if power is None or jnp.shape(kept) != factor.shape:
        raise UserError(
            f"the state of the optimizer at {'/'.join(path)} is no power of the gradient of "
            f"{'/'.join(origin.path)} alone, so that it cannot be rescaled along with it. Leave "
            "the optimizer out, and begin its state anew."
        )
    known = factor != 0
    return jnp.where(known, kept / jnp.where(known, factor, 1) ** power, 0)


class _Powers:
    """By which power of the gradient each array of an optimizer's state grows.

    Found by steps with a gradient, with twice as much, and with none.
    """

    def __init__(self, optimizer: optax.GradientTransformation, params: Any) -> None:
        self._optimizer = optimizer
        self._params = params
        self._leaves: list[list[Any]] = []

    def of(self, index: int) -> int | None:
        """Returns the power of one array, by its place among all; None if there is none."""
        if not self._leaves:
            zeros = jax.tree.map(jnp.zeros_like, self._params)
            size = sum(leaf.size for leaf in jax.tree.leaves(zeros))
            # A power of 2 as well, so that quotients are exact.
            small = _SMALL * 2.0 ** -np.ceil(np.log2(size) / 2)
            self._leaves = [
                self._after(self._params, 0.0),
                *(self._after(zeros, small * factor) for factor in (0, 1, 2)),
            ]
        of_params, nothing, once, twice = (leaves[index] for leaves in self._leaves)
        # What the parameters enter, as through weight decay, does not go by the gradient alone.
        if np.any(of_params != nothing) or np.any(nothing) or not np.all(once):
            return None
        powers = np.log2(np.asarray(twice / once, np.float64))
        power = np.round(np.mean(powers)) if powers.size else 0
        return int(power) if np.allclose(powers, power, atol=0.01) else None

    def _after(self, params: Any, gradient: float) -> list[Any]:
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), params)
        state = self._optimizer.init(params)
        return jax.tree.leaves(jax.jit(self._optimizer.update)(gradients, state, params)[1])


def _paths(params: Any) -> dict[tuple[Any, ...], Path]:
    """The names of parameters by their keys in a tree."""
    return {keys: _names(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)}


def _names(keys: tuple[Any, ...]) -> Path:
    """The path of a parameter: the keys of dictionaries, without those of a box around it."""
    return tuple(str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey))


def _split(keys: tuple[Any, ...], paths: Mapping[tuple[Any, ...], Path]) -> Any:
    """Takes the path of an array apart: up to the parameters, and which of these, if any."""
    for start in range(len(keys)):
        if keys[start:] in paths:
            return keys[:start], paths[keys[start:]]
    return keys, None


def _words(keys: tuple[Any, ...]) -> Path:
    return tuple(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in keys
    )
