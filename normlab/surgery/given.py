"""Variables and batches as users hold them, and results in the same form."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict, freeze, unfreeze
from flax.traverse_util import flatten_dict

from ..errors import UserError

Variables = Mapping[str, Any]
Path = tuple[str, ...]


def is_state(given: Any) -> bool:
    """Returns whether something is a state of training: a Flax dataclass with parameters."""
    named = is_dataclass(given) and not isinstance(given, type)
    return named and hasattr(given, "replace") and hasattr(given, "params")


def variables_of(given: Any) -> dict[str, Any]:
    """Returns the variables in a mapping of collections, or in a state of training.

    Collections of a state are its fields `params`, `batch_stats` and all others that hold mappings.

    Raises:
        ValueError: If there are none.
    """
    if is_state(given):
        held = {field.name: getattr(given, field.name) for field in fields(given)}
        return {
            name: unfreeze(dict(value))
            for name, value in held.items()
            if isinstance(value, Mapping) and name != "opt_state" and (value or name == "params")
        }
    if not isinstance(given, Mapping):
        raise UserError(
            f"variables: a mapping of collections, as {{'params': ..., 'batch_stats': ...}}, or a "
            f"state of training with params was expected, but a {type(given).__name__} was given."
        )
    arrays = sorted(str(name) for name, value in given.items() if hasattr(value, "shape"))
    if arrays:
        raise UserError(
            f"variables: collections were expected, but {', '.join(arrays)} hold arrays. Give "
            "{'params': ..., 'batch_stats': ...}, and not the variables of one layer."
        )
    return unfreeze(dict(given))


def as_given(given: Any, variables: dict[str, Any], **replaced: Any) -> Any:
    """Returns variables in the form in which others were given.

    Args:
        given: A mapping of collections, frozen or not in part or as a whole, or a state.
        variables: The variables to return.
        replaced: Other fields of a state to replace.

    Raises:
        ValueError: If the state has no place for a collection.
    """
    if not is_state(given):
        return _like(given, variables)
    held = variables_of(given)
    homeless = [name for name in variables if not hasattr(given, name)]
    if homeless:
        raise UserError(
            f"{type(given).__name__} has no field for the collection {', '.join(homeless)}. Add "
            "such a field to its class, or give the variables as a mapping."
        )
    gone: dict[str, Any] = {name: {} for name in held if name not in variables}
    new = {
        name: _like(getattr(given, name), value) for name, value in {**gone, **variables}.items()
    }
    return given.replace(**new, **replaced)


def with_training(state: Any, model: nn.Module, optimizer_state: Any) -> Any:
    """Returns a state of training that goes on with another model.

    `apply_fn` becomes `apply` of the model if it was that of one. A function of the user's own
    stays, since only the user can replace it.
    """
    new = {"opt_state": optimizer_state}
    function = getattr(state, "apply_fn", None)
    if isinstance(getattr(function, "__self__", None), nn.Module):
        new["apply_fn"] = model.apply
    return state.replace(**new)


def _like(given: Any, value: Any) -> Any:
    if isinstance(given, FrozenDict):
        return freeze(value)
    if isinstance(given, Mapping) and isinstance(value, Mapping):
        return {name: _like(given.get(name), inner) for name, inner in value.items()}
    return value


def check_batch(batch: Any) -> None:
    """Refuses a batch without examples.

    Raises:
        ValueError: That names the part of the batch.
    """
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    for path, leaf in leaves:
        part = jax.tree_util.keystr(path)
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if isinstance(dtype, np.dtype) and dtype.kind in "OSU":
            raise UserError(
                f"the batch{part} is a {type(leaf).__name__} of dtype {dtype}, but arrays of "
                "numbers were expected. Let call take what the model needs out of a batch that "
                "also holds something else, and give batches of arrays."
            )
        shape = jnp.shape(leaf)
        if 0 in shape:
            raise UserError(
                f"the batch{part} has the shape {shape}, so that there is nothing in it to measure."
                " Give at least one example."
            )
    if leaves and not any(jnp.shape(leaf) for _, leaf in leaves):
        raise UserError(
            f"the batch {batch!r} has no axis of examples. Give several examples, along the first "
            "axis of each array."
        )
    if not leaves:
        raise UserError(f"the batch {batch!r} holds no array. Give a batch of examples.")


def flattened(variables: Variables) -> dict[Path, Any]:
    """Returns variables, or those of a collection, by their paths."""
    flat: Any = flatten_dict(unfreeze(dict(variables)))
    return flat


def name_of(path: Path) -> str:
    """Returns a path in one word, as messages and tables show it."""
    return "/".join(path) or "the model"
