"""What normalization layers a trained model has, and whether they look healthy."""

from dataclasses import dataclass
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array
from rich.table import Table

from ..variants import VARIANTS
from .given import flattened, name_of, variables_of
from .layers import How, Layer, find_layers
from .statistics import keeps_statistics
from .table import Printed, table

Range = tuple[float, float]


@dataclass(frozen=True)
class LayerSummary:
    """What is known of one normalization layer.

    Attributes:
        path: Names that lead to its variables, as in `"block_0/norm"`.
        kind: Its class.
        statistics: What its training statistics are taken over, in words.
        input_shape: Shape of its input; None where the model was not traced.
        parameters: Number of values of each of its parameters, by name.
        mean: Smallest and largest running mean, if it keeps any.
        variance: Smallest and largest running variance, if it keeps any.
        warnings: What looks wrong, in words.
    """

    path: str
    kind: str
    statistics: str
    input_shape: tuple[int, ...] | None
    parameters: dict[str, int]
    mean: Range | None
    variance: Range | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Summary(Printed):
    """The normalization layers of a model, in the order of their calls."""

    layers: tuple[LayerSummary, ...]

    def __rich__(self) -> Table:
        """Returns the table, one row a layer."""
        columns = ("layer", "kind", "statistics", "input", "parameters", "mean", "variance", "")
        rows = [
            (
                it.path,
                it.kind,
                it.statistics,
                "x".join(map(str, it.input_shape or ())),
                ", ".join(f"{name} {size}" for name, size in it.parameters.items()),
                _in_words(it.mean),
                _in_words(it.variance),
                "; ".join(it.warnings),
            )
            for it in self.layers
        ]
        values = sum(sum(it.parameters.values()) for it in self.layers)
        warned = sum(bool(it.warnings) for it in self.layers)
        title = f"{len(rows)} normalization layers with {values} parameters; {warned} with warnings"
        return table(title, columns, rows)


def summary(model: nn.Module, variables: Any, x: Any, **how: Unpack[How]) -> Summary:
    """Lists the normalization layers of a model with their state.

    Usage::

        print(surgery.summary(model, variables, x))

    There is a warning where a running variance lies below the layer's epsilon, which then decides
    on the scale of the output; where statistics were never updated (all means 0 and variances 1, or
    a count of 0); and where anything is not finite.

    Args:
        model: A Linen model.
        variables: Its variables.
        x: A batch, or its shape and dtype.
        how: How the model is called: `call`, `method`, `rngs`; see `How`.

    Returns:
        A record for each layer, which prints as a table.
    """
    flat = flattened(nn.meta.unbox(variables_of(variables)))

    def of_layer(layer: Layer, collection: str) -> dict[str, Array]:
        start = (collection, *layer.path)
        return {
            "/".join(path[len(start) :]): value
            for path, value in flat.items()
            if path[: len(start)] == start
        }

    return Summary(
        tuple(
            summarize_layer(
                name_of(layer.path),
                layer.module,
                layer.input_shape,
                of_layer(layer, "params"),
                of_layer(layer, "batch_stats"),
            )
            for layer in find_layers(model, variables, x, **how)
        )
    )


def summarize_layer(
    path: str,
    module: Any,
    input_shape: tuple[int, ...] | None,
    params: dict[str, Array],
    statistics: dict[str, Array],
) -> LayerSummary:
    """Returns the record of one layer.

    Args:
        path: Its path.
        module: The layer with its fields.
        input_shape: Shape of its input, if that is known.
        params: Its parameters by name.
        statistics: Its running statistics by name.
    """
    kind = type(module).__name__
    registered = {it.layer.__name__: it.statistics for it in VARIANTS.values()}
    mean, variance = statistics.get("mean"), statistics.get("var")
    return LayerSummary(
        path,
        kind,
        registered.get(kind, "not stated"),
        input_shape,
        {name: int(np.size(value)) for name, value in params.items()},
        _range(mean),
        _range(variance),
        tuple(
            _warnings(
                getattr(module, "epsilon", 0),
                params,
                statistics,
                expects=isinstance(module, nn.Module) and keeps_statistics(module),
            )
        ),
    )


def _warnings(
    epsilon: float, params: dict[str, Array], statistics: dict[str, Array], *, expects: bool
) -> list[str]:
    """Returns what looks wrong with a layer, which may be expected to keep statistics."""
    found = [
        f"{name} is not finite"
        for name, value in {**params, **statistics}.items()
        if not jnp.all(jnp.isfinite(value))
    ]
    variance = statistics.get("var")
    if variance is None:
        return [*found, "no running statistics given"] if expects else found
    small = int(jnp.sum(variance < epsilon))
    if small:
        found.append(f"{small} of {variance.size} variances below epsilon={epsilon:g}")
    untouched = jnp.all(statistics.get("mean", jnp.zeros(())) == 0) & jnp.all(variance == 1)
    if untouched or jnp.any(statistics.get("count", jnp.ones(())) == 0):
        found.append("statistics never updated")
    return found


def _range(values: Array | None) -> Range | None:
    """The smallest and the largest value, of complex ones by magnitude."""
    if values is None or not values.size:
        return None
    real = np.abs(values) if np.iscomplexobj(values) else np.asarray(values)
    return float(real.min()), float(real.max())


def _in_words(values: Range | None) -> str:
    return "" if values is None else f"{values[0]:.3g} to {values[1]:.3g}"
