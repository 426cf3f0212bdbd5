"""Sums of squares over the whole range of a dtype.

The square of a float32 or bfloat16 overflows from 2e19 on and is lost below 1e-19, where the
numbers themselves go from 1e-38 to 3e38. So where a mean square is above 1e29, or below 1e-29 and
epsilon not much more, it is taken once more, of the values times a power of two, which changes none
of their digits. The limits are less than those of the range, since derivatives divide by the mean
square. Who computes with the mean square is told the factor.

On CPU the second sum stands in a branch, which is taken if any of the sums of an array is out of
range. For usual input it costs a look at the sums, not at the values. On accelerators a branch
would have the host wait for the device, but sums of the same values are computed in one pass over
them: so there all are, and the right one is selected.
"""

from collections.abc import Callable
from numbers import Real
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool

Sums = Callable[[Any], Array]


def small_counts(epsilon: Any, dtype: Any) -> bool:
    """Whether squares that are lost would be missed: not beside an epsilon that is known and large.

    Args:
        epsilon: What is added to the mean square; one that is an array is taken to be large.
        dtype: Of the mean square.
    """
    return isinstance(epsilon, Real) and float(epsilon) < 2.0 ** (-12 * _unit(dtype))


def squares_in_range(mean_square: Sums, epsilon: Any) -> tuple[Array, Array]:
    """Returns mean squares that neither overflow nor lose what counts.

    Args:
        mean_square: Returns the mean square of some values times a factor, which broadcasts to the
            result; None for 1. It is not differentiated through.
        epsilon: What will be added.

    Returns:
        The mean squares, and the factor behind each of them.
    """
    plain = mean_square(None)
    usual = plain, jnp.ones_like(plain)
    first = first_factor(plain, epsilon)

    def by_branch(first: Array, plain: Array, one: Array) -> tuple[Array, Array]:
        def again(first: Array, plain: Array, one: Array) -> tuple[Array, Array]:
            return settled(plain, first, mean_square(first), epsilon)

        return lax.cond(_anywhere(first != 1), again, lambda _, *usual: usual, first, plain, one)

    def in_one_pass(first: Array, plain: Array, one: Array) -> tuple[Array, Array]:
        # Not constants, of which a compiler would draw the square out of the sum.
        squares = {
            it: mean_square(lax.optimization_barrier(jnp.asarray(it, plain.dtype)))
            for it in first_factors(plain.dtype, epsilon)
        }
        return settled(plain, first, select(first, squares), epsilon)

    return lax.platform_dependent(first, *usual, cpu=by_branch, default=in_one_pass)


def select(first: Array, squares: dict[float, Array]) -> Array:
    """Returns of mean squares by factor those of the factors that are needed."""
    (_, selected), *others = squares.items()
    for factor, square in others:
        selected = jnp.where(first == factor, square, selected)
    return selected


def first_factors(dtype: Any, epsilon: Any) -> list[float]:
    """The factors for what is too large and, if that counts, for what is too small."""
    unit = _unit(dtype)
    return [2.0 ** (-12 * unit), 2.0 ** (8 * unit)][: 2 if small_counts(epsilon, dtype) else 1]


def first_factor(plain: Array, epsilon: Any) -> Array:
    """Returns the factor that values are to be taken times, given their mean squares."""
    most = 2.0 ** (12 * _unit(plain.dtype))
    of_large, *of_small = first_factors(plain.dtype, epsilon)
    # The large one also for what is not a number, which it stays.
    factor = jnp.where(plain <= most, jnp.ones_like(plain), of_large)
    for it in of_small:
        factor = jnp.where(plain < 1 / most, it, factor)
    return factor


def settled(plain: Array, first: Array, square: Array, epsilon: Any) -> tuple[Array, Array]:
    """Returns mean squares and factors: the plain ones, or those of values of about 1.

    Args:
        plain: Of the values themselves.
        first: The factor that is needed, or 1.
        square: Of the values times that factor.
        epsilon: What will be added.
    """
    known = float(epsilon) if small_counts(epsilon, plain.dtype) else 0.0
    # One whose reciprocal root is not in the range is none.
    known = known if known**0.5 > 2.0 ** (-15 * _unit(plain.dtype)) else 0.0
    size = jnp.maximum(jnp.sqrt(square) * (1 / first), known**0.5)
    # Of zeros, one with which 1 / sqrt(tiny) is still in the range.
    of_zero = 2.0 ** (7 * _unit(plain.dtype))
    factor = jnp.where(size > 0, factor_of(size), of_zero if known == 0 else 1.0)
    ratio = factor * (1 / first)
    usual = first == 1
    return jnp.where(usual, plain, square * ratio * ratio), jnp.where(usual, 1, factor)


def factor_of(size: Array) -> Array:
    """Returns powers of two that make numbers about 1; 1 where their squares are in the range."""
    unit = _unit(size.dtype)
    factor = jnp.ones_like(size)
    for it in (7, 9, 11, 13, 15):
        limit, power = 2.0 ** ((it - 1) * unit), 2.0 ** (it * unit)
        factor = jnp.where(size > limit, 1 / power, jnp.where(size < 1 / limit, power, factor))
    return factor


def _unit(dtype: Any) -> int:
    """A sixteenth of the exponents of a dtype: 8 of float32, which goes from 2^-126 to 2^128."""
    return jnp.finfo(dtype).maxexp // 16


@custom_vmap
def _anywhere(flags: Bool[Array, "..."]) -> Bool[Array, ""]:
    """Whether any flag is set, in all of a batch: `vmap` would make a selection of a branch."""
    return jnp.any(flags)


@_anywhere.def_vmap
def _(size: int, batched: list[bool], flags: Array) -> tuple[Array, bool]:
    del size, batched
    return _anywhere(flags), False
