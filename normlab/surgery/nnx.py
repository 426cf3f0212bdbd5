"""The same for models of Flax NNX, which are changed in place.

How a model is called is said as for Linen models, by `call` or `method`; an NNX model draws from
its own `nnx.Rngs`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from .. import linen
from ..errors import UserError
from ..functional import Moments
from .given import check_batch, name_of
from .layers import How
from .nnx_adapt import Tented as Tented
from .nnx_adapt import adapt as adapt
from .nnx_adapt import tent as tent
from .nnx_calls import (
    LayerCall,
    Path,
    calling_of,
    class_of,
    described,
    find_layers,
    frozen_class,
    intercepted,
    kept,
    set_statistics,
    with_statistics,
)
from .nnx_replace import convert as convert
from .nnx_replace import fold as fold
from .recalibrate import check_repeatable, one_by_one, refuse_without_layers
from .statistics import as_running, joined, keeps_statistics, of_population, takes_unbiased
from .summary import Summary, compared_with, summarize_layer


def recalibrate(
    model: nnx.Module,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    masks: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
    layer_by_layer: bool = False,
    **how: Unpack[How],
) -> None:
    """Replaces running statistics by those of all the given data (precise batch normalization).

    As `normlab.surgery.recalibrate`, which says what the arguments are. The data goes through a
    copy of the model in evaluation.
    """
    check_repeatable(batches, masks, layer_by_layer)
    call = calling_of(how)
    originals = with_statistics(model)
    refuse_without_layers(len(originals))
    copy = nnx.clone(model)
    copy.eval()
    layers = with_statistics(copy)

    def start() -> None:
        for layer in layers.values():
            zeros = jnp.zeros_like(layer.var.get_value())
            mean = layer.mean.get_value() if hasattr(layer, "mean") else zeros
            layer.population = nnx.BatchStat(
                Moments(zeros, jnp.zeros_like(mean), jnp.zeros_like(mean), zeros)
            )

    start()
    graph = nnx.graphdef(copy)
    draws = jax.tree.map(jnp.asarray, nnx.state(copy, nnx.RngState))

    def step(state: Any, batch: Any, mask: Any, *, by_batch: bool) -> Any:
        def measured(given: LayerCall) -> Array:
            if not keeps_statistics(described(given.layer)):
                return given.proceed()
            moments = given.moments(mask)
            of_batch = as_running(described(given.layer), moments.mean, moments.variance)
            y = given.evaluate(of_batch if by_batch else {})
            population = given.layer.population
            population.set_value(joined(population.get_value(), moments))
            return y

        working = nnx.merge(graph, state)
        with intercepted(working, measured):
            call(working, batch)
        return nnx.state(working)

    compiled = jax.jit(step, static_argnames="by_batch")

    def one_pass(*, by_batch: bool) -> bool:
        """Returns whether any statistic has changed."""
        start()
        nnx.update(copy, draws)  # Each pass draws the same.
        state, number, changed = nnx.state(copy), 0, False
        for batch, mask in one_by_one(batches, masks):
            state = compiled(state, batch, mask, by_batch=by_batch)
            number += 1
        nnx.update(copy, state)
        for path, layer in layers.items():
            form, before = described(layer), kept(layer)
            count = before.pop("count", None)
            measured = layer.population.get_value()
            name = name_of(tuple(map(str, path)))
            new = of_population(measured, before, takes_unbiased(form), name)
            if count is not None and not isinstance(form, linen.BatchRenorm):
                new["count"] = jnp.full_like(count, number)
            changed |= any(not np.array_equal(before[name], new[name]) for name in before)
            set_statistics(layer, new)
        return changed

    one_pass(by_batch=True)
    if layer_by_layer:
        # Each pass makes one more layer of every chain of layers exact.
        sizes = ((it.var.get_value().size, np.prod(it.num_features)) for it in layers.values())
        depth = sum(size // features for size, features in sizes)
        for _ in range(depth):
            if not one_pass(by_batch=False):
                break
    for path, layer in layers.items():
        set_statistics(originals[path], kept(layer))


def freeze(model: nnx.Module) -> None:
    """Lets all layers with running statistics normalize by these, and leave them as they are.

    They do so whatever `train()`, `eval()`, `nnx.view` or their model says, until `unfreeze`.

    Raises:
        ValueError: If there is no such layer.
    """
    layers = with_statistics(model)
    if not layers:
        raise UserError(
            "freeze: no normalization layer of the model keeps running statistics, so that there "
            "is nothing to freeze. For what the layers learn there is trainable_filter."
        )
    for layer in layers.values():
        object.__setattr__(layer, "__class__", frozen_class(type(layer)))


def unfreeze(model: nnx.Module) -> None:
    """Undoes `freeze`: layers do again what they are told."""
    for layer in with_statistics(model).values():
        object.__setattr__(layer, "__class__", class_of(layer))


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


def summary(model: nnx.Module, x: Any = None, **how: Unpack[How]) -> Summary:
    """Lists the normalization layers of a model with their state.

    As `normlab.surgery.summary`, which says what the warnings mean. Without a batch the layers are
    in the order of their paths, without the shapes of their inputs, and their running statistics
    are compared with nothing.

    Args:
        model: The model.
        x: A batch.
        how: How the model is called: `call` or `method`; see `normlab.surgery.How`.
    """
    layers = {name_of(tuple(map(str, path))): it for path, it in find_layers(model).items()}
    called = {} if x is None else _measured(model, x, calling_of(how))
    records = []
    for name in called or layers:
        layer, (shape, moments) = layers[name], called.get(name, (None, None))
        variables = {key: it for key, it in vars(layer).items() if isinstance(it, nnx.Variable)}
        params, statistics = (
            {key: it.get_value() for key, it in variables.items() if isinstance(it, kind)}
            for kind in (nnx.Param, nnx.BatchStat)
        )
        kind = class_of(layer).__name__
        records.append(
            summarize_layer(name, kind, described(layer), shape, params, statistics, moments)
        )
    return Summary(tuple(records), compared_with(x))


def _measured(
    model: nnx.Module, x: Any, call: Callable[[Any, Any], Any]
) -> dict[str, tuple[tuple[int, ...], Moments | None]]:
    """Returns shape and moments of the input of each layer that is called, by name."""
    check_batch(x)
    copy = nnx.clone(model)
    copy.eval()
    shapes: dict[str, tuple[int, ...]] = {}
    layers = {name_of(tuple(map(str, path))): it for path, it in with_statistics(copy).items()}

    def measured(given: LayerCall) -> Any:
        shapes.setdefault(given.name, given.x.shape)
        if given.name not in layers:
            return given.proceed()
        moments = given.moments(None)
        if hasattr(given.layer, "population"):
            moments = joined(given.layer.population.get_value(), moments)
        given.layer.population = nnx.BatchStat(moments)
        return given.evaluate({})

    with intercepted(copy, measured):
        call(copy, x)
    return {
        name: (shape, layers[name].population.get_value() if name in layers else None)
        for name, shape in shapes.items()
    }
