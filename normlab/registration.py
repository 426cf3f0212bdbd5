"""What registrations of a user's own layers, models and data share: checks, and fields to set."""

import inspect
import typing
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union

from pydantic import Field

from .modules import told
from .spec import Spec

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


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


def check_call(told: str, module: type, argument: str, meaning: str) -> None:
    """Refuses a Flax Linen module whose call is not told what its model tells it.

    Args:
        told: How the message begins, as in "register('mine')".
        module: The module.
        argument: What its call must take.
        meaning: What that argument is for.

    Raises:
        ValueError: If it does not.
    """
    parameter = inspect.signature(module.__call__).parameters.get(argument)
    if parameter is None:
        raise ValueError(
            f"{told}: the call of {module.__qualname__} must take {argument}, {meaning}."
        )
    if parameter.kind not in _BY_NAME:
        raise ValueError(
            f"{told}: the argument {argument} of the call of {module.__qualname__} is "
            f"{parameter.kind.description}, but models give it by its name, as {argument}=...; "
            "write it without / behind it and without * before it."
        )


def check_arguments(
    told: str, maker: Callable[..., Any], *, filled_in: Collection[str], record: type[Spec]
) -> None:
    """Refuses a class or function whose arguments a configuration could not leave out or set.

    Args:
        told: How the message begins, as in "register('mine')".
        maker: What was given: a class, or a function that makes something.
        filled_in: Arguments that the configuration does not set, and that need no defaults.
        record: The base of the record that the others become part of.

    Raises:
        ValueError: That says what is wrong with them.
    """
    called = word_for(maker)
    try:
        given = arguments(maker)
    except NameError as error:
        raise ValueError(
            f"{told}: an annotation of {maker.__qualname__} cannot be resolved: {error}"
        ) from error
    missing = [it.name for it in given if it.name not in filled_in and it.default is MISSING]
    if missing:
        raise ValueError(
            f"{told}: the {called}s {', '.join(missing)} of {maker.__qualname__} need defaults."
        )
    taken = [
        name
        for name in plain_arguments(maker, filled_in)
        if name in record.model_fields or hasattr(record, name)
    ]
    if taken:
        raise ValueError(
            f"{told}: {maker.__qualname__} has {'an' if called == 'argument' else 'a'} {called} "
            f"{', '.join(taken)}, a name that a configuration has another use for; rename it."
        )


def word_for(maker: Any) -> str:
    """Returns what messages call that which is given to a class or function."""
    return "field" if is_dataclass(maker) else "argument"


class Argument(NamedTuple):
    """What a class or function takes by its name.

    Attributes:
        name: Its name.
        type: What it is annotated with; None without annotation.
        default: What it is if it is not given, as pydantic takes it; MISSING for nothing.
    """

    name: str
    type: Any
    default: Any


def arguments(maker: Callable[..., Any]) -> list[Argument]:
    """Returns what can be given by name to a class or function: of a dataclass, its fields.

    Raises:
        NameError: If an annotation names what is not there.
    """
    if is_dataclass(maker):
        types = typing.get_type_hints(maker)
        return [Argument(it.name, types[it.name], _default(it)) for it in fields(maker) if it.init]
    # The class of a class may take anything, as that of NNX does.
    function = maker.__init__ if isinstance(maker, type) else maker
    types = typing.get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    return [
        Argument(it.name, types.get(it.name), MISSING if it.default is it.empty else it.default)
        for it in parameters[isinstance(maker, type) :]
        if it.kind in _BY_NAME
    ]


def plain_arguments(maker: Callable[..., Any], filled_in: Collection[str]) -> dict[str, Any]:
    """Returns the arguments that a configuration can set, with their types.

    Args:
        maker: A class or function.
        filled_in: Arguments that the configuration does not set.
    """
    return {
        it.name: it.type
        for it in arguments(maker)
        if it.name not in filled_in and is_plain(it.type)
    }


def record_fields(maker: Callable[..., Any], filled_in: Collection[str]) -> dict[str, Any]:
    """Returns the same arguments as `pydantic.create_model` takes them: types and defaults."""
    settable = plain_arguments(maker, filled_in)
    return {it.name: (it.type, it.default) for it in arguments(maker) if it.name in settable}


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
