"""The normalization layers of an NNX model, and what their calls are given.

NNX has no interceptors. A layer of a copy of the model becomes an object of a subclass of its
class, which hands its calls on. No class is changed, so that other models and threads go on.
"""

import functools
import inspect
import itertools
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array

from ..errors import UserError
from ..functional import Moments
from ..nnx import Layer
from .given import name_of
from .layers import Calling, How
from .statistics import batch_moments, check_running, keeps_statistics

Path = tuple[Any, ...]

# Those of Flax, and the Linen layers that tell what is done here of them.
_OF_FLAX: dict[type[nnx.Module], type[nn.Module]] = {
    nnx.BatchNorm: nn.BatchNorm,
    nnx.LayerNorm: nn.LayerNorm,
    nnx.RMSNorm: nn.RMSNorm,
    nnx.GroupNorm: nn.GroupNorm,
    nnx.InstanceNorm: nn.InstanceNorm,
}
LAYERS: tuple[type[nnx.Module], ...] = (Layer, *_OF_FLAX)

# What an altered layer carries: it keeps `nnx.jit` inside of the model from using again what it
# compiled for another handler.
_MARK = "normlab_surgery"
_marks = itertools.count()

_handler: ContextVar[Callable[["LayerCall"], Any]] = ContextVar("handler")


def check_model(model: Any) -> None:
    """Refuses what is no NNX model.

    Raises:
        ValueError: That says what was expected.
    """
    if isinstance(model, type) and issubclass(model, nnx.Module):
        raise UserError(
            f"a model of Flax NNX was expected, but {model.__name__} is a class. Give an instance, "
            f"as in {model.__name__}(..., rngs=nnx.Rngs(0))."
        )
    if not isinstance(model, nnx.Module):
        raise UserError(
            f"a model of Flax NNX was expected, but {type(model).__name__} is none; for Linen "
            "models there are the functions of normlab.surgery."
        )


def find_layers(model: nnx.Module) -> dict[Path, Any]:
    """Returns the normalization layers of a model by their paths: normlab's and Flax's."""
    check_model(model)
    return {path: it for path, it in nnx.iter_modules(model) if isinstance(it, LAYERS)}


def with_statistics(model: nnx.Module) -> dict[Path, Any]:
    """Returns the layers that keep running statistics."""
    found = find_layers(model).items()
    return {path: layer for path, layer in found if keeps_statistics(described(layer))}


def class_of(layer: Any) -> type[Any]:
    """Returns the class of a layer as its author knows it."""
    return getattr(type(layer), "_original_class", type(layer))


def described(layer: Any) -> Any:
    """Returns the Linen form of a layer, without variables."""
    if isinstance(layer, Layer):
        return layer._linen(use_running_average=None)
    (form,) = (form for cls, form in _OF_FLAX.items() if isinstance(layer, cls))
    fields = {"axis", "epsilon", "momentum"} & form.__dataclass_fields__.keys() & vars(layer).keys()
    return form(**{name: getattr(layer, name) for name in fields})


def kept(layer: Any) -> dict[str, Array]:
    """Returns the running statistics of a layer."""
    names = [name for name in ("mean", "var", "count") if hasattr(layer, name)]
    return {name: getattr(layer, name).get_value() for name in names}


def set_statistics(layer: Any, statistics: dict[str, Array]) -> None:
    """Replaces running statistics of a layer."""
    for name, value in statistics.items():
        getattr(layer, name).set_value(value)


def calling_of(how: How) -> Callable[[Any, Any], Any]:
    """Returns how a batch goes through a model.

    Raises:
        ValueError: If keys are given.
    """
    if how.get("rngs") is not None:
        raise UserError("rngs were given, but a model of Flax NNX draws from its own nnx.Rngs.")
    return Calling.of(how).call


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer.

    Attributes:
        layer: The layer.
        name: Its path in the model, in one word.
        arguments: What it was given, by name, the input first.
        function: The method that was called.
    """

    layer: Any
    name: str
    arguments: dict[str, Any]
    function: Callable[..., Any]

    @property
    def x(self) -> Array:
        """The input."""
        return jnp.asarray(next(iter(self.arguments.values())))

    @property
    def uses_running_average(self) -> bool:
        """Whether it was asked to normalize by its running statistics."""
        told = self.arguments.get("use_running_average")
        return bool(getattr(self.layer, "use_running_average", False) if told is None else told)

    def proceed(self, x: Array | None = None) -> Any:
        """Makes the call, on another input if one is given."""
        replaced = {} if x is None else {next(iter(self.arguments)): x}
        return self.function(self.layer, **{**self.arguments, **replaced})

    def moments(self, examples: ArrayLike | None) -> Moments:
        """Returns the moments of the input, of the given examples."""
        form = described(self.layer)
        check_running(form, kept(self.layer), self.x.shape, self.name)
        return batch_moments(form, self.x, self.arguments.get("mask"), examples, self.name)

    def evaluate(self, statistics: dict[str, Array]) -> Array:
        """Normalizes as in evaluation, by other statistics where they are given."""
        before = kept(self.layer)
        set_statistics(self.layer, statistics)
        y = self.function(self.layer, **{**self.arguments, "use_running_average": True})
        set_statistics(self.layer, before)
        return y


@contextmanager
def intercepted(
    model: nnx.Module,
    handle: Callable[[LayerCall], Any],
    classes: Iterable[type[nnx.Module]] = LAYERS,
) -> Iterator[None]:
    """While it is entered, calls of the model's layers return what `handle` makes of them.

    Args:
        model: The model, which nothing else calls meanwhile: a copy.
        handle: Is given each call of a layer.
        classes: Those of the layers.
    """
    mark, classes = next(_marks), tuple(classes)
    layers = [(path, it) for path, it in nnx.iter_modules(model) if isinstance(it, classes)]
    before = [type(layer) for _, layer in layers]
    token = _handler.set(handle)
    try:
        for path, layer in layers:
            setattr(layer, _MARK, f"{mark} {name_of(tuple(map(str, path)))}")
            object.__setattr__(layer, "__class__", _handing_on(type(layer)))
        yield
    finally:
        _handler.reset(token)
        for (_, layer), cls in zip(layers, before, strict=True):
            object.__setattr__(layer, "__class__", cls)
            delattr(layer, _MARK)


def frozen_class(cls: type[Any]) -> type[Any]:
    """Returns a class of layers that normalize by running statistics, whatever they are told."""
    return cls if hasattr(cls, "_original_class") else _frozen_class(cls)


@functools.cache
def _frozen_class(cls: type[Any]) -> type[Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = _arguments(cls, self, args, kwargs)
        return cls.__call__(self, **{**arguments, "use_running_average": True})

    # Pickle does not find this class by its name.
    return _subclass(cls, call, __reduce__=lambda self: (_unpickled, (cls, dict(vars(self)))))


def _unpickled(cls: type[Any], state: dict[str, Any]) -> Any:
    """Makes a frozen layer of what it consists of."""
    layer = object.__new__(_frozen_class(cls))
    for name, value in state.items():
        object.__setattr__(layer, name, value)
    return layer


@functools.cache
def _handing_on(cls: type[Any]) -> type[Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        _, _, name = getattr(self, _MARK).partition(" ")
        arguments = _arguments(cls, self, args, kwargs)
        return _handler.get()(LayerCall(self, name, arguments, cls.__call__))

    return _subclass(cls, call)


def _subclass(cls: type[Any], call: Callable[..., Any], **more: Any) -> type[Any]:
    content = {
        "__call__": functools.wraps(cls.__call__)(call),
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
        "_original_class": getattr(cls, "_original_class", cls),
        **more,
    }
    return types.new_class(cls.__name__, (cls,), exec_body=lambda body: body.update(content))


def _arguments(cls: type[Any], layer: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    bound = inspect.signature(cls.__call__).bind(layer, *args, **kwargs)
    _, *given = bound.arguments.items()
    return dict(given)
