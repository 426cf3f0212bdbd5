"""Probability of improvement: how often a run of one arm beats a run of another."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .estimates import CONFIDENCE, Estimate
from .resampling import expanded_tail, resample_weights
from .scores import Floats, Tasks, checked


def probability_of_improvement(
    tasks: Tasks, others: Tasks, *, confidence: float = CONFIDENCE, seed: int = 0
) -> Estimate:
    """The probability that a run of one arm scores above an independent run of the other.

    Of each task the Mann-Whitney U over the number of pairs, ties counting half; then the mean
    over tasks (Agarwal et al. 2021). The interval is that of the percentile bootstrap with expanded
    percentiles, in which the runs of each arm and task are drawn again independently: where arms
    share seeds and good seeds are good for both, it is wider than it need be. In simulations of
    two normal arms it held the truth at least 98% of the time with 5 runs an arm, and 94 to 97%
    with 8 and 20; plain percentiles did 90% with 5.

    Returns:
        The estimate; no interval when an arm has a single run in a task, or when resamples cannot
        differ, as when every run of one arm beats every run of the other.

    Raises:
        ValueError: The arms have different numbers of tasks; see also `checked`.
    """
    ours, theirs = checked(tasks), checked(others)
    if len(ours) != len(theirs):
        raise ValueError(f"scores of {len(ours)} and of {len(theirs)} tasks; expected the same")
    wins = [_wins(a, b) for a, b in zip(ours, theirs, strict=True)]
    value = float(np.mean([np.mean(it) for it in wins]))
    count = sum(map(len, ours)) + sum(map(len, theirs))
    if min(min(it.shape) for it in wins) < 2 or all(np.ptp(it) == 0 for it in wins):
        return Estimate(value, None, count)
    times = _times(tuple(it.shape for it in wins), seed)
    # Numbers of doubled wins, which are whole and exact in single precision.
    drawn = np.mean(
        [
            np.einsum("ij,ij->i", one @ (2 * it).astype(np.float32), other)
            / np.float64(2 * it.size)
            for it, (one, other) in zip(wins, times, strict=True)
        ],
        axis=0,
    )
    freedom = float(count - 2 * len(wins))
    tail = expanded_tail(freedom, math.sqrt(count / freedom), confidence)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value, (float(low), float(high)), count)


@lru_cache(maxsize=4)
def _times(
    shapes: tuple[tuple[int, ...], ...], seed: int
) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]:
    """How often resamples of both arms draw each run, on each task; the same for all such arms."""
    draw = np.random.default_rng(seed)

    def times(count: int) -> NDArray[np.float32]:
        return np.rint(count * resample_weights(draw, count)).astype(np.float32)

    return tuple((times(ours), times(theirs)) for ours, theirs in shapes)


def _wins(ours: Floats, theirs: Floats) -> Floats:
    return (ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)
