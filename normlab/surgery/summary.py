"""What normalization layers a trained model has, and whether they look healthy."""

from dataclasses import dataclass
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array
from rich.table import Table

from ..functional import Moments
from ..variants import VARIANTS
from .given import Path, flattened, name_of, variables_of
from .layers import Calling, How, Layer, find_layers, run
from .recalibrate import measuring, populations
from .statistics import keeps_statistics
from .table import Printed, table

Range = tuple[float, float]

# With fewer examples a variance says next to nothing.
_ENOUGH = 8


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
    """The normalization layers of a model, in the order of their calls.

    Attributes:
        layers: A record of each.
        compared: Number of examples that running statistics were compared with; 0 if they were not.
    """

    layers: tuple[LayerSummary, ...]
    compared: int = 0

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
        compared = (
            f"compared with {self.compared} examples"
            if self.compared
            else f"not compared with a batch of {_ENOUGH} or more"
        )
        title = (
            f"{_number(len(rows), 'normalization layer')} with {_number(values, 'parameter')}; "
            f"{warned} with warnings; running statistics {compared}"
        )
        return table(title, columns, rows)


def summary(model: nn.Module, variables: Any, x: Any, **how: Unpack[How]) -> Summary:
    r"""Lists the normalization layers of a model with their state.

    Usage::

        print(surgery.summary(model, variables, x))

    There is a warning where a running variance lies below the layer's epsilon, which then decides
    on the scale of the output; where statistics were never updated (all means 0 and variances 1, or
    a count of 0); where anything is not finite or a variance is negative; and where running
    statistics are far from those of the batch. For each layer and its input in evaluation,

    .. math:: \operatorname{median}_c \frac{|\mu_{B,c} - \mu_c|}{\sqrt{\sigma_c^2 + \epsilon}}
        \quad \text{and} \quad \operatorname{median}_c
        \left| \ln \frac{\sigma_{B,c}^2 + \epsilon}{\sigma_c^2 + \epsilon} \right|

    over the features c are far if above 1/4 + 2 / sqrt(n) for n examples: a quarter that moving
    averages may lag or test data differ, and what n examples leave to chance, twice the standard
    deviation of a mean. Fewer than 8 examples, or shapes alone, are compared with nothing.

    Args:
        model: A Linen model.
        variables: Its variables.
        x: A batch, as of the training data, or its shape and dtype.
        how: How the model is called: `call`, `method`, `rngs`; see `How`.

    Returns:
        A record for each layer, which prints as a table.
    """
    given = variables_of(variables)
    layers = find_layers(model, given, x, **how)
    flat = flattened(nn.meta.unbox(given))
    lacking = [
        layer
        for layer in layers
        if layer.keeps_statistics and ("batch_stats", *layer.path, "var") not in flat
    ]
    compared = 0 if lacking else compared_with(x)
    measured: dict[Path, Moments] = {}
    if compared:
        call, rngs = Calling.of(how)

        def measure(variables: Any, x: Any, rngs: Any) -> Any:
            handle = measuring(None, by_batch=False)
            return run(model, variables, x, Calling(call, rngs), handle)[1].get("batch_stats", {})

        measured = populations(jax.jit(measure)(given, x, rngs))

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
                layer.kind,
                layer.module,
                layer.input_shape,
                of_layer(layer, "params"),
                of_layer(layer, "batch_stats"),
                measured.get(layer.path),
            )
            for layer in layers
        ),
        compared,
    )


def compared_with(x: Any) -> int:
    """Returns the number of examples to compare running statistics with: 0 for too few.

    Args:
        x: A batch, its shape and dtype, or None.
    """
    leaves = jax.tree.leaves(x)
    if not leaves or any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return 0
    examples = max(np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in leaves)
    return examples if examples >= _ENOUGH else 0


def summarize_layer(
    path: str,
    kind: str,
    module: nn.Module,
    input_shape: tuple[int, ...] | None,
    params: dict[str, Array],
    statistics: dict[str, Array],
    measured: Moments | None,
) -> LayerSummary:
    """Returns the record of one layer.

    Args:
        path: Its path.
        kind: Name of its class.
        module: The Linen layer with its fields.
        input_shape: Shape of its input, if that is known.
        params: Its parameters by name.
        statistics: Its running statistics by name.
        measured: Moments of its input in a batch, if they were measured.
    """
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
                expects=keeps_statistics(module),
            )
            + _far(getattr(module, "epsilon", 0), statistics, measured, input_shape)
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
    if jnp.any(variance < 0):
        found.append(f"{int(jnp.sum(variance < 0))} of {variance.size} variances are negative")
    small = int(jnp.sum(variance < epsilon))
    if small:
        found.append(f"{small} of {variance.size} variances below epsilon={epsilon:g}")
    untouched = jnp.all(statistics.get("mean", jnp.zeros(())) == 0) & jnp.all(variance == 1)
    if untouched or jnp.any(statistics.get("count", jnp.ones(())) == 0):
        found.append("statistics never updated")
    return found


def _far(
    epsilon: float,
    statistics: dict[str, Array],
    measured: Moments | None,
    input_shape: tuple[int, ...] | None,
) -> list[str]:
    """Returns in which way running statistics are far from those of a batch; see `summary`."""
    examples = input_shape[0] if input_shape else 0
    if measured is None or examples < _ENOUGH:
        return []
    variance = np.asarray(statistics["var"], np.float64) + epsilon
    if not np.all(np.isfinite(variance) & (variance > 0)):
        return []  # There is a warning of that.
    mean = np.asarray(statistics.get("mean", measured.mean))
    far = {
        "means": np.abs(measured.mean - mean) / np.sqrt(variance),
        "variances": np.abs(
            np.log((np.asarray(measured.variance, np.float64) + epsilon) / variance)
        ),
    }
    unit = {"means": "standard deviations", "variances": "in their logarithm"}
    typical = {name: float(np.median(values)) for name, values in far.items()}
    allowed = 0.25 + 2 / np.sqrt(examples)
    return [
        f"running {name} far from the batch's: typically by {value:.2g} {unit[name]}, where "
        f"{allowed:.2g} would do for {examples} examples; recalibrate"
        for name, value in typical.items()
        if value > allowed
    ]


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _range(values: Array | None) -> Range | None:
    """The smallest and the largest value, of complex ones by magnitude."""
    if values is None or not values.size:
        return None
    real = np.abs(values) if np.iscomplexobj(values) else np.asarray(values)
    return float(real.min()), float(real.max())


def _in_words(values: Range | None) -> str:
    return "" if values is None else f"{values[0]:.3g} to {values[1]:.3g}"
