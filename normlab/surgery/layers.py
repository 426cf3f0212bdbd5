"""The normalization layers of a Linen model: which there are, and what their calls are given."""

import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from types import MappingProxyType, MethodType
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn
from flax.core import freeze, unfreeze
from jaxtyping import Array, PRNGKeyArray

from ..errors import UserError, nearest
from ..variants import VARIANTS
from .given import Path, Variables, check_batch, name_of, variables_of
from .statistics import check_running, keeps_statistics

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

_NOT_ITS_VARIABLES = (
    errors.ApplyScopeInvalidVariablesStructureError,
    errors.ApplyScopeInvalidVariablesTypeError,
    errors.ScopeCollectionNotFound,
    errors.ScopeParamNotFoundError,
    errors.ScopeParamShapeError,
    errors.ScopeVariableNotFoundError,
)

_runs = itertools.count()


class How(TypedDict, total=False):
    """How a model is called: the last keywords of every function here that calls one.

    Attributes:
        call: How a batch goes through the bound model, as in
            `lambda model, batch: model(batch["image"], batch["age"], train=False)`. By default, as
            `evaluate` does.
        method: Name of the method to evaluate instead of `__call__`, or the method itself.
        rngs: Keys of a model that draws in evaluation, as for `apply`. The batches of
            `recalibrate` draw from keys of their own, made of these.
    """

    call: Call
    method: str | Callable[..., Any]
    rngs: PRNGKeyArray | Mapping[str, PRNGKeyArray]


class Calling(NamedTuple):
    """What `How` comes to.

    Attributes:
        call: How a batch goes through the bound model.
        rngs: Keys for what the model draws; None if there are none.
    """

    call: Call
    rngs: Any

    @classmethod
    def of(cls, how: How) -> "Calling":
        """Checks the keywords and fills in what is not given.

        Raises:
            TypeError: If there is no such keyword.
            ValueError: If they contradict each other.
        """
        for name in how.keys() - How.__annotations__.keys():
            raise TypeError(
                f"unexpected keyword {name!r}{nearest(name, How.__annotations__)}; how a model is "
                f"called is said by {', '.join(How.__annotations__)}."
            )
        call, method = how.get("call"), how.get("method")
        if call is not None and method is not None:
            raise UserError(
                f"call and method={method!r} were given. Give method alone, or let call use it, as "
                "in call=lambda model, batch: model.encode(batch)."
            )
        return cls(call or partial(evaluate, method=method or "__call__"), how.get("rngs"))


@dataclass(frozen=True)
class Unbound:
    """A model that Flax does not bind together with the module that holds it."""

    module: nn.Module


class Altered(nn.Module):
    """A model whose layers are called in another way; its variables keep their places.

    It has the methods of the model.

    Attributes:
        inner: The model.
    """

    inner: Unbound

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.inner.module

    # Not wrapped by Flax: its output would be captured beside that of the model, in one place.
    @nn.nowrap
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model."""
        return self.call_by("__call__", *args, **kwargs)

    @nn.nowrap
    def call_by(self, method: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the model."""
        if self.scope is None:
            raise UserError(
                f"a model without variables cannot be called; use {type(self).__name__}.apply."
            )
        # The model takes the place of this module. The flag tells `nn.jit` inside of it that it
        # must not use again what it compiled for the model itself, nor the other way round.
        how = [getattr(self, field.name) for field in fields(self) if field.name not in _NOT_HOW]
        scope = self.scope.rewound()
        scope.flags = freeze({**scope.flags, f"normlab.surgery.{type(self).__name__}": str(how)})
        model = self.model.clone(parent=scope, _deep_clone=True)
        function = getattr(type(model), method) if isinstance(method, str) else method
        with self._interception():
            return function(model, *args, **kwargs)

    @nn.nowrap
    def apply(self, variables: Any, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """Calls the model, or a method of it, as `flax.linen.Module.apply` does."""
        return super().apply(variables, *args, method=self._of_model(method), **kwargs)

    @nn.nowrap
    def init_with_output(self, rngs: Any, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """Initializes the model, as `flax.linen.Module.init_with_output` does."""
        return super().init_with_output(rngs, *args, method=self._of_model(method), **kwargs)

    @nn.nowrap
    def _of_model(self, method: Any) -> Any:
        """A method that may be one of the model's class, as one of this module."""
        if method is None or isinstance(method, str):
            return method
        function = method.__func__ if inspect.ismethod(method) else method
        return lambda altered, *args, **kwargs: altered.call_by(function, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__.get("inner")
        if inner is None or not callable(getattr(type(inner.module), name, None)):
            return super().__getattr__(name)

        def method(altered: Altered, *args: Any, **kwargs: Any) -> Any:
            return altered.call_by(name, *args, **kwargs)

        return MethodType(method, self)

    def _interception(self) -> AbstractContextManager[Any]:
        """What is done to the layers while the model is called."""
        raise NotImplementedError

    @nn.nowrap
    def _path_of(self, module: nn.Module) -> Path:
        """The path of a module inside the model, wherever the model itself is."""
        return module.path[len(self.path) :]


def evaluate(model: Any, batch: Any, method: str | Callable[..., Any] = "__call__") -> Any:
    """Calls a bound model on a batch as in evaluation: what `call` does unless it is given.

    A batch is the one input of the model; of a pair, as `(image, label)`, its first part is. Where
    the method takes `train`, `training` or `is_training` it gets False; `deterministic` and
    `use_running_average` get True.

    Raises:
        ValueError: If the batch has other parts, or the model other inputs.
    """
    original = model
    while isinstance(original, Altered):
        original = original.model
    function = getattr(type(original), method, None) if isinstance(method, str) else method
    if function is None:
        known = [name for name in dir(type(original)) if not hasattr(nn.Module, name)]
        raise UserError(
            f"method={method!r}: {type(original).__name__} has no such method"
            f"{nearest(str(method), known)}."
        )
    taken = inspect.signature(function).parameters
    told = {
        name: value
        for name, value in _IN_EVALUATION.items()
        if name in taken and not _is_set(original, name)
    }
    x = _input_of(batch, [it for it in list(taken.values())[1:] if it.name not in told])
    if isinstance(model, Altered):
        return model.call_by(method, x, **told)
    return function(model, x, **told)


def _is_set(model: Any, name: str) -> bool:
    """Whether a field of a model says already what an argument would; methods do not."""
    field = getattr(model, name, None)
    return field is not None and not callable(field)


def _input_of(batch: Any, taken: list[inspect.Parameter]) -> Any:
    """The input of a model in a batch: all of it, or the first part of a pair."""
    needed = [
        parameter.name
        for parameter in taken
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    is_tuple = isinstance(batch, tuple | list)
    if len(needed) > 1 or (is_tuple and len(batch) != 2):
        parts = f"{type(batch).__name__} of {len(batch)}" if is_tuple else type(batch).__name__
        raise UserError(
            f"a batch that is a {parts} does not say what the inputs {', '.join(needed)} of the "
            "model are. Say so by call, as in "
            "call=lambda model, batch: model(batch[0], batch[1], train=False)."
        )
    return batch[0] if is_tuple else batch


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

    def apply(
        self, variables: Variables, mutable: list[str], *, in_evaluation: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Calls the layer with other variables than its own; what it draws goes on.

        Args:
            variables: The variables of the layer alone.
            mutable: The collections that it may change.
            in_evaluation: Whether it must normalize by running statistics, whatever it was told.

        Returns:
            The output, and the collections that may have changed.
        """
        own: Any = self.module.scope
        fields: dict[str, Any] = {"use_running_average": None} if in_evaluation else {}
        layer = self.module.clone(parent=None, name=None, **fields)

        def called(layer: Any, *args: Any, **kwargs: Any) -> Any:
            layer.scope.rng_counters.update(own.rng_counters)
            y = layer(*args, **kwargs)
            own.rng_counters.update(layer.scope.rng_counters)
            return y

        function = partial(nn.apply(called, layer, mutable=mutable), variables, rngs=dict(own.rngs))
        y, updated = self._called(function, {"use_running_average": True} if in_evaluation else {})
        return y, dict(updated)

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
            ValueError: If there is no variance to normalize by, or it is none of this layer.
        """
        kept = {**variables.get("batch_stats", {}), **statistics}
        name = name_of(self.module.path)
        if "var" not in kept:  # It would be initialized, silently.
            raise UserError(
                f"{name} has no running statistics in batch_stats, by which it is to normalize. "
                "Give all variables of the trained model."
            )
        check_running(self.module, kept, self.x.shape, name)
        y, updated = self.apply(
            {**variables, "batch_stats": kept}, ["batch_stats"], in_evaluation=True
        )
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
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise UserError(
            f"a Linen model was expected, but {model.__name__} is a class. Give an instance, as in "
            f"{model.__name__}(...)."
        )
    if not isinstance(model, nn.Module):
        raise UserError(
            f"a Linen model was expected, but {type(model).__name__} is none. Give the model and "
            "its variables apart; for models of Flax NNX there is normlab.surgery.nnx."
        )


def run(
    model: nn.Module,
    variables: Variables,
    batch: Any,
    calling: Calling,
    handle: Callable[[LayerCall], Any],
) -> tuple[Any, dict[str, Any]]:
    """Calls a model, its normalization layers being handled; returns output and all variables.

    `batch_stats` can be written to. What the model itself writes elsewhere is dropped.

    Raises:
        ValueError: If it is no Linen model, or the batch is empty.
    """
    check_linen(model)
    check_batch(batch)
    # The name, of a collection that no model has, tells `nn.jit` inside the model that it must not
    # use again what it compiled for another handler.
    mutable = [*({*variables, "batch_stats"} - {"params"}), f"normlab.surgery.{next(_runs)}"]
    with intercepted(handle):
        called = nn.apply(calling.call, model, mutable=mutable)
        with _flax_errors_explained(variables, batch):
            y, updated = called(variables, batch, rngs=calling.rngs)
    kept = {"batch_stats": updated["batch_stats"]} if "batch_stats" in updated else {}
    return y, unfreeze({**variables, **kept})


@contextmanager
def _flax_errors_explained(variables: Variables, batch: Any) -> Iterator[None]:
    """Says what to give where Flax misses variables, finds others or misses keys."""
    try:
        yield
    except errors.InvalidRngError as error:
        raise UserError(
            f"the model draws in evaluation, but the keys for that are missing: {error} Give "
            'them, as in rngs={"dropout": jax.random.key(0)}, or let call evaluate the model.'
        ) from error
    except _NOT_ITS_VARIABLES as error:
        raise UserError(
            f"the variables are not those of the model for such a batch: {error} The collections "
            f"{', '.join(variables) or '(none)'} and a batch of shape "
            f"{jax.tree.map(jnp.shape, batch)} were given; expected all variables that "
            "model.init makes for this batch."
        ) from error


def find_layers(model: nn.Module, variables: Any, x: Any, **how: Unpack[How]) -> tuple[Layer, ...]:
    """Finds the normalization layers that a model calls, in the order of their first calls.

    Nothing is computed: the model is only traced. Where `nn.jit` lets several parts of a model
    share one compiled function, the first of them is found.

    Args:
        model: A Linen model.
        variables: Its variables, or their shapes and dtypes, or a state of training with them.
        x: A batch, or its shape and dtype.
        how: How the model is called: `call`, `method`, `rngs`; see `How`.

    Returns:
        The layers: those of normlab, those registered with it, and those of Flax that it replaces.
    """
    check_linen(model)
    check_batch(x)
    found: dict[Path, Layer] = {}
    call, rngs = Calling.of(how)

    def record(given: LayerCall) -> Any:
        path = given.module.path
        module = given.module.clone(parent=None, name=None)
        found.setdefault(path, Layer(path, module, given.x.shape))
        return given.proceed()

    def traced(variables: Any, x: Any, rngs: Any) -> Any:
        return run(model, variables, x, Calling(call, rngs), record)

    jax.eval_shape(traced, variables_of(variables), x, rngs)
    return tuple(found.values())


def in_words(layers: tuple[Layer, ...]) -> str:
    """Returns what layers there are, for a message that misses one."""
    found = ", ".join(f"{name_of(layer.path)} ({layer.kind})" for layer in layers)
    return f"the normalization layers found are {found}" if found else "none was found"
