"""Normalization of an array by its own moments, as layer, group and instance norm do."""

import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.interpreters import ad
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Inexact

from .arguments import GROUPS, checked, or_none
from .groups import group_moments
from .kernels import Channels, Form, Values, kernels_run, normalize_backward, normalize_forward
from .moments import moments
from .normalize import normalize
from .pooling import Moments
from .with_kernel import with_kernel


@checked(groups=or_none(GROUPS))
def normalize_by_own_moments(
    x: Inexact[Array, "..."],
    axes: tuple[int, ...],
    *,
    epsilon: float | Array,
    groups: int | None = None,
    channel_axis: int = -1,
    scale: Array | None = None,
    bias: Array | None = None,
    stored: Array | None = None,
    dtype: DTypeLike | None = None,
    mask: Bool[Array, "..."] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    axis_index_groups: Any = None,
    use_mean: bool = True,
    use_fast_variance: bool = True,
) -> Array:
    r"""Normalizes `x` by its moments over `axes`.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    This is `moments` or `group_moments`, and `normalize`; but where kernels can do it in fewer
    passes over the memory of a GPU, they do. That takes values in float32 or half precision,
    channels last, examples first if axes besides that of the channels are reduced, no mask, an
    epsilon that is no array, and a scale and bias that vary along the channels alone; the rest is
    said in `kernels_run` and `Form.fits`.

    Args:
        x: Values of any shape, float or complex, in the precision of the moments.
        axes: Non-negative axes to reduce, in order; with groups, that of the channels among them.
        epsilon: As in `normalize`, like `scale`, `bias`, `stored` and `dtype`.
        groups: Number of groups of neighbouring channels, each of which has moments of its own.
        channel_axis: Axis of the channels, if there are groups.
        scale: Gamma.
        bias: Beta.
        stored: The array that `x` was converted from, if it was.
        dtype: Dtype of the result.
        mask: As in `moments`, like all that follow.
        axis_name: Named axis over which the moments are pooled.
        axis_index_groups: Groups of indices of `axis_name`.
        use_mean: If false, nothing is subtracted.
        use_fast_variance: If false, the two-pass formula.

    Returns:
        An array as that of `normalize`.
    """
    channels_last = groups is None or channel_axis in (-1, x.ndim - 1)
    plain = mask is None and axis_name is None and use_fast_variance and channels_last
    if plain and isinstance(epsilon, Real):
        y = _by_kernel(x, axes, groups, float(epsilon), scale, bias, stored, dtype, use_mean)
        if y is not None:
            return y
    found = _moments(
        x,
        axes,
        groups,
        channel_axis=channel_axis,
        stored=stored,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        use_mean=use_mean,
        use_fast_variance=use_fast_variance,
        epsilon=epsilon,
    )
    return normalize(
        x,
        found.shift if use_mean else None,
        found.scaled_variance,
        epsilon=epsilon,
        residual=found.residual if use_mean else None,
        factor=found.factor,
        scale=scale,
        bias=bias,
        stored=stored,
        dtype=dtype,
    )


def _moments(
    x: Array,
    axes: tuple[int, ...],
    groups: int | None,
    *,
    channel_axis: int = -1,
    use_mean: bool,
    **rest: Any,
) -> Moments:
    if groups is None:
        return moments(x, axes, use_mean=use_mean, **rest)
    others = tuple(axis for axis in axes if axis != channel_axis % x.ndim)
    return group_moments(x, others, groups, channel_axis=channel_axis, **rest)


def _by_kernel(
    x: Array,
    axes: tuple[int, ...],
    groups: int | None,
    epsilon: float,
    scale: Array | None,
    bias: Array | None,
    stored: Array | None,
    dtype: Any,
    use_mean: bool,
) -> Array | None:
    """Normalizes by the kernels where they run, fit and pay."""
    read = x if stored is None else stored
    given = [it for it in (scale, bias) if it is not None]
    dtype = jnp.dtype(dtype or jnp.result_type(x, *given))
    three_axes = _three_axes(read, axes, groups)
    narrow = all(it in (jnp.float32, jnp.bfloat16, jnp.float16) for it in (read.dtype, dtype))
    of_channels = all(it.shape == (1,) * (x.ndim - 1) + x.shape[-1:] for it in given)
    spread = any(any(jax.typeof(it).sharding.spec) for it in (read, *given))
    if three_axes is None or spread or not (narrow and x.dtype == jnp.float32 and of_channels):
        return None
    shape, in_groups = three_axes
    form = Form(shape, in_groups, use_mean, epsilon, dtype)
    if not (form.fits(read.dtype.itemsize) and kernels_run()):
        return None
    scale, bias = (
        jnp.full(shape[2:], default) if it is None else it.reshape(shape[2:]).astype(jnp.float32)
        for it, default in ((scale, 1.0), (bias, 0.0))
    )
    return _layer.bind(read, scale, bias, form=form)[0]


def _three_axes(
    x: Array, axes: tuple[int, ...], groups: int | None
) -> tuple[tuple[int, int, int], int] | None:
    """The shape of an array as (examples, positions, channels), and its groups, or None.

    Args:
        x: Values.
        axes: To reduce.
        groups: As in `normalize_by_own_moments`.
    """
    fixed = all(isinstance(n, int) for n in x.shape)  # unlike those of an exported program
    if x.ndim < 2 or not fixed or x.size == 0:
        return None
    last, channels = x.ndim - 1, x.shape[-1]
    if axes == (last,) and groups in (None, 1):
        return (x.size // channels, 1, channels), 1
    if axes and axes in (tuple(range(1, last)), tuple(range(1, last + 1))):
        of_channels = 1 if last in axes else channels
        return (x.shape[0], math.prod(x.shape[1:-1]), channels), groups or of_channels
    return None


# What the kernels compute, as three primitives: the layer, its derivative, and the transpose of
# that. The first and the last are the kernels. The derivative is computed by the formula, as are
# those of higher order. The moments that the layer returns beside its result are for the kernel of
# the transpose alone.


def _layer_by_formula(x: Values, scale: Channels, bias: Channels, *, form: Form) -> list[Array]:
    _, positions, channels = form.shape
    axes = (1,) if form.groups == channels > 1 else (2,) if positions == 1 else (1, 2)
    groups = form.groups if 1 < form.groups < channels else None
    stored = x.reshape(form.shape)
    values = stored.astype(jnp.float32)
    found = _moments(
        values, axes, groups, stored=stored, use_mean=form.centre, epsilon=form.epsilon
    )
    means = (found.shift, found.residual) if form.centre else ()
    shift, residual = means or (None, None)
    y = normalize(
        values,
        shift,
        found.scaled_variance,
        epsilon=form.epsilon,
        residual=residual,
        factor=found.factor,
        scale=scale[None, None],
        bias=bias[None, None],
        stored=stored,
        dtype=form.dtype,
    )
    # Of a program that needs no moments, the compiler leaves them out.
    of_moments = [1 / found.deviation(form.epsilon), *means]
    if groups is not None:  # Each channel has those of its group.
        of_moments = [it[..., :: channels // groups] for it in of_moments]
    return [y.reshape(x.shape), *(it.reshape(form.tiles.of_moments) for it in of_moments)]


def _formula(x: Values, scale: Channels, bias: Channels, *, form: Form) -> Values:
    return _layer_by_formula(x, scale, bias, form=form)[0]


def _derivative_by_formula(x: Values, scale: Channels, *rest: Array, form: Form) -> Values:
    tangents = rest[:3]  # and moments
    primals = x, scale, jnp.zeros_like(scale)
    return jax.jvp(partial(_formula, form=form), primals, tangents)[1]


def _transpose_by_formula(
    x: Values, scale: Channels, dy: Values, *_: Array, form: Form
) -> list[Array]:
    primals = x, scale, jnp.zeros_like(scale)
    return list(jax.vjp(partial(_formula, form=form), *primals)[1](dy))


def _types_of_moments(form: Form) -> list[ShapedArray]:
    of_moments = ShapedArray(form.tiles.of_moments, jnp.dtype(jnp.float32))
    return [of_moments] * form.moments


def _types_of_layer(x: Any, *_: Any, form: Form) -> list[ShapedArray]:
    return [ShapedArray(x.shape, form.dtype), *_types_of_moments(form)]


def _type_of_derivative(x: Any, *_: Any, form: Form) -> ShapedArray:
    return ShapedArray(x.shape, form.dtype)


def _types_of_transpose(x: Any, scale: Any, *_: Any, form: Form) -> list[ShapedArray]:
    return [ShapedArray(it.shape, it.dtype) for it in (x, scale, scale)]


_NAME = "normalize_by_own_moments"
_layer = with_kernel(_NAME, _layer_by_formula, _types_of_layer, kernel=normalize_forward)
_derivative = with_kernel(
    f"{_NAME}_derivative", _derivative_by_formula, _type_of_derivative, several=False
)
_transpose = with_kernel(
    f"{_NAME}_transpose", _transpose_by_formula, _types_of_transpose, kernel=normalize_backward
)


def _derive_layer(primals: Any, tangents: Any, *, form: Form) -> tuple[Any, Any]:
    y, *moments = _layer.bind(*primals, form=form)
    tangents = map(ad.instantiate_zeros, tangents)
    dy = _derivative.bind(*primals[:2], *tangents, *moments, form=form)
    return [y, *moments], [dy, *map(jnp.zeros_like, moments)]


def _derive_by_formula(formula: Callable[..., Any], arguments: int) -> Callable[..., Any]:
    """The rule for a derivative of higher order.

    Args:
        formula: What computes the derivative.
        arguments: How many arguments come before the moments, which are none to the formula.
    """

    def derive(primals: Any, tangents: Any, *, form: Form) -> Any:
        def function(*arrays: Array) -> Any:
            return formula(*arrays, *primals[arguments:], form=form)

        tangents = tuple(map(ad.instantiate_zeros, tangents[:arguments]))
        return jax.jvp(function, primals[:arguments], tangents)

    return derive


def _transpose_derivative(cotangent: Any, x: Any, scale: Any, *rest: Any, form: Form) -> list[Any]:
    tangents, moments = rest[:3], rest[3:]
    if type(cotangent) is ad.Zero:
        found = [ad.Zero(it.aval) if ad.is_undefined_primal(it) else None for it in tangents]
    else:
        gradients = _transpose.bind(x, scale, cotangent, *moments, form=form)
        found = [
            gradient if ad.is_undefined_primal(it) else None
            for gradient, it in zip(gradients, tangents, strict=True)
        ]
    return [None, None, *found, *[None] * len(moments)]


def _transpose_transpose(
    cotangents: Any, x: Any, scale: Any, dy: Any, *moments: Any, form: Form
) -> list[Any]:
    del dy
    tangents = map(ad.instantiate_zeros, cotangents)
    found = _derivative.bind(x, scale, *tangents, *moments, form=form)
    return [None, None, found, *[None] * len(moments)]


ad.primitive_jvps[_layer] = _derive_layer
ad.primitive_jvps[_derivative] = _derive_by_formula(_derivative_by_formula, 5)
ad.primitive_jvps[_transpose] = _derive_by_formula(_transpose_by_formula, 3)
ad.primitive_transposes[_derivative] = _transpose_derivative
ad.primitive_transposes[_transpose] = _transpose_transpose
