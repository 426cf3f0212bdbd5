"""The normalization layers of a Linen model: which there are, and what their calls are given."""

import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import unfreeze
from flax.core.scope import union_filters
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from ..errors import UserError
from ..variants import VARIANTS
from .statistics import keeps_statistics

Variables = Mapping[str, Any]
Path = tuple[str, ...]
Call = Callable[[Any, Any], Any]

_NOT_HOW = ("inner", "parent", "name")

# By these names models are told whether they are trained, and this is what they get here.
_IN_EVALUATION = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}

_runs = itertools.count()


@dataclass(frozen=True)
class Unbound:
    """A model that Flax does not bind together with the module that holds it."""

    module: nn.Module


class Altered(nn.Module):
    """A model whose layers are called in another way; its variables keep their places.

    Attributes:
        inner: The model.
    """

    inner: Unbound

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.inner.module

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model."""
        assert self.scope is not None  # For compact methods are called on bound modules only.
        # The name, of a collection that no model has, tells `nn.jit` inside the model that it must
        # not use again what it compiled for the model itself, nor the other way round.
        how = [getattr(self, it.name) for it in fields(self) if it.name not in _NOT_HOW]
        mutable: Any = self.scope.mutable
        if mutable is not True:
            mutable = union_filters(mutable, f"normlab.surgery.{type(self).__name__}{how}")
        rngs: Any = dict(self.scope.rngs)
        rngs = {name: rng.as_jax_rng() for name, rng in rngs.items()}
        with self._interception():
            if self.is_initializing():
                apply = partial(self.model.init_with_output, rngs)
            else:
                apply = partial(self.model.apply, self.variables, rngs=rngs)
            y, updated = apply(*args, **kwargs, mutable=mutable)
        for collection, values in updated.items():
            for name, value in values.items():
                self.put_variable(collection, name, value)
        return y

    def _interception(self) -> AbstractContextManager[Any]:
        """What is done to the layers while the model is called."""
        raise NotImplementedError


def evaluate(model: Any, batch: Any) -> Any:
    """Calls a bound model on a batch as in evaluation: what `call` does unless it is given.

    Where the model's call takes `train`, `training` or `is_training` it gets False; `deterministic`
    and `use_running_average` get True.
    """
    original = model
    while isinstance(original, Altered):
        original = original.model
    taken = inspect.signature(type(original).__call__).parameters
    told = {
        name: value
        for name, value in _IN_EVALUATION.items()
        if name in taken and getattr(original, name, None) is None
    }
    return model(batch, **told)


@dataclass(frozen=True)
class Layer:
    """A normalization layer of a model.

    Attributes:
        path: Names that lead to its variables; empty where the model is the layer.
        module: The layer with its fields, without variables.
        input_shape: Shape of the input of its first call.
    """

    path: Path
    module: nn.Module
    input_shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.module).__name__

    @property
    def keeps_statistics(self) -> bool:
        """Whether it normalizes by running statistics in evaluation."""
        return keeps_statistics(self.module)


@dataclass(frozen=True)
class LayerCall:
    """One call of a normalization layer inside a model.

    Attributes:
        module: The layer, bound to its variables.
        bound: What it was given.
        function: What the call would have called.
    """

    module: nn.Module
    bound: inspect.BoundArguments
    function: Callable[..., Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """What the layer was given, by the names of its arguments, the input first."""
        return {name: it for name, it in self.bound.arguments.items() if name != "self"}

    @property
    def x(self) -> Array:
        """The input."""
        return jnp.asarray(next(iter(self.arguments.values())))

    @property
    def uses_running_average(self) -> bool:
        """Whether it was asked to normalize by its running statistics."""
        field = getattr(self.module, "use_running_average", None)
        return bool(self.arguments.get("use_running_average") or field)

    def proceed(self, x: Array | None = None) -> Any:
        """Makes the call, on another input if one is given."""
        return self._called(self.function, {} if x is None else {next(iter(self.arguments)): x})

    def apply(self, variables: Variables, **options: Any) -> Any:
        """Calls the layer with other variables than its own.

        Args:
            variables: The variables of the layer alone.
            options: As those of `flax.linen.Module.apply`.
        """
        layer = self.module.clone(parent=None, name=None)
        return self._called(partial(layer.apply, variables, **options))

    def evaluate(
        self, variables: Variables, statistics: Variables = MappingProxyType({})
    ) -> tuple[Array, dict[str, Any]]:
        """Calls a layer with running statistics as in evaluation.

        Args:
            variables: The variables of the layer alone.
            statistics: New values of those in `batch_stats`, by name.

        Returns:
            The output, and all that the layer keeps in `batch_stats`. A number of updates that the
            variables lack has its initial value.

        Raises:
            ValueError: If there is no variance to normalize by.
        """
        kept = {**variables.get("batch_stats", {}), **statistics}
        if "var" not in kept:  # It would be initialized, silently.
            raise UserError(
                f"{name_of(self.module.path)} has no running statistics in batch_stats, by which "
                "it is to normalize. Give all variables of the trained model."
            )
        layer = self.module.clone(parent=None, name=None, use_running_average=None)
        apply = partial(layer.apply, {**variables, "batch_stats": kept}, mutable=["batch_stats"])
        y, updated = self._called(apply, {"use_running_average": True})
        return y, dict(updated["batch_stats"])

    def _called(
        self, function: Callable[..., Any], replaced: Variables = MappingProxyType({})
    ) -> Any:
        arguments = OrderedDict(self.bound.arguments, **replaced)
        call = inspect.BoundArguments(self.bound.signature, arguments)
        return function(*call.args[1:], **call.kwargs)  # Without the layer itself.


def layer_types() -> tuple[type[nn.Module], ...]:
    """Returns the classes of normalization layers: those of normlab, registered ones and Flax's."""
    registered = (variant.layer for variant in VARIANTS.values())
    return (*registered, nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm)


@contextmanager
def intercepted(handle: Callable[[LayerCall], Any]) -> Iterator[None]:
    """While it is entered, calls of normalization layers return what `handle` makes of them.

    Layers inside of normalization layers are their own affair.
    """
    types = layer_types()
    inside = False

    def interceptor(proceed: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal inside
        module = context.module
        if inside or context.method_name != "__call__" or not isinstance(module, types):
            return proceed(*args, **kwargs)
        given = inspect.signature(type(module).__call__).bind(module, *args, **kwargs)
        inside = True
        try:
            return handle(LayerCall(module, given, proceed))
        finally:
            inside = False

    with nn.intercept_methods(interceptor):
        yield


def check_linen(model: Any) -> None:
    """Refuses what is no Linen model.

    Raises:
        ValueError: That says what was expected.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"a Linen model was expected, but {type(model).__name__} is none. Give the model and "
            "its variables apart; for models of Flax NNX there is normlab.surgery.nnx."
        )


def run(
    model: nn.Module,
    variables: Variables,
    batch: Any,
    call: Call,
    handle: Callable[[LayerCall], Any],
) -> tuple[Any, dict[str, Any]]:
    """Calls a model, its normalization layers being handled; returns output and all variables.

    `batch_stats` can be written to.

    Raises:
        ValueError: If it is no Linen model.
    """
    check_linen(model)
    # The name, of a collection that no model has, tells `nn.jit` inside the model that it must not
    # use again what it compiled for another handler.
    mutable = ["batch_stats", f"normlab.surgery.{next(_runs)}"]
    with intercepted(handle):
        y, updated = nn.apply(call, model, mutable=mutable)(variables, batch)
    return y, unfreeze({**variables, **updated})


def find_layers(
    model: nn.Module, variables: Variables, x: Any, *, call: Call = evaluate
) -> tuple[Layer, ...]:
    """Finds the normalization layers that a model calls, in the order of their first calls.

    Nothing is computed: the model is only traced. Where `nn.jit` lets several parts of a model
    share one compiled function, the first of them is found.

    Args:
        model: A Linen model.
        variables: Its variables, or their shapes and dtypes.
        x: A batch, or its shape and dtype.
        call: How a batch goes through the bound model; see `evaluate`.

    Returns:
        The layers: those of normlab, those registered with it, and those of Flax that it replaces.
    """
    found: dict[Path, Layer] = {}

    def record(given: LayerCall) -> Any:
        path = given.module.path
        module = given.module.clone(parent=None, name=None)
        found.setdefault(path, Layer(path, module, given.x.shape))
        return given.proceed()

    jax.eval_shape(lambda variables, x: run(model, variables, x, call, record), variables, x)
    return tuple(found.values())


def flattened(variables: Variables) -> dict[Path, Any]:
    """Returns variables, or those of a collection, by their paths."""
    flat: Any = flatten_dict(unfreeze(dict(variables)))
    return flat


def name_of(path: Path) -> str:
    """Returns a path in one word, as messages and tables show it."""
    return "/".join(path) or "the model"


def in_words(layers: tuple[Layer, ...]) -> str:
    """Returns what layers there are, for a message that misses one."""
    found = ", ".join(f"{name_of(layer.path)} ({layer.kind})" for layer in layers)
    return f"the normalization layers found are {found}" if found else "none was found"
