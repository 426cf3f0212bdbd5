"""Exact population statistics for trained weights."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import repeat
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from flax.traverse_util import unflatten_dict

from ..errors import UserError
from ..functional import Moments
from ..linen import BatchRenorm
from .given import Path, as_given, check_batch, flattened, name_of, variables_of
from .layers import Calling, How, LayerCall, run
from .statistics import (
    as_running,
    batch_moments,
    check_running,
    joined,
    keeps_statistics,
    of_population,
    takes_unbiased,
)

# Where a layer's statistics grow during a pass, beside its variables `mean` and `var`.
_POPULATION = "population"
_MISSING = object()


class _Population(struct.PyTreeNode):
    """The input of a layer so far.

    It lies among the layer's variables, so that it goes where they go in `nn.scan` and its like.

    Attributes:
        moments: Its moments.
        features: How many features it has in one call.
        takes_unbiased: Whether the layer keeps the unbiased variance.
        counts_batches: Whether its `count` is one of the batches behind its statistics.
    """

    moments: Any
    features: int = struct.field(pytree_node=False)
    takes_unbiased: bool = struct.field(pytree_node=False)
    counts_batches: bool = struct.field(pytree_node=False)


def recalibrate(
    model: nn.Module,
    variables: Any,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    *,
    masks: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
    layer_by_layer: bool = False,
    **how: Unpack[How],
) -> Any:
    r"""Replaces running statistics by those of all the given data (precise batch normalization).

    .. math:: \mu = \frac{1}{n} \sum_b n_b \mu_b, \qquad
        \sigma^2 = \frac{1}{n} \sum_b n_b \left(\sigma_b^2 + |\mu_b - \mu|^2\right)

    over batches b of :math:`n_b` values, which may differ. Batches are merged one after the other,
    so that the data need not fit into memory. Parameters stay as they are.

    The data goes through the model once, every layer normalizing by the statistics of the batch.
    Deep layers therefore see what large batches make of their input, and not quite what evaluation
    will: the larger the batches, the less it matters. `layer_by_layer=True` closes that gap. Each
    layer then gets the statistics of its input while all layers before it normalize by their final
    ones, at the cost of one more pass for every layer that lies behind another.

    Usage, for weights that no training step has ever seen, such as averages over training::

        averaged = jax.tree.map(lambda a, b: (a + b) / 2, early, late)
        variables = surgery.recalibrate(model, {"params": averaged}, training_batches)

    The model is called as in evaluation, so without dropout; only its normalization layers measure
    their input. They may lie in `nn.scan`, `nn.vmap` or `nn.remat`, and be called several times.

    Args:
        model: A Linen model.
        variables: Its variables, or a state of training with them. Running statistics may be
            missing.
        batches: Batches of training data, or a function that returns them anew for each pass. Of a
            pair, as `(image, label)`, the first part is the model's input; see `evaluate`.
        masks: For each batch the truth values of its examples, false at those to leave out.
        layer_by_layer: Whether every layer is measured under the final statistics of those before.
        how: How the model is called: `call`, `method`, `rngs`; see `How`.
            For example `call=lambda model, batch: model(batch["image"], train=False)`.

    Returns:
        All variables in the form in which they were given, those of the running statistics new.
        The number of updates that some layers count becomes the number of batches, except for the
        schedule of `BatchRenorm`.

    Raises:
        ValueError: If no layer keeps running statistics, there is no batch, a pass cannot be
            repeated, or statistics come out non-finite.

    Source: Wu and Johnson, 2021, "Rethinking 'Batch' in BatchNorm", section 3.1.
    """
    check_repeatable(batches, masks, layer_by_layer)
    call, rngs = Calling.of(how)

    def step(variables: Any, batch: Any, mask: Any, number: Any, *, by_batch: bool) -> Any:
        measured = measuring(mask, by_batch=by_batch)
        keys = jax.tree.map(lambda key: jax.random.fold_in(key, number), rngs)
        return run(model, variables, batch, Calling(call, keys), measured)[1]["batch_stats"]

    compiled = jax.jit(step, static_argnames="by_batch")

    def one_pass(variables: Any, *, by_batch: bool) -> tuple[dict[str, Any], int]:
        """Returns all variables with new statistics, and the number of layers that have some."""
        number = 0
        for batch, mask in one_by_one(batches, masks):
            if number == 0:
                first = partial(step, by_batch=by_batch)
                shapes = jax.eval_shape(first, variables, batch, mask, number)
                variables = _with_zeros(variables, shapes)
            statistics = compiled(variables, batch, mask, number, by_batch=by_batch)
            variables = {**variables, "batch_stats": statistics}
            number += 1
        return _finished(variables, number)

    result, layers = one_pass({"batch_stats": {}, **variables_of(variables)}, by_batch=True)
    refuse_without_layers(layers)
    # Each pass makes one more layer of every chain of layers exact.
    for _ in range(layers if layer_by_layer else 0):
        before, (result, _) = result, one_pass(result, by_batch=False)
        if jax.tree.all(jax.tree.map(np.array_equal, before, result)):
            break
    return as_given(variables, result)


def measuring(mask: Any, *, by_batch: bool) -> Callable[[LayerCall], Any]:
    """Returns what takes the moments of the input of each layer with running statistics.

    They grow among the layer's variables in `batch_stats`; `populations` finds them there.

    Args:
        mask: True at the examples that count, or None.
        by_batch: Whether layers normalize by the statistics of the batch, or by the running ones.
    """

    def measured(given: LayerCall) -> Any:
        module = given.module
        if not keeps_statistics(module):
            return given.proceed()
        name, own_mask = name_of(module.path), given.arguments.get("mask")
        check_running(module, module.variables.get("batch_stats", {}), given.x.shape, name)
        moments = batch_moments(module, given.x, own_mask, mask, name)
        of_batch = as_running(module, moments.mean, moments.variance)
        y, kept = given.evaluate(module.variables, of_batch if by_batch else {})
        if module.has_variable("batch_stats", _POPULATION):
            moments = joined(module.get_variable("batch_stats", _POPULATION).moments, moments)
        population = _Population(
            moments,
            features=moments.counted.size,
            takes_unbiased=takes_unbiased(module),
            counts_batches=not isinstance(module, BatchRenorm),
        )
        module.put_variable("batch_stats", _POPULATION, population)
        for name, value in kept.items():
            if not module.has_variable("batch_stats", name):
                module.put_variable("batch_stats", name, value)
        return y

    return measured


def populations(statistics: Mapping[str, Any]) -> dict[Path, Moments]:
    """Returns the moments in what `measuring` has left in `batch_stats`, by path of the layer."""
    flat = flattened(statistics)
    return {path[:-1]: it.moments for path, it in flat.items() if isinstance(it, _Population)}


def check_repeatable(batches: Any, masks: Any, layer_by_layer: bool) -> None:
    """Refuses what cannot be gone through as often as is needed.

    Raises:
        ValueError: That names the remedy.
    """
    if isinstance(batches, jax.Array | np.ndarray):
        raise UserError(
            f"recalibrate: batches is an array of shape {batches.shape}, whose rows would be taken "
            "for batches. Give a list of batches."
        )
    if isinstance(batches, Mapping):
        raise UserError(
            f"recalibrate: batches is a mapping with the keys {', '.join(map(str, batches))}; give "
            "a list of batches, and call= if the model takes a part of each, for example "
            'call=lambda model, batch: model(batch["image"], train=False).'
        )
    ends = [not callable(it) and iter(it) is it for it in (batches, masks) if it is not None]
    if layer_by_layer and any(ends):
        raise UserError(
            "recalibrate: batches or masks end after one pass, but layer_by_layer=True needs "
            "several. Give a list, or a function that returns them anew."
        )


def refuse_without_layers(layers: int) -> None:
    """Refuses a model in which nothing is to be measured.

    Raises:
        ValueError: If there are no layers.
    """
    if layers == 0:
        raise UserError(
            "recalibrate: no normalization layer of the model keeps running statistics, so that "
            "there is nothing to measure. Those that do are BatchNorm and its relatives."
        )


def one_by_one(batches: Any, masks: Any) -> Iterator[tuple[Any, Any]]:
    """Goes through batches and their masks once.

    Raises:
        ValueError: If there are none, or not as many of both.
    """
    batches = batches() if callable(batches) else batches
    masks = masks() if callable(masks) else repeat(None) if masks is None else masks
    number, masks = 0, iter(masks)
    for number, batch in enumerate(batches, start=1):
        mask = next(masks, _MISSING)
        if mask is _MISSING:
            raise UserError(f"recalibrate: there are {number - 1} masks, but more batches.")
        check_batch(batch)
        yield batch, mask
    if not number:
        raise UserError(
            "recalibrate: there is no batch to measure; give at least one. A function must return "
            "the batches anew for each pass."
        )
    if not isinstance(masks, repeat) and next(masks, _MISSING) is not _MISSING:
        raise UserError(f"recalibrate: there are {number} batches, but more masks.")


def _with_zeros(variables: dict[str, Any], statistics: Any) -> dict[str, Any]:
    """Fills up what a step adds, so that the first one is compiled like all others."""
    given, wanted = flattened(variables["batch_stats"]), flattened(statistics)
    for path in wanted.keys() - given.keys():
        given[path] = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), wanted[path])
    return {**variables, "batch_stats": unflatten_dict(given)}


def _finished(variables: dict[str, Any], batches: int) -> tuple[dict[str, Any], int]:
    """Puts the populations in the places of the running statistics; counts the layers."""
    kept = flattened(variables["batch_stats"])
    layers = 0
    for path in [path[:-1] for path, value in kept.items() if isinstance(value, _Population)]:
        population = kept.pop((*path, _POPULATION))
        moments = population.moments
        # One in `nn.scan` stands for several.
        layers += moments.counted.size // population.features
        before = {name: kept[*path, name] for name in ("mean", "var") if (*path, name) in kept}
        new = of_population(moments, before, population.takes_unbiased, name_of(path))
        kept.update({(*path, name): value for name, value in new.items()})
        if (*path, "count") in kept and population.counts_batches:
            kept[*path, "count"] = jnp.full_like(kept[*path, "count"], batches)
    return {**variables, "batch_stats": unflatten_dict(kept)}, layers
