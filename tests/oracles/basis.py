"""Moments, standardization and affine map: what every oracle is made of."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Axes = int | Sequence[int]


class Moments(NamedTuple):
    """Mean, biased variance and number of values, with the reduced axes kept as ones."""

    mean: np.ndarray
    variance: np.ndarray
    count: np.ndarray


def as_double(x) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def positive_axes(rank: int, axes: Axes) -> tuple[int, ...]:
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    return tuple(sorted({axis % rank for axis in axes}))


def other_axes(rank: int, axes: Axes) -> tuple[int, ...]:
    return tuple(axis for axis in range(rank) if axis not in positive_axes(rank, axes))


def full_mask(x: np.ndarray, mask) -> np.ndarray:
    return np.broadcast_to(True if mask is None else np.asarray(mask, bool), x.shape)


@np.errstate(invalid="ignore")  # of infinite values
def moments(x, axes: Axes, mask=None, *, centered: bool = True) -> Moments:
    """Moments over `axes`; of no value at all they are mean 0, variance 1.

    `centered=False` takes the mean square instead of the variance, and mean 0.
    """
    x = as_double(x)
    axes, mask = positive_axes(x.ndim, axes), full_mask(x, mask)
    x = np.where(mask, x, 0)
    count = mask.sum(axes, keepdims=True)
    divisor = np.maximum(count, 1)
    mean = x.sum(axes, keepdims=True) / divisor if centered else np.zeros_like(count, x.dtype)
    deviation = np.where(mask, x - mean, 0)
    variance = (np.abs(deviation) ** 2).sum(axes, keepdims=True) / divisor
    return Moments(mean, np.where(count == 0, 1.0, variance), count)


def affine(y: np.ndarray, feature_axes: Axes, scale=None, bias=None) -> np.ndarray:
    """`y * scale + bias`, each of the shape of the feature axes or broadcastable at full rank."""
    feature_axes = positive_axes(y.ndim, feature_axes)
    feature_shape = tuple(y.shape[axis] for axis in feature_axes)
    broadcast_shape = tuple(n if a in feature_axes else 1 for a, n in enumerate(y.shape))

    def expand(parameter):
        parameter = as_double(parameter)
        return parameter.reshape(broadcast_shape) if parameter.shape == feature_shape else parameter

    y = y if scale is None else y * expand(scale)
    return y if bias is None else y + expand(bias)


@np.errstate(invalid="ignore")  # of infinite values
def standardize(x, axes: Axes, *, epsilon: float, mask=None, centered: bool = True) -> np.ndarray:
    """`(x - mean) / sqrt(variance + epsilon)` with statistics over `axes`."""
    mean, variance, _ = moments(x, axes, mask, centered=centered)
    return (as_double(x) - mean) / np.sqrt(variance + epsilon)


def standardize_gradient(
    x, gradient, axes: Axes, *, epsilon: float, mask=None, centered: bool = True
) -> np.ndarray:
    """Gradient to a real `x` of `standardize`, given the gradient to its result.

    With y the result, s the deviation and w = mask / count the weight of each value in the
    statistics, dx = (g - w sum(g) - w y sum(g y)) / s; masked values get g / s alone. The first sum
    is absent where the mean is.
    """
    x, gradient = as_double(x), as_double(gradient)
    axes, mask = positive_axes(x.ndim, axes), full_mask(x, mask)
    mean, variance, count = moments(x, axes, mask, centered=centered)
    deviation = np.sqrt(variance + epsilon)
    # A masked value that is no number takes no part, whatever its (zero) gradient is multiplied by.
    y = np.where(mask | np.isfinite(x), x - mean, 0) / deviation
    weight = np.where(mask, 1 / np.maximum(count, 1), 0.0)
    through_mean = gradient.sum(axes, keepdims=True) if centered else 0.0
    through_variance = (gradient * y).sum(axes, keepdims=True)
    return (gradient - weight * (through_mean + y * through_variance)) / deviation


def numerical_gradient(
    function: Callable[[np.ndarray], np.ndarray | float], x, step: float = 1e-6
) -> np.ndarray:
    """Central differences in float64 of a scalar function at `x`."""
    x = as_double(x)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        offset = np.zeros_like(x)
        offset[index] = step
        gradient[index] = (function(x + offset) - function(x - offset)) / (2 * step)
    return gradient
