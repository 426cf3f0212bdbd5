"""What the layers have in common: axes, masks, dtypes, learned scale and bias."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import canonicalize_dtype
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import (
    Moments,
    normalize,
    normalize_by_own_moments,
    small_beside,
    squared_magnitude,
)

Axes = int | Sequence[int]
AxisName = str | tuple[str, ...]


def resolve_axes(axes: Axes, rank: int, name: str) -> tuple[int, ...]:
    """Returns the axes without duplicates, not negative and in order.

    Raises:
        ValueError: If an axis lies outside the array.
    """
    given = (axes,) if isinstance(axes, int) else tuple(axes)
    if any(not -rank <= axis < rank for axis in given):
        raise ValueError(
            f"{name}={axes} names an axis that an input of rank {rank} does not have; axes lie "
            f"between {-rank} and {rank - 1}."
        )
    return tuple(sorted({axis % rank for axis in given}))


def check_choice(layer: Any, field: str, choices: tuple[str, ...]) -> None:
    """Refuses a value of a field that is not among the choices.

    Raises:
        ValueError: That names the choices.
    """
    given = getattr(layer, field)
    if given not in choices:
        raise ValueError(
            f"{type(layer).__name__}: {field}={given!r} is none of {', '.join(map(repr, choices))}."
        )


def number_of_groups(layer: Any, channels: int) -> int:
    """Returns how many groups the fields `num_groups` and `group_size` of a layer ask for.

    Raises:
        ValueError: If not just one of them is given, or it does not divide the channels.
    """
    name = type(layer).__name__
    if (layer.num_groups is None) == (layer.group_size is None):
        raise ValueError(
            f"{name}: num_groups={layer.num_groups} and group_size={layer.group_size} were "
            "given; expected one of them. With group_size, pass num_groups=None."
        )
    field = "group_size" if layer.num_groups is None else "num_groups"
    given = getattr(layer, field)
    if given <= 0 or channels % given:
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        raise ValueError(
            f"{name}: {field}={given} does not divide the {channels} channels of the input; "
            f"use one of {divisors}."
        )
    return channels // given if layer.num_groups is None else given


def refuse_complex(layer: Any, x: Array) -> None:
    """Refuses complex input to a layer that is defined for real numbers alone.

    Raises:
        ValueError: If the input is complex.
    """
    if jnp.iscomplexobj(x):
        raise ValueError(
            f"{type(layer).__name__}: an input of dtype {x.dtype} was given, but the layer is "
            "defined for real numbers. Pass real and imaginary parts as features of their own, "
            "jnp.concatenate([x.real, x.imag], axis=-1), or use a layer that takes complex "
            "numbers such as LayerNorm or RMSNorm."
        )


def other_axes(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Returns the axes that are not among the given ones."""
    return tuple(axis for axis in range(rank) if axis not in axes)


def with_mask(x: Array, mask: ArrayLike | None) -> tuple[Array, Array | None]:
    """Returns the input and the mask in its shape.

    Masked values whose square is not finite become 0. Otherwise they would turn the gradient of the
    scale, a sum over all values, into NaN, even where the loss leaves them out.

    Raises:
        ValueError: If the mask does not broadcast to the input.
    """
    if mask is None:
        return x, None
    mask = jnp.asarray(mask, bool)
    try:
        fits = np.broadcast_shapes(mask.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"mask of shape {mask.shape} does not broadcast to the input of shape {x.shape}. Give "
            "it the input's rank, with 1 on the axes along which it is constant, for example "
            f"{(x.shape[0],) + (1,) * (x.ndim - 1) if x.ndim else ()} for one entry an example."
        )
    # Written out with a rank of its own, since a lower rank would broadcast silently.
    mask = mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)
    mask = jnp.broadcast_to(mask, x.shape)
    # Half precision overflows long before a value is of no use.
    magnitude = squared_magnitude(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    return jnp.where(mask | jnp.isfinite(magnitude), x, 0), mask


def in_statistics_dtype(x: Array, dtype: DTypeLike | None, force_float32: bool) -> Array:
    """Converts the input to the dtype that its statistics are computed in.

    At least float32 unless `force_float32` is false; double precision and complex numbers stay.
    """
    wanted = jnp.result_type(x) if dtype is None else jnp.dtype(dtype)
    if force_float32 or not jnp.issubdtype(wanted, jnp.inexact):
        wanted = jnp.promote_types(wanted, jnp.float32)
    if jnp.iscomplexobj(x):
        wanted = jnp.promote_types(wanted, jnp.complex64)
    return x.astype(wanted)


def broadcast_to_input(
    name: str, value: ArrayLike, x: Array, feature_axes: tuple[int, ...]
) -> Array:
    """Returns a scale or bias in the rank of the input and on its devices, ready to broadcast.

    Args:
        name: What to call it in an error.
        value: Of the shape of the features, or of the rank of the input.
        x: The input.
        feature_axes: Axes of the input that hold the features.

    Raises:
        ValueError: If the value has neither the shape of the features nor the rank of the input
            and a shape that broadcasts to it.
    """
    value, shape = jnp.asarray(value), x.shape
    features = tuple(shape[axis] for axis in feature_axes)
    if value.shape == features:
        return small_beside(x, jnp.expand_dims(value, other_axes(feature_axes, len(shape))))
    if value.ndim == len(shape) and all(
        size in (1, wanted) for size, wanted in zip(value.shape, shape, strict=True)
    ):
        return small_beside(x, value)
    raise ValueError(
        f"{name} of shape {value.shape} fits neither the features {features} nor the input "
        f"{shape}. Give it the shape of the features, or the rank of the input with 1 on the axes "
        "along which it is constant."
    )


def affine(
    module: Any,
    x: Array,
    feature_axes: tuple[int, ...],
    scale: ArrayLike | None,
    bias: ArrayLike | None,
) -> tuple[Array | None, Array | None]:
    """Returns scale and bias in the rank of the input: those given, or the learned ones, or None.

    Args:
        module: The layer. It has the field `param_dtype`, and those it learns of `use_scale` with
            `scale_init`, `use_bias` with `bias_init`.
        x: The input.
        feature_axes: Axes that scale and bias vary along.
        scale: Used instead of the learned scale, which then is not created.
        bias: Used instead of the learned bias, likewise.

    Raises:
        ValueError: If a given scale or bias does not fit the input.
    """
    features = tuple(x.shape[axis] for axis in feature_axes)

    def one(name: str, value: ArrayLike | None) -> Array | None:
        if value is None and getattr(module, f"use_{name}", False):
            initializer = getattr(module, f"{name}_init")
            value = module.param(name, initializer, features, module.param_dtype)
        if value is None:
            return None
        return broadcast_to_input(f"{type(module).__name__}: {name}", value, x, feature_axes)

    return one("scale", scale), one("bias", bias)


def normalized_by_own_moments(
    module: Any,
    inputs: Array,
    mask: Array | None,
    axes: tuple[int, ...],
    feature_axes: tuple[int, ...],
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    groups: int | None = None,
    centre: bool = True,
) -> Array:
    """Normalizes by the input's own moments, scales and shifts: all that some layers do.

    Args:
        module: The layer, with the fields of `LayerNorm` that are not about axes.
        inputs: What the layer was given; decides the dtype of the output, as in Flax.
        mask: True where a value counts, in the shape of the input.
        axes: Axes that the moments are over.
        feature_axes: Axes that scale and bias vary along.
        scale: As in `affine`.
        bias: As in `affine`.
        groups: Number of groups of the last axis, each of which has moments of its own.
        centre: Whether the mean is subtracted.

    Raises:
        ValueError: As in `affine`.
    """
    x = in_statistics_dtype(inputs, module.dtype, module.force_float32_reductions)
    scale, bias = affine(module, x, feature_axes, scale, bias)
    return normalize_by_own_moments(
        x,
        axes,
        epsilon=module.epsilon,
        groups=groups,
        scale=scale,
        bias=bias,
        stored=inputs,
        dtype=canonicalize_dtype(inputs, scale, bias, dtype=module.dtype),
        mask=mask,
        axis_name=module.axis_name,
        axis_index_groups=module.axis_index_groups,
        use_mean=centre,
        use_fast_variance=module.use_fast_variance,
    )


def normalized(
    module: Any,
    inputs: Array,
    x: Array,
    moments: Moments,
    feature_axes: tuple[int, ...],
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    centre: bool = True,
) -> Array:
    """Normalizes, scales and shifts: the last step of every layer.

    Args:
        module: The layer, with the fields `epsilon`, `dtype` and those that `affine` asks for.
        inputs: What the layer was given; decides the dtype of the output, as in Flax.
        x: The same in the dtype of the statistics.
        moments: The statistics, broadcastable to `x`.
        feature_axes: Axes that scale and bias vary along.
        scale: As in `affine`.
        bias: As in `affine`.
        centre: Whether the mean is subtracted.

    Raises:
        ValueError: As in `affine`.
    """
    scale, bias = affine(module, x, feature_axes, scale, bias)
    return normalize(
        x,
        moments.shift if centre else None,
        moments.variance,
        epsilon=module.epsilon,
        residual=moments.residual if centre else None,
        scale=scale,
        bias=bias,
        stored=inputs,
        dtype=canonicalize_dtype(inputs, scale, bias, dtype=module.dtype),
    )


def scaled(
    module: Any, inputs: Array, y: Array, scale: ArrayLike | None, bias: ArrayLike | None
) -> Array:
    """Scales and shifts along the last axis: the last step of layers that scale nothing before it.

    Args:
        module: The layer, with the field `dtype` and those that `affine` asks for.
        inputs: What the layer was given; decides the dtype of the output, as in Flax.
        y: What became of it.
        scale: As in `affine`.
        bias: As in `affine`.

    Raises:
        ValueError: As in `affine`, or if the input is a single number.
    """
    feature_axes = resolve_axes(-1, y.ndim, "feature axis")
    scale, bias = affine(module, y, feature_axes, scale, bias)
    y = y if scale is None else y * scale
    y = y if bias is None else y + bias
    return y.astype(canonicalize_dtype(inputs, scale, bias, dtype=module.dtype))
