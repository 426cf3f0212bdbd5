"""Normalization of weights: standardized, of given length, of spectral norm 1."""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from .arguments import MATRIX, checked
from .moments import moments, sum_of_squares
from .normalize import normalize
from .pooling import scaled_epsilon, squared_magnitude

#: Factors that give the value of an activation variance 1 where its input is a standard Gaussian:
#: 1 / sqrt(Var[phi(z)]), by quadrature. That of ReLU is sqrt(2 / (1 - 1 / pi)).
NONLINEARITY_GAINS = {
    "identity": 1.0,
    "relu": 1.7128586,
    "leaky_relu": 1.7048316,  # with slope 0.01 below 0
    "elu": 1.2708434,
    "gelu": 1.7009262,
    "silu": 1.7871872,
    "softplus": 1.9191260,
    "tanh": 1.5925374,
    "sigmoid": 4.8013134,
}


@checked()
def standardize_weight(
    weight: Inexact[Array, "..."], axes: tuple[int, ...], *, epsilon: float
) -> Array:
    r"""Gives the weights of every output mean 0 and variance 1.

    .. math:: \hat{w} = \frac{w - \mu}{\sqrt{\sigma^2 + \epsilon}}

    Args:
        weight: A kernel of any rank, in the precision wanted for the statistics.
        axes: Non-negative axes of the inputs, over which mean and variance are taken.
        epsilon: Added to the variance.

    Returns:
        An array of the shape and dtype of the weight.

    Source: Qiao, Wang, Liu, Shen and Yuille, 2019, "Micro-Batch Training with Batch-Channel
    Normalization and Weight Standardization", section 3.
    """
    statistics = moments(weight, axes, epsilon=epsilon)
    return normalize(
        weight,
        statistics.shift,
        statistics.scaled_variance,
        epsilon=epsilon,
        residual=statistics.residual,
        factor=statistics.factor,
    )


@checked()
def scaled_standardize_weight(
    weight: Inexact[Array, "..."], axes: tuple[int, ...], gain: Array, *, epsilon: float
) -> Array:
    r"""Gives the weights of every output mean 0 and sum of squares `gain` squared.

    .. math:: \hat{w} = g \, \frac{w - \mu}{\sqrt{\max(n \sigma^2, \epsilon)}}

    Here n is the fan-in. Inputs that are independent, of mean m and variance 1, then give outputs
    of mean 0 (whatever m) and variance :math:`g^2`.

    Args:
        weight: A kernel of any rank, in the precision wanted for the statistics.
        axes: Non-negative axes of the inputs; the product of their sizes is the fan-in.
        gain: Of the rank of the weight and broadcastable to it.
        epsilon: The least value of fan-in times variance.

    Returns:
        An array of the shape of the weight.

    Source: Brock, De, Smith and Simonyan, 2021, "High-Performance Large-Scale Image Recognition
    Without Normalization", equation 1; gain and epsilon as in the code published with it.
    """
    statistics = moments(weight, axes, epsilon=epsilon)
    fan_in = math.prod(weight.shape[axis] for axis in axes)
    least = scaled_epsilon(epsilon, statistics.factors)
    squared = jnp.maximum(statistics.scaled_variance * fan_in, least)
    multiplier = gain * (lax.rsqrt(squared) * statistics.factors)
    return (weight - statistics.shift - statistics.residual) * multiplier


@checked()
def normalize_weight(
    weight: Inexact[Array, "..."],
    axes: tuple[int, ...],
    *,
    epsilon: float,
    scale: Array | None = None,
) -> Array:
    r"""Gives the weights of every output the length `scale`.

    .. math:: \hat{w} = \frac{g \, w}{\sqrt{\lVert w \rVert^2 + \epsilon}}

    Args:
        weight: A kernel of any rank, in the precision wanted for the length.
        axes: Non-negative axes that the length is taken over.
        epsilon: Added to the squared length.
        scale: Of the rank of the weight and broadcastable to it; 1 if not given.

    Returns:
        An array of the shape of the weight.

    Source: Salimans and Kingma, 2016, "Weight Normalization", equation 2.
    """
    squared, factor = sum_of_squares(weight, axes, epsilon=epsilon)
    multiplier = lax.rsqrt(squared + scaled_epsilon(epsilon, factor)) * factor
    return weight * (multiplier if scale is None else multiplier * scale)


@checked(weight=MATRIX)
def spectral_normalize(
    weight: Inexact[Array, "..."],
    u: Inexact[Array, "1 outputs"],
    sigma: Float[Array, ""],
    *,
    steps: int,
    epsilon: float,
) -> tuple[Array, Array, Array]:
    r"""Divides a weight by its largest singular value, as some power iterations estimate it.

    .. math:: v \leftarrow \frac{u W^*}{\lVert u W^* \rVert}, \quad
        u \leftarrow \frac{v W}{\lVert v W \rVert}, \quad
        \sigma = v W u^*, \quad \hat{W} = \frac{W}{\sigma}

    No derivative flows through u and v. The iteration sees the weight in units of its largest
    entry, so that neither tiny nor huge weights lose their direction to the epsilon or to the range
    of the dtype.

    Args:
        weight: Of rank 2 or more, outputs on the last axis; the others are flattened into one.
        u: The estimate of the singular vector to start from.
        sigma: The estimate of the singular value before.
        steps: Number of power iterations, at least 1.
        epsilon: Added to squared lengths before they are divided by.

    Returns:
        The normalized weight; and the estimates of u and sigma, which are the ones given where the
        weight is zero or not finite, since no iteration would ever lead away from the new ones.

    Source: Miyato, Kataoka, Koyama and Yoshida, 2018, "Spectral Normalization for Generative
    Adversarial Networks", algorithm 1.
    """
    matrix, unit = _in_units_of_largest(weight)

    def iteration(u):
        v = _direction(_product(u, matrix.conj().T), epsilon)
        return v, _direction(_product(v, matrix), epsilon)

    v, new_u = iteration(u)
    for _ in range(steps - 1):
        v, new_u = iteration(new_u)
    v, new_u = lax.stop_gradient((v, new_u))
    new_sigma = unit * jnp.real(_product(_product(v, matrix), new_u.conj().T))[0, 0]

    usable = (new_sigma > 0) & jnp.isfinite(new_sigma)
    return (
        weight / jnp.where(new_sigma != 0, new_sigma, 1),
        jnp.where(usable, new_u, u),
        lax.stop_gradient(jnp.where(usable, new_sigma, sigma)),
    )


@checked(weight=MATRIX)
def converged_direction(
    weight: Inexact[Array, "..."], u: Inexact[Array, "1 outputs"], *, epsilon: float
) -> Array:
    r"""What the estimate of the singular vector converges to in power iterations from `u`.

    .. math:: u \leftarrow \frac{u \, (W^* W)^k}{\lVert u \, (W^* W)^k \rVert}

    with k so large that what is left of other singular vectors changes the singular value by less
    than one part in a million. The power is taken of the eigenvalues of the smaller of
    :math:`W^* W` and :math:`W W^*`.

    Args:
        weight: As in `spectral_normalize`.
        u: The estimate to start from.
        epsilon: Added to squared lengths before they are divided by.

    Returns:
        An array of the shape of `u`: 0 for a weight of zeros, and `u` for one that is not finite.
    """
    matrix, _ = _in_units_of_largest(weight)
    adjoint, few_inputs = matrix.conj().T, matrix.shape[0] < matrix.shape[1]
    start = _product(u, adjoint) if few_inputs else u
    squared = _product(matrix, adjoint) if few_inputs else _product(adjoint, matrix)
    values, vectors = jnp.linalg.eigh(squared)
    largest = values[-1]
    share = jnp.maximum(values, 0) / jnp.where(largest > 0, largest, 1)
    left = _product(_product(start, vectors) * share[None] ** _ITERATIONS, vectors.conj().T)
    converged = _direction(_product(left, matrix) if few_inputs else left, epsilon)
    return jnp.where(jnp.isfinite(converged).all(), converged, u)


# Leaves those whose singular value is within one part in a million of the largest.
_ITERATIONS = 1_000_000


def _in_units_of_largest(weight: Array) -> tuple[Array, Array]:
    """Returns a weight as a matrix, outputs last, in units of its largest entry; and that unit."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(weight), initial=0))
    unit = jnp.where(largest > 0, largest, 1)
    return (weight / unit).reshape(-1, weight.shape[-1]), unit


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _direction(vector: Array, epsilon: float) -> Array:
    # In units of the largest entry, whose squares are in the range.
    squared = jnp.sum(squared_magnitude(vector), 1, keepdims=True)
    return vector * lax.rsqrt(jnp.maximum(squared + epsilon, jnp.finfo(squared.dtype).tiny))
