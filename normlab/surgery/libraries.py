"""Variables of normalization layers from PyTorch and Keras, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from jax.typing import ArrayLike

from .. import linen
from ..errors import UserError, nearest
from .given import Variables, flattened
from .statistics import keeps_statistics

# What one layer keeps, in the order of Keras, and what PyTorch calls it.
_TORCH = {
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
    ("batch_stats", "count"): "num_batches_tracked",
}
_COUNT = ("batch_stats", "count")
_LAYERS = (
    *(linen.BatchNorm, linen.GhostBatchNorm, linen.BatchRenorm, linen.BatchGroupNorm, nn.BatchNorm),
    *(linen.LayerNorm, nn.LayerNorm, linen.RMSNorm, nn.RMSNorm),
    *(linen.GroupNorm, nn.GroupNorm, linen.InstanceNorm, nn.InstanceNorm),
)


def from_torch(
    layer: nn.Module, entries: Mapping[str, ArrayLike], prefix: str = ""
) -> dict[str, Any]:
    """Returns the variables of a layer from the entries of a PyTorch state dictionary.

    For batch, layer, group, instance and root mean square norms. Values are taken as they are: the
    running variance of PyTorch is unbiased, and so it evaluates. Fields are the caller's affair:
    the epsilon, and as momentum one minus PyTorch's. A layer norm over several axes keeps them in
    PyTorch's order.

    Usage::

        entries = {name: tensor.numpy() for name, tensor in torch_model.state_dict().items()}
        layer = normlab.BatchNorm(momentum=0.9, running_variance="unbiased")
        variables = surgery.from_torch(layer, entries, "layer1.0.bn1.")

    Args:
        layer: The normlab or Flax layer that is to have them.
        entries: Arrays by their names: `weight`, `bias`, `running_mean`, `running_var` and
            `num_batches_tracked`, as far as the layer has them.
        prefix: What these names begin with; all others are passed over.

    Returns:
        Variables as `layer.init` makes them. The number of batches is kept where the layer counts.

    Raises:
        ValueError: If an entry is missing, or the layer has no place for one.
    """
    named = {name[len(prefix) :]: it for name, it in entries.items() if name.startswith(prefix)}
    expected = [_TORCH[path] for path in _kept(layer, "from_torch")]
    counted = named.pop(_TORCH[_COUNT], 0)
    if set(named) != set(expected):
        remedy = ""
        if not named and entries:
            prefixes = sorted({name[: name.rfind(".") + 1] for name in entries})
            remedy = f" No name begins with that{nearest(prefix, prefixes)}"
        if isinstance(layer, linen.InstanceNorm | nn.InstanceNorm) and "running_mean" in named:
            remedy = (
                " An instance norm with track_running_stats=True evaluates as batch norm does: "
                "give BatchNorm as the layer."
            )
        raise UserError(
            f"from_torch: {type(layer).__name__} with these fields needs the entries "
            f"{sorted(expected)}, but {sorted(named)} were given under the prefix {prefix!r}. Set "
            f"use_scale and use_bias of the layer as PyTorch has them.{remedy}"
        )
    return _variables(
        layer, {path: named[_TORCH[path]] for path in _kept(layer, "from_torch")}, counted
    )


def to_torch(layer: nn.Module, variables: Variables) -> dict[str, np.ndarray]:
    """Returns the entries of a PyTorch state dictionary from the variables of a layer.

    Where PyTorch has scale and bias together or not at all, the one that is missing is neutral.

    Args:
        layer: The normlab or Flax layer that has them.
        variables: The variables of the layer alone.

    Returns:
        Arrays by PyTorch's names, those of `from_torch`.

    Raises:
        ValueError: If a variable is missing.
    """
    arrays = _arrays(layer, variables, "to_torch")
    entries = {_TORCH[path]: value for path, value in arrays.items()}
    if "bias" in entries and "weight" not in entries:
        entries["weight"] = np.ones_like(entries["bias"])
    separate = linen.LayerNorm | nn.LayerNorm | linen.RMSNorm | nn.RMSNorm
    if "weight" in entries and "bias" not in entries and not isinstance(layer, separate):
        entries["bias"] = np.zeros_like(entries["weight"])
    if keeps_statistics(layer):
        counted = variables["batch_stats"].get("count", 0)
        entries["num_batches_tracked"] = np.asarray(counted, np.int64)
    return entries


def from_keras(layer: nn.Module, weights: Sequence[ArrayLike]) -> dict[str, Any]:
    """Returns the variables of a layer from the weights of a Keras layer.

    For `BatchNormalization`, `LayerNormalization`, `RMSNormalization`, and `GroupNormalization`,
    which with `groups=-1` is instance norm. Fields are the caller's affair, epsilon above all: it
    is 0.001 in Keras.

    Args:
        layer: The normlab or Flax layer that is to have them.
        weights: What `get_weights()` of the Keras layer returns: gamma (unless `scale=False`), beta
            (unless `center=False`), moving mean and moving variance, as far as it has them.

    Returns:
        Variables as `layer.init` makes them. Keras does not count updates: where the layer does,
        the count is 0.

    Raises:
        ValueError: If there are not as many as the layer has places for.
    """
    paths = _kept(layer, "from_keras")
    if len(weights) != len(paths):
        names = ", ".join(name for _, name in paths) or "none"
        raise UserError(
            f"from_keras: {type(layer).__name__} with these fields needs {len(paths)} weights "
            f"({names}), but {len(weights)} were given. Set use_scale and use_bias of the layer as "
            "scale and center are in Keras; of a layer with renorm=True leave off the last three."
        )
    return _variables(layer, dict(zip(paths, weights, strict=True)), 0)


def to_keras(layer: nn.Module, variables: Variables) -> list[np.ndarray]:
    """Returns the weights of a Keras layer from the variables of a layer.

    Args:
        layer: The normlab or Flax layer that has them.
        variables: The variables of the layer alone.

    Returns:
        Arrays in the order of `from_keras`, for `set_weights()` of the built Keras layer.

    Raises:
        ValueError: If a variable is missing.
    """
    return list(_arrays(layer, variables, "to_keras").values())


def _kept(layer: nn.Module, function: str) -> list[tuple[str, str]]:
    """Returns what a layer keeps, in the order of Keras, without a count of updates."""
    if type(layer) not in _LAYERS:
        names = sorted({it.__name__ for it in _LAYERS})
        raise UserError(
            f"{function}: {type(layer).__name__} has no counterpart there; layers that have one "
            f"are {', '.join(names)}."
        )
    has = {
        "scale": getattr(layer, "use_scale", False),
        "bias": getattr(layer, "use_bias", False),
        "mean": keeps_statistics(layer),
        "var": keeps_statistics(layer),
    }
    return [path for path in _TORCH if has.get(path[1])]


def _variables(
    layer: nn.Module, values: dict[tuple[str, str], ArrayLike], counted: ArrayLike
) -> dict[str, Any]:
    """Returns arrays as variables of a layer."""
    shapes = {name: np.shape(value) for (_, name), value in values.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(
            f"{type(layer).__name__}: the arrays of one layer differ in shape: {shapes}."
        )
    for path in (("batch_stats", "mean"), ("batch_stats", "var")):
        if path in values:
            _check_statistic(layer, path[1], np.asarray(values[path]))
    kept = {path: jnp.asarray(value) for path, value in values.items()}
    if ("params", "scale") in kept and getattr(layer, "zero_centred", False):
        kept["params", "scale"] = kept["params", "scale"] - 1
    counts = isinstance(layer, linen.BatchNorm) and (layer.momentum is None or layer.debias)
    if counts or isinstance(layer, linen.BatchRenorm):
        kept[_COUNT] = jnp.asarray(counted, jnp.float32)
    return unflatten_dict(kept)


def _check_statistic(layer: nn.Module, name: str, value: np.ndarray) -> None:
    """Refuses what running statistics cannot be."""
    start = f"{type(layer).__name__}: the running {name}"
    if value.dtype not in (np.float32, np.float64):
        raise UserError(
            f"{start} has the dtype {value.dtype}, but float32 or float64 is needed. Take the "
            "statistics from the model before it was converted to half precision, or convert "
            "them by astype."
        )
    if not np.all(np.isfinite(value)):
        raise UserError(f"{start} is not finite. Give those of a model that evaluates.")
    if name == "var" and np.any(value < 0):
        raise UserError(
            f"{start} is negative: the least value is {np.min(value):g}, but a variance is at "
            "least 0. Look whether mean and variance have changed places."
        )


def _arrays(
    layer: nn.Module, variables: Variables, function: str
) -> dict[tuple[str, str], np.ndarray]:
    """Returns the variables of a layer as arrays, in the order of Keras."""
    given = flattened(nn.meta.unbox(dict(variables)))
    missing = [path for path in _kept(layer, function) if path not in given]
    if missing:
        raise UserError(
            f"{function}: {type(layer).__name__} with these fields keeps "
            f"{', '.join('/'.join(path) for path in missing)}, which the variables lack; they hold "
            f"{', '.join('/'.join(path) for path in given) or 'nothing'}. Give those of the layer "
            "alone."
        )
    arrays = {path: np.asarray(given[path]) for path in _kept(layer, function)}
    if ("params", "scale") in arrays and getattr(layer, "zero_centred", False):
        arrays["params", "scale"] = arrays["params", "scale"] + 1
    return arrays
