"""The statistics of a layer's input over batches, and how they become its running ones."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array

from ..errors import UserError
from ..functional import Moments, group_moments, moments, pool_moments, unbiased, update_running
from ..linen import BatchGroupNorm, BatchNorm, EvoNormB0
from ..linen.shared import (
    in_statistics_dtype,
    number_of_groups,
    other_axes,
    resolve_axes,
    with_mask,
)


def keeps_statistics(layer: nn.Module) -> bool:
    """Returns whether a layer normalizes by running statistics in evaluation."""
    return isinstance(layer, BatchNorm | nn.BatchNorm)


def batch_moments(
    layer: Any, x: Array, mask: ArrayLike | None, examples: ArrayLike | None, name: str
) -> Moments:
    """Computes count, mean and variance of the input of a layer with running statistics.

    Args:
        layer: The Linen layer; only its fields are looked at.
        x: Its input.
        mask: Broadcastable to the input; true where a value counts.
        examples: True at the examples that count, along the first axis of the input.
        name: What to call the layer in an error.

    Returns:
        Moments of the shape of the layer's features, with the biased variance.

    Raises:
        ValueError: If there are not as many examples as the input has.
    """
    x, mask = with_mask(layer, in_statistics_dtype(x, None, True), mask, None)
    if examples is not None:
        examples = jnp.asarray(examples, bool)
        if examples.ndim != 1 or x.shape[:1] != examples.shape:
            raise UserError(
                f"{name}: the mask of the examples has the shape {examples.shape}, but the input "
                f"of the layer the shape {x.shape}. There must be one truth value for each place "
                "along the first axis. Where the model puts something else there, mask the values "
                "inside it, by the argument mask of the layer."
            )
        column = jnp.broadcast_to(examples.reshape(-1, *(1,) * (x.ndim - 1)), x.shape)
        x, mask = with_mask(layer, x, column if mask is None else mask & column, None)
    feature_axes = resolve_axes(layer.axis, x.ndim, "axis")
    reduced_axes = other_axes(feature_axes, x.ndim)
    if not reduced_axes:
        raise UserError(
            f"{name}: its input of shape {x.shape} holds only features along axis={layer.axis}, "
            "and no axis to take statistics over. Give a batch, its examples along the first axis."
        )
    if isinstance(layer, BatchGroupNorm):
        groups = number_of_groups(layer, x.shape[feature_axes[0]])
        batch = group_moments(x, reduced_axes, groups, channel_axis=feature_axes[0], mask=mask)
    else:
        batch = moments(x, reduced_axes, mask=mask)
    return jax.tree.map(lambda a: jnp.squeeze(a, reduced_axes), batch.plain())


def check_running(
    layer: Any, kept: Mapping[str, Any], input_shape: tuple[int, ...], name: str
) -> None:
    """Refuses running statistics that are none of a layer for such an input.

    Values are looked at where they are known, which is not while something is compiled.

    Args:
        layer: The Linen layer; only its fields are looked at.
        kept: What it keeps in `batch_stats`, by name.
        input_shape: Shape of its input.
        name: What to call the layer in an error.

    Raises:
        ValueError: If a shape is not that of the features, a dtype is of less than 32 bits, a value
            is not finite or a variance is negative.
    """
    features = tuple(
        input_shape[axis] for axis in resolve_axes(layer.axis, len(input_shape), "axis")
    )
    for statistic in ("mean", "var"):
        value = nn.meta.unbox(kept.get(statistic))
        if value is None:
            continue
        start = f"{name}: its running {statistic} in batch_stats"
        if jnp.shape(value) != features:
            raise UserError(
                f"{start} has the shape {jnp.shape(value)}, but its input of shape {input_shape} "
                f"needs {features}, one value for each feature. Give the variables of this model."
            )
        dtype = jnp.result_type(value)
        if not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 32:
            raise UserError(
                f"{start} has the dtype {dtype}, but statistics need float32 at least: store them "
                'as they were trained, or convert them by value.astype("float32").'
            )
        if isinstance(value, Tracer | jax.ShapeDtypeStruct):
            continue
        if not np.all(np.isfinite(value)):
            raise UserError(
                f"{start} is not finite. recalibrate replaces it by that of training data."
            )
        if statistic == "var" and np.any(np.asarray(value) < 0):
            raise UserError(
                f"{start} is negative: the least value is {np.min(value):g}, but a variance is at "
                "least 0. recalibrate replaces it by that of training data."
            )


def as_running(layer: nn.Module, mean: Array, variance: Array) -> dict[str, Array]:
    """Returns statistics as the variables in `batch_stats` that a layer keeps them in."""
    if isinstance(layer, EvoNormB0):  # It does not centre.
        return {"var": variance}
    return {"mean": mean, "var": variance}


def joined(before: Moments, batch: Moments) -> Moments:
    """Returns the moments of all batches, from those of the ones before and of one more."""
    both = jax.tree.map(lambda *parts: jnp.stack(parts), before, batch)
    return jax.tree.map(lambda a: a[0], pool_moments(both).plain())


def takes_unbiased(layer: Any) -> bool:
    """Returns whether the running variance of a layer is the unbiased one."""
    return getattr(layer, "running_variance", "biased") == "unbiased"


def of_population(
    measured: Moments, kept: dict[str, Array], use_unbiased: bool, name: str
) -> dict[str, Array]:
    """Returns the running mean and variance of a layer that has seen all data.

    Args:
        measured: The moments of its input.
        kept: Those so far, as far as it keeps them, for features of which nothing was counted.
        use_unbiased: Whether the variance is the unbiased one.
        name: What to call the layer in an error.

    Raises:
        ValueError: If they are not finite.
    """
    variance = unbiased(measured) if use_unbiased else measured.variance
    new = {"mean": measured.mean, "var": variance}
    if not all(jnp.all(jnp.isfinite(new[statistic])) for statistic in kept):
        raise UserError(
            f"recalibrate: the statistics of {name} are not finite, and neither is its input. Look "
            "for such values in the data, and leave them out by masks, or in the weights."
        )
    return {
        statistic: jnp.where(measured.counted > 0, new[statistic], value)
        for statistic, value in kept.items()
    }


def blended(
    layer: nn.Module,
    kept: dict[str, Array],
    batch: Moments,
    examples: ArrayLike,
    prior_strength: float | ArrayLike,
) -> dict[str, Array]:
    r"""Returns running statistics that a batch has entered by its number of examples.

    .. math:: s \leftarrow \frac{N}{N + n} s + \frac{n}{N + n} s_B

    Args:
        layer: The layer.
        kept: Its running statistics.
        batch: The moments of its input. Non-finite ones do not enter.
        examples: n.
        prior_strength: N.
    """
    # Of 0 examples and a strength of 0, the running ones stay.
    share = jnp.where(
        jnp.asarray(examples) > 0, examples / (examples + jnp.asarray(prior_strength)), 0
    )
    mean, variance, _ = update_running(
        kept.get("mean", jnp.zeros_like(kept["var"])),
        kept["var"],
        jnp.zeros(()),
        batch.mean[None],
        batch.variance[None],
        batch.counted[None],
        momentum=1 - share,
        debias=False,
    )
    return as_running(layer, mean, variance)
