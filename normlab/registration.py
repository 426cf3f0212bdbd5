"""What registrations of a user's own layers, models and data share: checks, and fields to set."""

import inspect
import typing
from collections.abc import Collection, Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union

from pydantic import Field

from .modules import told
from .spec import Spec


def check_name(register: str, name: Any) -> None:
    """Refuses what is no name, as the class that a decorator without a call is given.

    Args:
        register: The function that registers, for the message.
        name: What was given.

    Raises:
        ValueError: If it is no word.
    """
    if not (isinstance(name, str) and name):
        raise ValueError(
            f"{register}: {name!r} was given in the place of the name; expected a word, as in "
            f'@normlab.{register}("mine").'
        )


def refuse_taken(register: str, name: str, taken: Any, given: Any) -> None:
    """Refuses a name that something else has.

    The same class or function from a module that is loaded again replaces itself.

    Args:
        register: The function that registers, for the message.
        name: The name.
        taken: What has it; None for nothing.
        given: What shall have it.

    Raises:
        ValueError: If the name is taken.
    """
    if taken is None or _identity(taken) == _identity(given):
        return
    raise ValueError(f"{register}: the name {name!r} is taken by {_origin(taken)}; choose another.")


def check_module(
    told: str,
    module: Any,
    *,
    argument: str,
    meaning: str,
    filled_in: Collection[str],
    record: type[Spec],
) -> None:
    """Refuses a Flax module that could not stand in a study or be set in a configuration.

    Args:
        told: How the message begins, as in "register('mine')".
        module: What was given.
        argument: What its call must take.
        meaning: What that argument is for.
        filled_in: Fields that the configuration does not set, and that need no defaults.
        record: The base of the record that its fields become part of.

    Raises:
        ValueError: That says what is wrong with it.
    """
    from flax import linen as nn  # data sets are registered without it

    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise ValueError(f"{told}: {module!r} is not a class of flax.linen.Module.")
    parameter = inspect.signature(module.__call__).parameters.get(argument)
    if parameter is None:
        raise ValueError(
            f"{told}: the call of {module.__qualname__} must take {argument}, {meaning}."
        )
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise ValueError(
            f"{told}: the argument {argument} of the call of {module.__qualname__} is "
            f"{parameter.kind.description}, but models give it by its name, as {argument}=...; "
            "write it without / behind it and without * before it."
        )
    missing = [
        field.name
        for field in fields(module)
        if field.name not in filled_in
        and field.default is MISSING
        and field.default_factory is MISSING
    ]
    if missing:
        raise ValueError(
            f"{told}: the fields {', '.join(missing)} of {module.__qualname__} need defaults."
        )
    try:
        settable = plain_fields(module, filled_in)
    except NameError as error:
        raise ValueError(
            f"{told}: an annotation of {module.__qualname__} cannot be resolved: {error}"
        ) from error
    taken = [field for field in settable if field in record.model_fields or hasattr(record, field)]
    if taken:
        raise ValueError(
            f"{told}: {module.__qualname__} has a field {', '.join(taken)}, a name that "
            "a configuration has another use for; rename it."
        )


def plain_fields(module: type, filled_in: Collection[str]) -> dict[str, Any]:
    """Returns the fields of a dataclass that a configuration can set, with their types.

    Args:
        module: The dataclass.
        filled_in: Fields that the configuration does not set.
    """
    types = typing.get_type_hints(module)
    return {
        field.name: types[field.name]
        for field in fields(module)
        if field.name not in filled_in and is_plain(types[field.name])
    }


def record_fields(module: type, filled_in: Collection[str]) -> dict[str, Any]:
    """Returns the same fields as `pydantic.create_model` takes them: types and defaults."""
    defaults = {field.name: _default(field) for field in fields(module)}
    return {
        name: (annotation, defaults[name])
        for name, annotation in plain_fields(module, filled_in).items()
    }


def _identity(registered: Any) -> tuple[str, str]:
    return registered.__module__, getattr(registered, "__qualname__", str(registered))


def _origin(registered: Any) -> str:
    return f"{told(registered.__module__)}.{getattr(registered, '__qualname__', registered)}"


def _default(field: Any) -> Any:
    if field.default_factory is not MISSING:
        return Field(default_factory=field.default_factory)
    return field.default


def is_plain(annotation: Any) -> bool:
    """Whether values of a type can stand in a configuration file."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return True
    if origin in (Union, UnionType, tuple, list, Sequence):
        return all(is_plain(part) for part in typing.get_args(annotation) if part is not ...)
    return annotation in (bool, int, float, str, NoneType)
