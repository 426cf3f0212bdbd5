"""What the layers have in common: axes, masks, dtypes, learned scale and bias."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import canonicalize_dtype
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import (
    Moments,
    normalize,
    normalize_by_own_moments,
    small_beside,
)
from ..functional.arguments import can_be_computed_with, is_flag

Axes = int | Sequence[int]
AxisName = str | tuple[str, ...]


def resolve_axes(axes: Axes, rank: int, name: str) -> tuple[int, ...]:
    """Returns the axes without duplicates, not negative and in order.

    Raises:
        ValueError: If an axis lies outside the array.
    """
    given = (axes,) if isinstance(axes, int | np.integer) else tuple(axes)
    if given and not rank:
        raise ValueError(
            f"{name}={axes} names an axis, but the input is a single number and has none; give "
            "it at least one axis, for example x[None]."
        )
    if any(not -rank <= axis < rank for axis in given):
        raise ValueError(
            f"{name}={axes} names an axis that an input of rank {rank} does not have; axes lie "
            f"between {-rank} and {rank - 1}."
        )
    return tuple(sorted({axis % rank for axis in given}))


def axes_of(layer: Any, field: str, rank: int) -> tuple[int, ...]:
    """Returns the axes of an input that a field of a layer names, as `resolve_axes` does."""
    return resolve_axes(getattr(layer, field), rank, f"{type(layer).__name__}: {field}")


def channel_axis(layer: Any, rank: int) -> tuple[int]:
    """Returns the one axis of an input that the field `feature_axes` of a layer names.

    Raises:
        ValueError: If the input does not have it, or it is several or none.
    """
    axes = axes_of(layer, "feature_axes", rank)
    if len(axes) != 1:
        raise ValueError(
            f"{type(layer).__name__}: feature_axes={layer.feature_axes} was given; expected one "
            "axis, that of the channels, such as -1, or 1 for channels first."
        )
    return (axes[0],)


def last_axis(layer: Any, rank: int) -> tuple[int]:
    """Returns the last axis of an input, which holds the channels.

    Raises:
        ValueError: If it is a single number.
    """
    (axis,) = resolve_axes(-1, rank, f"{type(layer).__name__}: channel axis")
    return (axis,)


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


def as_array(layer: Any, name: str, value: ArrayLike) -> Array:
    """Returns an argument of a call as an array.

    Raises:
        ValueError: If it is none, or of a dtype that cannot be computed with.
    """
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{type(layer).__name__}: {name} is {type(value).__name__}, which JAX takes for no "
            f"array of numbers ({error}). Give an array of JAX or NumPy."
        ) from None
    if not can_be_computed_with(array.dtype):
        raise ValueError(
            f"{type(layer).__name__}: {name} has the dtype {array.dtype}, which JAX converts to no "
            "other by itself; expected real or complex numbers of at least 16 bits. Convert it "
            f"first, for example {name}.astype(jnp.bfloat16)."
        )
    return array


def checked(
    layer: Any, x: ArrayLike, mask: ArrayLike | None, use_running_average: Any
) -> tuple[Array, Array | None]:
    """Returns input and mask of a call as arrays of the input's shape.

    Raises:
        ValueError: If one of them is none, the mask is not boolean or does not broadcast to the
            input, or `use_running_average` is neither true nor false.
    """
    check_flag(layer, "use_running_average", use_running_average)
    x = as_array(layer, "x", x)
    if mask is None:
        return x, None
    mask = as_array(layer, "mask", mask)
    if mask.dtype != bool:
        raise ValueError(
            f"{type(layer).__name__}: mask has the dtype {mask.dtype}; expected booleans, true "
            "where a value counts. Convert one of zeros and ones by mask.astype(bool)."
        )
    try:
        fits = np.broadcast_shapes(mask.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{type(layer).__name__}: mask of shape {mask.shape} does not broadcast to the input "
            f"of shape {x.shape}. Give it the input's rank, with 1 on the axes along which it is "
            "constant, for example "
            f"{(x.shape[0],) + (1,) * (x.ndim - 1) if x.ndim else ()} for one entry an example."
        )
    # Written out with a rank of its own, since a lower rank would broadcast silently.
    mask = mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)
    return x, jnp.broadcast_to(mask, x.shape)


def check_flag(layer: Any, name: str, value: Any) -> None:
    """Refuses an argument of a call that is neither true nor false nor None.

    Raises:
        ValueError: That says what was given.
    """
    if getattr(value, "ndim", 0):
        raise ValueError(
            f"{type(layer).__name__}: {name} was given an array of shape {value.shape}; expected "
            "True, False or None. A mask is given as mask=..., since the second argument is "
            "use_running_average."
        )
    if not (value is None or is_flag(value)):
        given = "a traced value" if isinstance(value, Tracer) else repr(value)
        raise ValueError(
            f"{type(layer).__name__}: {name}={given} was given; expected True, False or None. It "
            "decides what is compiled, so under jit it must be static, for example by "
            "static_argnames."
        )


# What masked values may be multiplied with: 1 / sqrt(epsilon) where the others are alike, and the
# scale.
_MOST_MULTIPLIER = 1e6


def with_mask(
    layer: Any, x: ArrayLike, mask: ArrayLike | None, use_running_average: Any
) -> tuple[Array, Array | None]:
    """Returns input and mask of a call to a layer with statistics, as `checked` does.

    Masked values that are not finite, or so large that they may not be when they are normalized,
    become 0. Otherwise they would turn the gradient of the scale, a sum over all values, into NaN,
    even where the loss leaves them out.

    Raises:
        ValueError: As in `checked`.
    """
    array, mask = checked(layer, x, mask, use_running_average)
    if mask is None:
        return array, None
    # Half precision overflows long before a value is of no use.
    wide = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    return jnp.where(mask | jnp.isfinite(wide * _MOST_MULTIPLIER), array, 0), mask


def check_statistics(
    layer: Any, name: str, value: Any, shape: tuple[int, ...], *, negative: bool = True
) -> None:
    """Refuses a running statistic that a layer cannot have.

    What it holds can only be seen outside of `jit`.

    Args:
        layer: The layer.
        name: What to call it in the message.
        value: What a call was given.
        shape: The shape that belongs to the input.
        negative: Whether it may be below 0.

    Raises:
        ValueError: If it has another shape, less than 32 bits, or values that are not finite or
            below 0 where that cannot be.
    """
    told = f"{type(layer).__name__}: the running statistic {name}"
    if jnp.shape(value) != shape:
        raise ValueError(
            f"{told} has the shape {jnp.shape(value)}, but the input asks for {shape}. Give the "
            "variables of this layer, and an input with the features that they are made for."
        )
    dtype = jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 32:
        raise ValueError(
            f"{told} has the dtype {dtype}; expected at least float32, since the average of many "
            "batches needs its bits. Convert what was stored: "
            'jax.tree.map(lambda a: a.astype(jnp.float32), variables["batch_stats"]).'
        )
    if isinstance(value, Tracer) or not getattr(value, "is_fully_addressable", True):
        return
    values = np.asarray(value)
    if not np.all(np.isfinite(values)) or not (negative or np.all(values >= 0)):
        expected = "finite values" if negative else "finite values of at least 0"
        wrong = values[~np.isfinite(values) if negative else ~(values >= 0) | np.isinf(values)]
        raise ValueError(
            f"{told} holds {wrong.ravel()[0]}; expected {expected}. Take it from a checkpoint that "
            "is sound, or compute it anew from training data by normlab.surgery.recalibrate."
        )


def pooled_axis(layer: Any) -> dict[str, Any]:
    """Returns the named axis that statistics are pooled over, as arguments of `moments`.

    Raises:
        ValueError: If there is no such axis.
    """
    if layer.axis_name is None:
        return {}
    try:
        lax.psum(1, layer.axis_name)
    except NameError:
        raise ValueError(
            f"{type(layer).__name__}: axis_name={layer.axis_name!r} was given; expected the name "
            "of an axis of a vmap or shard_map that the call stands in, for example "
            f"jax.vmap(..., axis_name={layer.axis_name!r})."
        ) from None
    return {"axis_name": layer.axis_name, "axis_index_groups": layer.axis_index_groups}


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
        value = as_array(module, name, value)
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
        groups: Number of groups of channels, each of which has moments of its own; the channels lie
            on the one axis of `feature_axes`, which is among `axes`.
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
        channel_axis=feature_axes[0] if groups else -1,
        scale=scale,
        bias=bias,
        stored=inputs,
        dtype=canonicalize_dtype(inputs, scale, bias, dtype=module.dtype),
        mask=mask,
        **pooled_axis(module),
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
        moments.scaled_variance,
        epsilon=module.epsilon,
        residual=moments.residual if centre else None,
        factor=moments.factor,
        scale=scale,
        bias=bias,
        stored=inputs,
        dtype=canonicalize_dtype(inputs, scale, bias, dtype=module.dtype),
    )


def scaled(
    module: Any,
    inputs: Array,
    y: Array,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    feature_axes: tuple[int, ...] | None = None,
) -> Array:
    """Scales and shifts: the last step of layers that scale nothing before it.

    Args:
        module: The layer, with the field `dtype` and those that `affine` asks for.
        inputs: What the layer was given; decides the dtype of the output, as in Flax.
        y: What became of it.
        scale: As in `affine`.
        bias: As in `affine`.
        feature_axes: Axes that scale and bias vary along; by default the last.

    Raises:
        ValueError: As in `affine`, or if the input is a single number.
    """
    feature_axes = feature_axes or last_axis(module, y.ndim)
    scale, bias = affine(module, y, feature_axes, scale, bias)
    y = y if scale is None else y * scale
    y = y if bias is None else y + bias
    return y.astype(canonicalize_dtype(inputs, scale, bias, dtype=module.dtype))
