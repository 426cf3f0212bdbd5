"""The same for models of Flax NNX, which are changed in place.

What stands here are the functions that act on running statistics and on what is trained. There is
no `fold`, `convert` or `tent`: they replace layers or rewrite the forward pass, which an NNX model
does by assigning to its own attributes and by the `nnx.grad` it is trained with.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array

from .. import linen
from ..errors import UserError
from ..functional import Moments
from ..nnx import Layer
from .adapt import check_prior_strength
from .given import name_of
from .recalibrate import check_repeatable, one_by_one, refuse_without_layers
from .statistics import (
    as_running,
    batch_moments,
    blended,
    joined,
    keeps_statistics,
    of_population,
    takes_unbiased,
)
from .summary import Summary, summarize_layer

Path = tuple[Any, ...]
Call = Callable[[Any, Any], Any]

_LAYERS = (Layer, nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm)

_MARK = "intercepted_by_surgery"
_marks = itertools.count()


def evaluate(model: Any, batch: Any) -> Any:
    """Calls a model on a batch: what `call` does unless it is given.

    Evaluation is set by `model.eval()`. A model that is told at its call instead needs a `call` of
    its own, such as `lambda model, batch: model(batch, train=False)`.
    """
    return model(batch)


def find_layers(model: nnx.Module) -> dict[Path, Any]:
    """Returns the normalization layers of a model by their paths: normlab's and Flax's."""
    if not isinstance(model, nnx.Module):
        raise UserError(
            f"a model of Flax NNX was expected, but {type(model).__name__} is none; for Linen "
            "models there are the functions of normlab.surgery."
        )
    return {path: it for path, it in nnx.iter_modules(model) if isinstance(it, _LAYERS)}


def recalibrate(
    model: nnx.Module,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    masks: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
    layer_by_layer: bool = False,
    call: Call = evaluate,
) -> None:
    """Replaces running statistics by those of all the given data (precise batch normalization).

    As `normlab.surgery.recalibrate`, which says what the arguments are. The data goes through a
    copy of the model in evaluation.
    """
    check_repeatable(batches, masks, layer_by_layer)
    originals = _with_statistics(model)
    refuse_without_layers(len(originals))
    copy = nnx.clone(model)
    copy.eval()
    layers = _with_statistics(copy)

    def start() -> None:
        for layer in layers.values():
            zeros = jnp.zeros_like(layer.var.get_value())
            mean = layer.mean.get_value() if hasattr(layer, "mean") else zeros
            layer.population = nnx.BatchStat(
                Moments(zeros, jnp.zeros_like(mean), jnp.zeros_like(mean), zeros)
            )

    start()
    graph = nnx.graphdef(copy)

    def step(state: Any, batch: Any, mask: Any, *, by_batch: bool) -> Any:
        def measured(given: _LayerCall) -> Array:
            moments = given.moments(mask)
            of_batch = as_running(given.described, moments.mean, moments.variance)
            y = given.evaluate(of_batch if by_batch else {})
            population = given.layer.population
            population.set_value(joined(population.get_value(), moments))
            return y

        working = nnx.merge(graph, state)
        with _intercepted(working, measured):
            call(working, batch)
        return nnx.state(working)

    compiled = jax.jit(step, static_argnames="by_batch")

    def one_pass(*, by_batch: bool) -> bool:
        """Returns whether any statistic has changed."""
        start()
        state, number, changed = nnx.state(copy), 0, False
        for batch, mask in one_by_one(batches, masks):
            state = compiled(state, batch, mask, by_batch=by_batch)
            number += 1
        nnx.update(copy, state)
        for path, layer in layers.items():
            described, kept = _linen(layer), _kept(layer)
            count = kept.pop("count", None)
            measured = layer.population.get_value()
            name = name_of(tuple(map(str, path)))
            new = of_population(measured, kept, takes_unbiased(described), name)
            if count is not None and not isinstance(described, linen.BatchRenorm):
                new["count"] = jnp.full_like(count, number)
            changed |= any(not np.array_equal(kept[name], new[name]) for name in kept)
            _set(layer, new)
        return changed

    one_pass(by_batch=True)
    if layer_by_layer:
        # Each pass makes one more layer of every chain of layers exact.
        depth = sum(it.var.get_value().size // np.prod(it.num_features) for it in layers.values())
        for _ in range(depth):
            if not one_pass(by_batch=False):
                break
    for path, layer in layers.items():
        _set(originals[path], _kept(layer))


def adapt(
    model: nnx.Module,
    x: Any,
    *,
    prior_strength: float | ArrayLike,
    mask: ArrayLike | None = None,
    call: Call = evaluate,
) -> None:
    """Blends the running statistics with those of a batch of test data.

    As `normlab.surgery.adapt`, which says what the arguments are. It may be called within
    `nnx.jit`. To start from the trained statistics with each batch, adapt an `nnx.clone`.
    """
    check_prior_strength(prior_strength)

    def adapted(given: _LayerCall) -> Array:
        number = given.x.shape[0] if mask is None else jnp.sum(jnp.asarray(mask, bool))
        kept = _kept(given.layer)
        new = blended(given.described, kept, given.moments(mask), number, prior_strength)
        _set(given.layer, new)
        return given.evaluate({})

    copy = nnx.clone(model)
    copy.eval()
    with _intercepted(copy, adapted):
        call(copy, x)
    originals = _with_statistics(model)
    for path, layer in _with_statistics(copy).items():
        _set(originals[path], _kept(layer))


def freeze(model: nnx.Module) -> None:
    """Lets all layers with running statistics normalize by these, and leave them as they are.

    To be called after `model.train()`, which sets them to batch statistics. A layer that is told
    `use_running_average` by its model at the call does what it is told.
    """
    for layer in _with_statistics(model).values():
        layer.use_running_average = True


@dataclass(frozen=True)
class TrainableFilter:
    """Says of each variable of a model whether it is trained; see `trainable_filter`."""

    paths: frozenset[Path]
    affine: bool
    rest: bool

    def __call__(self, path: Path, value: Any) -> bool:
        """Returns whether the variable at the path is trained."""
        if not issubclass(getattr(value, "type", type(value)), nnx.Param):
            return False
        inside = any(tuple(path[:end]) in self.paths for end in range(len(path)))
        return self.affine if inside else self.rest


def trainable_filter(
    model: nnx.Module, *, affine: bool = False, rest: bool = True
) -> TrainableFilter:
    """Returns a filter of the parameters to train, for `nnx.Optimizer` and `nnx.DiffState`.

    Usage, without training what the normalization layers have learned::

        trained = surgery.nnx.trainable_filter(model)
        optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=trained)
        gradients = nnx.grad(loss, argnums=nnx.DiffState(0, trained))(model, x)

    Args:
        model: The model.
        affine: Whether the parameters of its normalization layers are trained.
        rest: Whether all others are.
    """
    return TrainableFilter(frozenset(find_layers(model)), affine, rest)


def summary(model: nnx.Module) -> Summary:
    """Lists the normalization layers of a model with their state, in the order of their paths.

    As `normlab.surgery.summary`, without the shapes of inputs, which only a call would show.
    """
    records = []
    for path, layer in find_layers(model).items():
        variables = {name: it for name, it in vars(layer).items() if isinstance(it, nnx.Variable)}
        params, statistics = (
            {name: it.get_value() for name, it in variables.items() if isinstance(it, kind)}
            for kind in (nnx.Param, nnx.BatchStat)
        )
        name = name_of(tuple(map(str, path)))
        records.append(summarize_layer(name, layer, None, params, statistics))
    return Summary(tuple(records))


@dataclass(frozen=True)
class _LayerCall:
    """One call of a layer with running statistics.

    Attributes:
        layer: The layer.
        described: Its Linen form, without variables.
        x: The input.
        arguments: What else it was given, by name.
        function: The method that was called.
    """

    layer: Any
    described: Any
    x: Array
    arguments: dict[str, Any]
    function: Callable[..., Any]

    def moments(self, examples: ArrayLike | None) -> Moments:
        """Returns the moments of the input, of the given examples."""
        name = type(self.layer).__name__
        return batch_moments(self.described, self.x, self.arguments.get("mask"), examples, name)

    def evaluate(self, statistics: dict[str, Array]) -> Array:
        """Normalizes as in evaluation, by other statistics where they are given."""
        before = _kept(self.layer)
        _set(self.layer, statistics)
        y = self.function(self.layer, self.x, use_running_average=True, **self.arguments)
        _set(self.layer, before)
        return y


@contextmanager
def _intercepted(model: nnx.Module, handle: Callable[[_LayerCall], Array]) -> Iterator[None]:
    """While it is entered, calls of the model's layers with running statistics go to `handle`.

    NNX has no interceptors, so that the method is replaced in the classes. A mark on the layers
    tells them from those of other models. It differs each time, so that what `nnx.jit` inside the
    model has compiled is not used again with another `handle`.
    """
    mark = next(_marks)
    layers = _with_statistics(model).values()
    originals: dict[Any, Any] = {cls: cls.__call__ for cls in (Layer, nnx.BatchNorm)}

    def replacement(original: Any) -> Any:
        @functools.wraps(original)
        def call(self: Any, x: Any, use_running_average: Any = None, **arguments: Any) -> Any:
            if getattr(self, _MARK, None) != mark:
                return original(self, x, use_running_average, **arguments)
            return handle(_LayerCall(self, _linen(self), jnp.asarray(x), arguments, original))

        return call

    for layer in layers:
        setattr(layer, _MARK, mark)
    for cls, original in originals.items():
        cls.__call__ = replacement(original)
    try:
        yield
    finally:
        for cls, original in originals.items():
            cls.__call__ = original
        for layer in layers:
            delattr(layer, _MARK)


def _with_statistics(model: nnx.Module) -> dict[Path, Any]:
    """Returns the layers that keep running statistics."""
    return {path: it for path, it in find_layers(model).items() if keeps_statistics(_linen(it))}


def _linen(layer: Any) -> Any:
    """Returns the Linen form of a layer, as far as its statistics go."""
    if isinstance(layer, Layer):
        return layer._linen(use_running_average=None)
    return (
        linen.BatchNorm(axis=layer.axis) if isinstance(layer, nnx.BatchNorm) else linen.Identity()
    )


def _kept(layer: Any) -> dict[str, Array]:
    """Returns the running statistics of a layer."""
    names = [name for name in ("mean", "var", "count") if hasattr(layer, name)]
    return {name: getattr(layer, name).get_value() for name in names}


def _set(layer: Any, statistics: dict[str, Array]) -> None:
    for name, value in statistics.items():
        getattr(layer, name).set_value(value)
