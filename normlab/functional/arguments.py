"""What the functions here may be given: one table, by the name of an argument."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

P = ParamSpec("P")
R = TypeVar("R")
Holds = Callable[[Any], bool]


class Argument(NamedTuple):
    """What an argument may be.

    Attributes:
        expected: For the message, with an example.
        holds: Whether a value is allowed, given all arguments of the call by their names.
    """

    expected: str
    holds: Callable[[Any, Mapping[str, Any]], bool]


def checked(**arguments: Argument) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function so that it refuses arguments that cannot be.

    Arrays of NumPy are given to the function as arrays of JAX.

    Args:
        **arguments: What arguments may be that are not as in the table.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        rules = {name: arguments.get(name) or _BY_NAME[name] for name in signature.parameters}

        @functools.wraps(function)
        def check(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                name = function.__name__
                raise TypeError(f"{name}: {error}; expected {name}{_names(signature)}.") from None
            bound.apply_defaults()
            given = bound.arguments
            for name, rule in rules.items():
                if not rule.holds(given[name], given):
                    raise ValueError(
                        f"{function.__name__}: {name}={shown(given[name])} was given; expected "
                        f"{rule.expected}."
                    )
                if isinstance(given[name], np.ndarray) and name not in _NO_ARRAYS:
                    given[name] = jnp.asarray(given[name])
                elif isinstance(given[name], np.generic):
                    given[name] = without_dtype(given[name])
            return function(*bound.args, **bound.kwargs)

        return check

    return decorate


def _names(signature: inspect.Signature) -> str:
    """The arguments of a function without their annotations."""
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))


def shown(value: Any) -> str:
    """A value as a message has it, in one line."""
    if isinstance(value, int) and value.bit_length() > 1000:  # Python writes none of 4,301 digits.
        return f"a whole number of {value.bit_length()} bits"
    text = " ".join(line.strip() for line in repr(value).splitlines())
    if isinstance(value, np.ndarray | jax.Array):
        traced = "traced " if isinstance(value, Tracer) else ""
        whole = not traced and value.ndim == 0
        return text if whole else f"{traced}{value.dtype}[{','.join(map(str, value.shape))}]"
    return text if len(text) <= 80 else f"{text[:77]}..."


def without_dtype(value: Any) -> Any:
    """A known number of NumPy or JAX without axes as one of Python; what is no such, as it is."""
    is_number = isinstance(value, np.generic | np.ndarray | jax.Array) and value.ndim == 0
    return value.item() if is_number and not isinstance(value, Tracer) else value


# What a single value may be.


def can_be_computed_with(dtype: Any) -> bool:
    """Whether values of a dtype can be converted to float32 or more by JAX's rules of promotion."""
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        return False
    return not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits >= 16


def is_flag(value: Any) -> bool:
    """Whether a value is true or false, or 1 or 0 in their place, and known before tracing."""
    if isinstance(value, Tracer):
        return False
    if isinstance(value, np.ndarray | jax.Array):
        return value.ndim == 0 and value.dtype == bool
    return isinstance(value, bool | np.bool_) or (isinstance(value, int) and value in (0, 1))


@functools.cache
def number(
    least: float = -np.inf,
    most: float = np.inf,
    *,
    above: float | None = None,
    infinite: bool = False,
    traced: bool = True,
) -> Holds:
    """Returns whether a value is a real number in a range, or a traced one if that may be."""

    def holds(value: Any) -> bool:
        if isinstance(value, bool | np.bool_) or not isinstance(
            value, int | float | np.number | np.ndarray | jax.Array
        ):
            return False
        if isinstance(value, np.generic | np.ndarray | jax.Array):
            real = jnp.issubdtype(value.dtype, jnp.floating)
            if value.ndim or not (real or jnp.issubdtype(value.dtype, jnp.integer)):
                return False
        if isinstance(value, Tracer):
            return traced
        try:
            real_number = float(value)
        except OverflowError:
            return False
        # Layers compute in float32, where larger numbers are infinite.
        finite = abs(real_number) <= float(np.finfo(np.float32).max)
        return (
            least <= real_number <= most
            and (above is None or real_number > above)
            and (finite or (infinite and math.isinf(real_number)))
        )

    return holds


def whole_number(least: int, most: int = 2**31 - 1) -> Holds:
    """Returns whether a value is a whole number in a range."""
    return lambda value: (
        isinstance(value, int | np.integer)
        and not isinstance(value, bool | np.bool_)
        and least <= int(value) <= most
    )


def is_dtype(value: Any) -> bool:
    """Whether a value names a dtype that a result can have."""
    if isinstance(value, np.ndarray | jax.Array):  # which NumPy would take for their dtype
        return False
    try:
        dtype = jnp.dtype(value)
    except (TypeError, ValueError):
        return False
    return jnp.issubdtype(dtype, jnp.inexact) and can_be_computed_with(dtype)


def are_words(value: Any) -> bool:
    """Whether a value holds nothing but words."""
    return isinstance(value, Iterable) and all(isinstance(part, str) for part in value)


def is_axis_name(value: Any) -> bool:
    """Whether a value may be the name of an axis, or several."""
    return isinstance(value, str | tuple | list) and len(value) > 0 and are_words(value)


# What an argument may be beside the others of its call.


@functools.cache
def _array(*kinds: Any, least_rank: int = 0) -> Holds:
    def holds(value: Any) -> bool:
        return (
            isinstance(value, np.ndarray | jax.Array)
            and can_be_computed_with(value.dtype)
            and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
            and value.ndim >= least_rank
        )

    return holds


def _first(given: Mapping[str, Any]) -> Any:
    """The array that a call is about."""
    return next(iter(given.values()))


def _are_axes(value: Any, given: Mapping[str, Any]) -> bool:
    is_axis = whole_number(0, _rank(_first(given)) - 1)
    return isinstance(value, tuple) and all(map(is_axis, value)) and len(set(value)) == len(value)


def _rank(value: Any) -> int:
    return value.ndim if hasattr(value, "ndim") else value[0].ndim  # of moments


def _is_axis(value: Any, given: Mapping[str, Any]) -> bool:
    rank = _rank(_first(given))
    return whole_number(-rank, rank - 1)(value)


def _is_front_axis(value: Any, given: Mapping[str, Any]) -> bool:
    return whole_number(0, _rank(_first(given)) - 1)(value)


def _lies_beside(value: Any, given: Mapping[str, Any]) -> bool:
    """Whether an array has the rank of the first one, and broadcasts to it."""
    shape = _first(given).shape
    return (
        _array(jnp.number)(value)
        and value.ndim == len(shape)
        and all(size in (1, wanted) for size, wanted in zip(value.shape, shape, strict=True))
    )


def _broadcasts(value: Any, given: Mapping[str, Any]) -> bool:
    if number()(value):
        return True
    shape = _first(given).shape
    return (
        _array(jnp.floating)(value)
        and value.ndim <= len(shape)
        and all(
            size in (1, wanted)
            for size, wanted in zip(value.shape[::-1], shape[::-1], strict=False)
        )
    )


def _is_epsilon(value: Any, given: Mapping[str, Any]) -> bool:
    return number(0.0)(value) or (getattr(value, "ndim", 0) > 0 and _broadcasts(value, given))


def _is_mask(value: Any, given: Mapping[str, Any]) -> bool:
    return (
        isinstance(value, np.ndarray | jax.Array)
        and value.dtype == bool
        and value.shape == _first(given).shape
    )


def _is_stored(value: Any, given: Mapping[str, Any]) -> bool:
    return _array(jnp.number, jnp.bool_)(value) and value.shape == _first(given).shape


def _divides(value: Any, given: Mapping[str, Any]) -> bool:
    axis, shape = given["channel_axis"], _first(given).shape
    # An axis that is not there is told of at its own turn.
    channels = shape[axis] if _is_axis(axis, given) else 0
    return whole_number(1)(value) and channels % value == 0


def _names_an_axis_in_scope(value: Any, _: Any) -> bool:
    if not is_axis_name(value):
        return False
    try:
        lax.psum(1, tuple(value) if isinstance(value, list) else value)
    except NameError:
        return False
    return True


def _are_index_groups(value: Any, given: Mapping[str, Any]) -> bool:
    if given.get("axis_name") is None:
        return False
    try:
        groups = np.asarray(value)
    except ValueError:  # of groups of unequal sizes
        return False
    indices = np.sort(groups, axis=None)
    return groups.ndim == 2 and np.array_equal(indices, np.arange(groups.size))


def _is_spec(value: Any, given: Mapping[str, Any]) -> bool:
    return isinstance(value, tuple) and len(value) == _rank(_first(given))


def plain(expected: str, holds: Holds) -> Argument:
    """An argument that is judged by itself."""
    return Argument(expected, lambda value, _: holds(value))


def or_none(argument: Argument) -> Argument:
    """An argument that may also be left out as None."""
    return Argument(
        f"{argument.expected}, or None",
        lambda value, given: value is None or argument.holds(value, given),
    )


def one_of(*choices: str) -> Argument:
    """An argument that is one of some words."""
    words = ", ".join(map(repr, choices))
    return plain(f"one of {words}", lambda value: isinstance(value, str) and value in choices)


_AN_ARRAY = "an array of JAX or NumPy, of at least 16 bits"
NUMBERS = plain(
    f"{_AN_ARRAY}, real or complex; convert integers first, for example by .astype(jnp.float32)",
    _array(jnp.inexact),
)
REAL_NUMBERS = plain(f"{_AN_ARRAY}, floating and not complex", _array(jnp.floating))
ANY_NUMBERS = plain(f"{_AN_ARRAY}", _array(jnp.number, jnp.bool_))
MATRIX = plain(
    f"{_AN_ARRAY}, real or complex, with at least 2 axes, outputs last",
    _array(jnp.inexact, least_rank=2),
)
BESIDE = Argument(
    "an array of the rank of the input that broadcasts to it, with 1 on the axes along which it "
    "is constant",
    _lies_beside,
)
BROADCAST = Argument("a real number, or a floating array that broadcasts to x", _broadcasts)
FLAG = plain("True or False", is_flag)
COUNT = plain("a whole number of at least 1", whole_number(1))
_NOT_NEGATIVE = plain("a finite number of at least 0", number(0.0))
_STATISTIC = Argument(
    "a floating array of the shape of mean",
    lambda value, given: _array(jnp.floating)(value) and value.shape == _first(given).shape,
)
_OF_BATCHES = Argument(
    "an array of the shape (batches, *features), features being the shape of mean",
    lambda value, given: (
        _array(jnp.inexact)(value)
        and value.ndim > 0
        and value.shape == (given["batch_mean"].shape[0], *_first(given).shape)
    ),
)

GROUPS = Argument("a whole number of at least 1 that divides the number of channels", _divides)
AXIS_NAME = Argument(
    "the name of an axis of a vmap or shard_map that the call stands in, or several in a tuple",
    _names_an_axis_in_scope,
)

# Arguments that NumPy arrays stay NumPy arrays in.
_NO_ARRAYS = ("axis_index_groups", "epsilon", "alpha", "shift", "momentum", "gain")

_BY_NAME: dict[str, Argument] = {
    "x": NUMBERS,
    "y": REAL_NUMBERS,
    "weight": NUMBERS,
    "axes": Argument(
        "a tuple of different axes, counted from 0 at the front, that the input has, such as "
        "(0, 1); count one from the back by axis % x.ndim",
        _are_axes,
    ),
    "axis": Argument("an axis of the input, counted from 0 at the front", _is_front_axis),
    "channel_axis": Argument("an axis of the input, such as -1, or 1 for channels first", _is_axis),
    "groups": GROUPS,
    "stored": or_none(Argument("an array of numbers of the shape of x", _is_stored)),
    "mask": or_none(
        Argument(
            "booleans of the shape of x, true where a value counts; make them by "
            "jnp.broadcast_to(mask.astype(bool), x.shape)",
            _is_mask,
        )
    ),
    "axis_name": or_none(AXIS_NAME),
    "axis_index_groups": or_none(
        Argument(
            "with axis_name, lists of equal length that name each index of the axis once, such as "
            "[[0, 1], [2, 3]]",
            _are_index_groups,
        )
    ),
    "use_mean": FLAG,
    "use_fast_variance": FLAG,
    "average": FLAG,
    "debias": FLAG,
    "epsilon": Argument(
        "a finite number of at least 0, such as 1e-5, or an array that broadcasts to the input",
        _is_epsilon,
    ),
    "dtype": or_none(
        plain("a floating or complex dtype of at least 16 bits, such as jnp.float32", is_dtype)
    ),
    "mean": or_none(BESIDE),
    "variance": BESIDE,
    "residual": or_none(BESIDE),
    "factor": or_none(BESIDE),
    "scale": or_none(BESIDE),
    "bias": or_none(BESIDE),
    "proxy_scale": BESIDE,
    "proxy_bias": BESIDE,
    "gain": BESIDE,
    "v": BROADCAST,
    "threshold": BROADCAST,
    "shift": BROADCAST,
    "size": COUNT,
    "samples": COUNT,
    "steps": COUNT,
    "ghost_batch_size": COUNT,
    "examples": plain("a whole number of at least 0", whole_number(0)),
    "k": _NOT_NEGATIVE,
    "alpha": _NOT_NEGATIVE,
    "beta": plain("a finite number, not a traced one", number(traced=False)),
    "activation": plain("a function of an array, such as jax.nn.relu", callable),
    "grouping": one_of("contiguous", "strided"),
    "remainder": one_of("error", "smaller_group", "merge_last"),
    "momentum": or_none(
        plain("the share that an update keeps, a number from 0 to 1", number(0.0, 1.0))
    ),
    "updates": Argument(
        "a number of updates, an array without axes",
        lambda value, _: _array(jnp.number)(value) and value.ndim == 0,
    ),
    "batch_mean": Argument(
        "an array of the shape (batches, *features), features being the shape of mean",
        lambda value, given: (
            _array(jnp.inexact)(value) and value.ndim > 0 and value.shape[1:] == _first(given).shape
        ),
    ),
    "batch_variance": _OF_BATCHES,
    "counts": _OF_BATCHES,
    "u": Argument(
        "an array of the shape (1, outputs), outputs being the last axis of weight",
        lambda value, given: (
            _array(jnp.inexact)(value) and value.shape == (1, _first(given).shape[-1])
        ),
    ),
    "sigma": Argument(
        "a floating array without axes",
        lambda value, _: _array(jnp.floating)(value) and value.ndim == 0,
    ),
    "spec": Argument("a tuple with an entry for each axis of x", _is_spec),
    "small": ANY_NUMBERS,
}
RUNNING: dict[str, Argument] = {"mean": NUMBERS, "variance": _STATISTIC}
