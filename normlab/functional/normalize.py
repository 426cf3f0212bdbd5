"""The step that all normalizations share: centre, scale, shift."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact

from .apart import apart
from .arguments import checked
from .pooling import scaled_epsilon
from .terms import term


@checked()
def normalize(
    x: Inexact[Array, "..."],
    mean: Array | None,
    variance: Array,
    *,
    epsilon: float | Array,
    residual: Array | None = None,
    factor: Array | None = None,
    scale: Array | None = None,
    bias: Array | None = None,
    stored: Array | None = None,
    dtype: DTypeLike | None = None,
) -> Array:
    r"""Centres and scales `x` by given statistics.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    Args:
        x: Values, float or complex.
        mean: Mean, of the rank of `x` and broadcastable to it, as all arguments below; None for 0.
        variance: Variance, real and not negative.
        epsilon: A small number that keeps the square root off zero.
        residual: What `mean` lacks of the exact mean, if it is known (see `Moments`).
        factor: What the values are to be multiplied by for `variance` to be theirs, if it is not 1
            (see `Moments`).
        scale: Factor, gamma; 1 if not given.
        bias: Summand, beta; 0 if not given.
        stored: The array that `x` was converted from, if it was. Its values are read instead of
            those of `x`, which take up more room; the derivative is that to `x`.
        dtype: Dtype of the result.

    Returns:
        An array of the shape of `x`, in the given dtype or the one that all arguments promote to.
    """
    if factor is None:
        multiplier = _reciprocal_root(variance + jnp.asarray(epsilon, variance.dtype))
    else:
        multiplier = _reciprocal_root(variance + scaled_epsilon(epsilon, factor)) * factor
    # Statistics, scale and bias are small: what they have to do with each other is settled before
    # they meet the large array.
    if scale is not None and _is_small(multiplier, scale, x=x):
        multiplier, scale = multiplier * scale, None
    shift = None if mean is None else lax.stop_gradient(mean)
    if mean is not None and shift is not None:
        residual = mean - shift if residual is None else mean - shift + residual
    steps = _Steps(shift, residual, multiplier, scale, bias)
    dtype = jnp.dtype(dtype or jnp.result_type(x, *jax.tree.leaves(steps)))
    return _apply(x if stored is None else stored, x, steps, dtype)


@jax.custom_jvp
def _reciprocal_root(x: Array) -> Array:
    return 1 / jnp.sqrt(x)


@_reciprocal_root.defjvp
def _(primals, tangents):
    # Not the power -3/2 of x, which underflows from 1e26; and one division, not those of 1 / y and
    # of the root, each of which a compiler for CPU makes a kernel of.
    (x,), (dx,) = primals, tangents
    root = _reciprocal_root(x)
    return root, -0.5 * root * (dx / x)


@jax.custom_jvp
def reciprocal(x: Array) -> Array:
    """Returns 1 / x; its derivative forms no square, which may not be in the range of the dtype."""
    return 1 / x


@reciprocal.defjvp
def _(primals, tangents):
    result = 1 / primals[0]
    return result, -(tangents[0] * result) * result


def _is_small(*arrays: Array, x: Array) -> bool:
    """Whether some arrays together vary along less than all of the axes of x."""
    return jnp.broadcast_shapes(*(array.shape for array in arrays)) != x.shape


class _Steps(NamedTuple):
    """y = (x - shift - residual) multiplier scale + bias, without those that are None."""

    shift: Any
    residual: Any
    multiplier: Any
    scale: Any
    bias: Any

    def standardize(self, x: Array) -> Array:
        """All but scale and bias."""
        return self.centre(x) * self.multiplier

    def centre(self, x: Array) -> Array:
        """The difference to the mean; its larger part first, which is exact where they are near."""
        return x if self.shift is None else x - self.shift - self.residual

    def rescale(self, x: Array) -> Array:
        return x if self.scale is None else x * self.scale


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _apply(stored: Array, x: Array, steps: _Steps, dtype: Any) -> Array:
    """Applies the steps; of `stored` and `x` as in `moments`. The shift is taken to be constant."""
    stored, steps = apart(4, (stored, steps), x)
    y = steps.rescale(steps.standardize(stored.astype(x.dtype)))
    return (y if steps.bias is None else y + steps.bias).astype(dtype)


@_apply.defjvp
def _(dtype, primals, tangents):
    # One term for each argument. In the backward pass it becomes the gradient to that argument: a
    # sum, over what the argument does not vary along, of dy times the other factors.
    stored, x, steps = primals
    _, dx, d = tangents

    def of_x(dx, steps):
        return steps.rescale(dx * steps.multiplier).astype(dtype)

    def of_multiplier(dm, stored, steps):
        return steps.rescale(steps.centre(stored.astype(x.dtype)) * dm).astype(dtype)

    def of_offset(do, steps):
        return steps.rescale(do).astype(dtype)

    def of_scale(ds, stored, steps):
        return (steps.standardize(stored.astype(x.dtype)) * ds).astype(dtype)

    def of_bias(db):
        return db.astype(dtype)

    tangent = term(5, of_x, x, dx, steps)
    tangent += term(6, of_multiplier, x, d.multiplier, stored, steps)
    offset, bias = None, d.bias
    if steps.shift is not None:
        offset = -d.residual * steps.multiplier
    if bias is not None and steps.scale is None and _is_small(steps.multiplier, bias, x=x):
        # Mean and bias have the same sum over dy, so that one pass does for both.
        offset, bias = bias if offset is None else offset + bias, None
    if offset is not None:
        tangent += term(7, of_offset, x, offset, steps)
    if steps.scale is not None:
        tangent += term(8, of_scale, x, d.scale, stored, steps)
    if bias is not None:
        tangent += term(9, of_bias, x, bias)
    return _apply(stored, x, steps, dtype), tangent
