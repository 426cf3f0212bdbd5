"""Float64 NumPy oracles of the layers: the papers' formulas, written to be read, not to be fast.

Nothing here imports JAX or normlab. Masked values (mask False) are left out of the statistics;
they are normalized all the same. Arrays of any precision are taken to float64 or complex128 first.

Ioffe & Szegedy 2015 (batch), Hoffer et al. 2017 (ghost batch), Ba et al. 2016 (layer), Zhang &
Sennrich 2019 (root mean square), Wu & He 2018 (group), Ulyanov et al. 2016 (instance).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
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


# The layers differ in the axes they reduce, and in nothing else.


def batch_norm(
    x, *, axis: Axes = -1, epsilon: float = 1e-5, mask=None, scale=None, bias=None
) -> np.ndarray:
    reduced = other_axes(np.ndim(x), axis)
    return affine(standardize(x, reduced, epsilon=epsilon, mask=mask), axis, scale, bias)


def layer_norm(
    x,
    *,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    mask=None,
    scale=None,
    bias=None,
) -> np.ndarray:
    y = standardize(x, reduction_axes, epsilon=epsilon, mask=mask)
    return affine(y, feature_axes, scale, bias)


def rms_norm(
    x,
    *,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    mask=None,
    scale=None,
    bias=None,
) -> np.ndarray:
    y = standardize(x, reduction_axes, epsilon=epsilon, mask=mask, centered=False)
    return affine(y, feature_axes, scale, bias)


def group_norm(
    x,
    *,
    num_groups: int = 32,
    reduction_axes: Axes | None = None,
    epsilon: float = 1e-6,
    mask=None,
    scale=None,
    bias=None,
) -> np.ndarray:
    """The groups are made by the loop over them; the channels are the last axis."""
    x = as_double(x)
    reduced = range(1, x.ndim) if reduction_axes is None else reduction_axes
    channels_of_group = np.split(np.arange(x.shape[-1]), num_groups)
    mask = full_mask(x, mask)
    groups = [
        standardize(x[..., channels], reduced, epsilon=epsilon, mask=mask[..., channels])
        for channels in channels_of_group
    ]
    return affine(np.concatenate(groups, axis=-1), -1, scale, bias)


def instance_norm(
    x, *, feature_axes: Axes = -1, epsilon: float = 1e-6, mask=None, scale=None, bias=None
) -> np.ndarray:
    reduced = [axis for axis in other_axes(np.ndim(x), feature_axes) if axis != 0]
    return affine(standardize(x, reduced, epsilon=epsilon, mask=mask), feature_axes, scale, bias)


# Ghost batches.


def ghost_groups(
    examples: int,
    ghost_batch_size: int,
    grouping: str = "contiguous",
    remainder: str = "error",
) -> list[np.ndarray]:
    """The indices of the examples of every ghost batch, in order."""
    whole, rest = divmod(examples, ghost_batch_size)
    if rest and remainder == "error":
        raise ValueError(f"{ghost_batch_size} does not divide {examples}")
    if whole == 0:
        return [np.arange(examples)]
    if rest and remainder == "merge_last":
        whole -= 1
    grouped = whole * ghost_batch_size
    if grouping == "contiguous":
        groups = [
            np.arange(start, start + ghost_batch_size)
            for start in range(0, grouped, ghost_batch_size)
        ]
    else:
        groups = [np.arange(first, grouped, whole) for first in range(whole)]
    tail = np.arange(grouped, examples)
    return [*groups, tail] if tail.size else groups


def ghost_batch_norm(
    x,
    *,
    ghost_batch_size: int,
    grouping: str = "contiguous",
    remainder: str = "error",
    axis: Axes = -1,
    epsilon: float = 1e-5,
    mask=None,
    scale=None,
    bias=None,
) -> np.ndarray:
    """Every ghost batch is normalized by itself."""
    x = as_double(x)
    batch_axis = other_axes(x.ndim, axis)[0]
    mask = full_mask(x, mask)
    y = np.empty_like(x)
    for group in ghost_groups(x.shape[batch_axis], ghost_batch_size, grouping, remainder):
        here = (slice(None),) * batch_axis + (group,)
        y[here] = batch_norm(x[here], axis=axis, epsilon=epsilon, mask=mask[here])
    return affine(y, axis, scale, bias)


def ghost_moments(x, groups: Iterable[np.ndarray], *, axis: Axes = -1, mask=None) -> list[Moments]:
    """The statistics of every ghost batch, each of the feature shape."""
    x = as_double(x)
    reduced, mask = other_axes(x.ndim, axis), full_mask(x, mask)
    found = []
    for group in groups:
        here = (slice(None),) * reduced[0] + (group,)
        found.append(Moments(*(m.squeeze(reduced) for m in moments(x[here], reduced, mask[here]))))
    return found


# Running statistics.


@dataclass
class RunningStatistics:
    """Mean and variance over training steps, as the plain loop that they are.

    `momentum` is the share kept; None averages all updates so far alike. `debias` divides averages
    that start at zero by `1 - momentum**updates`, as Adam does. `unbiased` multiplies each variance
    by n / (n - 1). A batch that is empty or not finite is left out.
    """

    shape: tuple[int, ...]
    momentum: float | None = 0.99
    unbiased: bool = False
    debias: bool = False
    mean: np.ndarray = field(init=False)
    variance: np.ndarray = field(init=False)
    seen: list[tuple[np.ndarray, np.ndarray]] = field(init=False, default_factory=list)

    def __post_init__(self):
        self.mean, self.variance = np.zeros(self.shape), np.ones(self.shape)

    def update(self, mean, variance, count) -> None:
        if not np.all(count):
            return
        correction = count / (np.asarray(count) - 1) if self.unbiased else 1.0
        self._enter(np.asarray(mean), np.asarray(variance) * correction)

    def _enter(self, mean: np.ndarray, variance: np.ndarray) -> None:
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            return
        self.seen.append((mean, variance))
        means, variances = zip(*self.seen, strict=True)
        if self.momentum is None:
            self.mean, self.variance = np.mean(means, 0), np.mean(variances, 0)
        elif self.debias:
            self.mean, self.variance = self._debiased(means), self._debiased(variances)
        else:
            self.mean = self.momentum * self.mean + (1 - self.momentum) * mean
            self.variance = self.momentum * self.variance + (1 - self.momentum) * variance

    def _debiased(self, values: Sequence[np.ndarray]) -> np.ndarray:
        average = np.zeros(self.shape)
        for value in values:
            average = self.momentum * average + (1 - self.momentum) * value
        return average / (1 - self.momentum ** len(values))

    def update_from_batch(self, x, *, axis: Axes = -1, mask=None) -> None:
        reduced = other_axes(np.ndim(x), axis)
        self.update(*(m.squeeze(reduced) for m in moments(x, reduced, mask)))

    def update_from_ghosts(
        self, x, groups: Iterable[np.ndarray], *, running: str, axis: Axes = -1, mask=None
    ) -> None:
        """Enters one batch by the rule `running`; `groups` are its ghost batches, of all devices.

        "pooled" is the batch as a whole. "average" is the plain mean over the ghosts that are not
        empty (TF1's virtual batches). "sequential" is one update after the other (Hoffer's code).
        """
        if running == "pooled":
            self.update_from_batch(x, axis=axis, mask=mask)
            return
        ghosts = ghost_moments(x, groups, axis=axis, mask=mask)
        if running == "sequential":
            for ghost in ghosts:
                self.update(*ghost)
            return
        ghosts = [ghost for ghost in ghosts if np.all(ghost.count)]
        if not ghosts:
            return
        corrections = [g.count / (g.count - 1) if self.unbiased else 1.0 for g in ghosts]
        self._enter(
            np.mean([ghost.mean for ghost in ghosts], 0),
            np.mean([g.variance * c for g, c in zip(ghosts, corrections, strict=True)], 0),
        )
