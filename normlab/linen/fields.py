"""What the fields of the layers may hold: one table, by the name or the annotation of a field."""

import typing
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import linen as nn
from jax.core import Tracer
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from ..functional.arguments import (
    are_words,
    is_axis_name,
    is_dtype,
    is_flag,
    number,
    shown,
    whole_number,
    without_dtype,
)
from .shared import Axes, AxisName


class Rule(NamedTuple):
    """What a field may hold.

    Attributes:
        expected: For the message, with an example.
        holds: Whether a value is allowed.
    """

    expected: str
    holds: Callable[[Any], bool]


class CheckedModule(nn.Module):
    """A Flax module that refuses fields with values they cannot have."""

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ValueError: If a field has a value it cannot have.
        """
        for name, rule in _rules(type(self)):
            value = getattr(self, name)
            if not (rule.holds(value) or _is_unused(self, name, value)):
                traced = isinstance(value, Tracer)
                known = ", known before anything is traced, as it decides what is compiled"
                raise ValueError(
                    f"{type(self).__name__}: {name}={shown(value)} was given; expected "
                    f"{rule.expected}{known if traced else ''}."
                )
            # By its dtype a number of NumPy or JAX would decide that of what it is computed with.
            if (number_of_python := without_dtype(value)) is not value:
                object.__setattr__(self, name, number_of_python)
        if getattr(self, "axis_index_groups", None) is not None and self.axis_name is None:
            raise ValueError(
                f"{type(self).__name__}: axis_index_groups={self.axis_index_groups} was given "
                "without axis_name, and would have no effect; name the axis too."
            )
        super().__post_init__()


@lru_cache(maxsize=256)  # Of a class, since studies make thousands of layers of a few classes.
def _rules(module: type[nn.Module]) -> tuple[tuple[str, Rule], ...]:
    """The fields that have a rule, with it."""
    found = ((field.name, _rule(field)) for field in fields(module))
    return tuple((name, rule) for name, rule in found if rule is not None)


def _rule(field: Field[Any]) -> Rule | None:
    if typing.get_origin(field.type) is Literal:
        choices = typing.get_args(field.type)
        return Rule(
            f"one of {', '.join(map(repr, choices))}",
            lambda value: isinstance(value, str) and value in choices,
        )
    by_name = _BY_NAME.get(field.name)
    return by_name or next((rule for kind, rule in _BY_TYPE if kind == field.type), None)


def _is_unused(module: nn.Module, name: str, value: Any) -> bool:
    """Whether a field is the initializer of what is not learned."""
    learned = name.removesuffix("_init")
    return value is None and learned != name and not getattr(module, f"use_{learned}", True)


def _or_none(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _are_axes(value: Any) -> bool:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        value = (value,)
    return all(isinstance(axis, int | np.integer) and not isinstance(axis, bool) for axis in value)


def _is_initializer(value: Any) -> bool:
    return callable(value) and not isinstance(value, type | nn.Module)


_FLAG = "True or False"
_DTYPE = "a floating or complex dtype of at least 16 bits, such as jnp.float32"
_AXES = "an axis as a whole number, or several in a tuple, such as -1 or (1, 2)"
_INITIALIZER = "an initializer, such as flax.linen.initializers.ones"
_GROUPS = "a whole number of at least 1, or None where the other of num_groups and group_size is"
_NOT_NEGATIVE = "a finite number of at least 0"
_STEPS = "a number of updates, at least 0"

_BY_TYPE: list[tuple[Any, Rule]] = [
    (bool, Rule(_FLAG, is_flag)),
    (bool | None, Rule(f"{_FLAG}, or None", _or_none(is_flag))),
    (DTypeLike, Rule(_DTYPE, is_dtype)),
    (DTypeLike | None, Rule(f"{_DTYPE}, or None", _or_none(is_dtype))),
    (Axes, Rule(_AXES, _are_axes)),
    (Axes | None, Rule(f"{_AXES}, or None", _or_none(_are_axes))),
    (
        AxisName | None,
        Rule(
            "the name of an axis of vmap or shard_map, several in a tuple, or None",
            _or_none(is_axis_name),
        ),
    ),
    (Initializer, Rule(_INITIALIZER, _is_initializer)),
    (Initializer | None, Rule(f"{_INITIALIZER}, or None", _or_none(_is_initializer))),
]

_BY_NAME: dict[str, Rule] = {
    "epsilon": Rule(f"{_NOT_NEGATIVE}, such as 1e-5", number(0.0)),
    "proxy_epsilon": Rule(f"{_NOT_NEGATIVE}, such as 0.03", number(0.0)),
    "momentum": Rule(
        "the share of the running statistics that an update keeps, a number from 0 to 1, or None "
        "to average all batches",
        _or_none(number(0.0, 1.0)),
    ),
    "example_weight": Rule(
        "a share, a number from 0 (running statistics alone) to 1 (those of the example alone)",
        number(0.0, 1.0),
    ),
    "fraction": Rule(
        "the share of the reduced axis that the mean square is taken of, a number above 0 and at "
        "most 1",
        number(most=1.0, above=0.0, traced=False),
    ),
    "num_groups": Rule(_GROUPS, _or_none(whole_number(1))),
    "group_size": Rule(_GROUPS, _or_none(whole_number(1))),
    "ghost_batch_size": Rule("a number of examples, a whole number of at least 1", whole_number(1)),
    "size": Rule("a number of channels, a whole number of at least 1", whole_number(1)),
    "samples": Rule(
        "a number of quantiles, from 1 to 1,000,000, such as 256", whole_number(1, 1_000_000)
    ),
    "n_steps": Rule(
        "a number of power iterations, at least 1; to normalize nothing, call the layer itself",
        whole_number(1),
    ),
    "r_max": Rule(
        "a limit of at least 1; infinity for none", number(1.0, infinite=True, traced=False)
    ),
    "d_max": Rule(
        "a limit of at least 0; infinity for none", number(0.0, infinite=True, traced=False)
    ),
    "start_steps": Rule(_STEPS, number(0.0, traced=False)),
    "r_steps": Rule(_STEPS, number(0.0, traced=False)),
    "d_steps": Rule(_STEPS, number(0.0, traced=False)),
    "k": Rule(_NOT_NEGATIVE, number(0.0)),
    "alpha": Rule(_NOT_NEGATIVE, number(0.0)),
    "beta": Rule("a finite number", number(traced=False)),
    "alpha_init": Rule("a finite number, such as 0.5", number()),
    "nonlinearity_gain": Rule("a finite number above 0", number(above=0.0)),
    "layer_instance": Rule(
        "a layer of Flax Linen, made and not only named, such as flax.linen.Dense(8)",
        lambda value: isinstance(value, nn.Module),
    ),
    "variable_filter": Rule(
        "parts of the paths of parameters, such as ('kernel',), or None for all",
        _or_none(are_words),
    ),
    "collection_name": Rule("the name of a collection", lambda value: isinstance(value, str)),
    "norm": Rule(
        "what makes a layer of normlab: a class or a partial one, such as normlab.LayerNorm or "
        "functools.partial(normlab.GroupNorm, 8)",
        lambda value: callable(value) and not isinstance(value, nn.Module),
    ),
}
