"""Ghost batches: which examples form one, and how each is normalized (Hoffer et al. 2017)."""

from collections.abc import Iterable

import numpy as np

from .basis import Axes, Moments, affine, as_double, full_mask, moments, other_axes
from .standardizing import batch_norm


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
