"""Time to a target that some runs never reach: censored, not left out."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from .estimates import CONFIDENCE, Interval
from .scores import Floats


@dataclass(frozen=True)
class Arrivals:
    """When the runs of one arm reached a target, in steps, epochs or seconds.

    A late run, which ended before it reached the target, is censored at the end of its budget:
    it might have arrived at any time after. A diverged run has no such time. To censor it where
    it diverged would say that it would have gone on like the others, which flatters an arm that
    diverges; so it counts as never arriving, and is under way until the horizon, the longest
    budget of the study. Also one that had reached the target before it diverged counts so: it
    is of no use.

    Attributes:
        times: Of each run, when it arrived, or how long it was under way without arriving.
        arrived: Of each run, whether it arrived.
        horizon: The longest budget of the study.
    """

    times: Floats
    arrived: np.ndarray
    horizon: float


def arrivals(
    reached: ArrayLike, budgets: ArrayLike, diverged: ArrayLike, horizon: float
) -> Arrivals:
    """Gathers when runs reached a target.

    Args:
        reached: Of each run the time at which it reached the target, infinite if it did not.
        budgets: Of each run the time at which it ended or would have ended.
        diverged: Of each run whether it diverged.
        horizon: The longest budget of the study, all arms together.

    Raises:
        ValueError: The arguments have different lengths or no run, or a budget is beyond the
            horizon.
    """
    times = np.asarray(reached, dtype=np.float64)
    ends = np.asarray(budgets, dtype=np.float64)
    lost = np.asarray(diverged, dtype=bool)
    if not times.shape == ends.shape == lost.shape or times.ndim != 1 or times.size == 0:
        raise ValueError(
            f"times, budgets and divergence of {times.shape}, {ends.shape} and {lost.shape} runs; "
            "expected one of each for every run, and at least one run"
        )
    if np.max(ends) > horizon:
        raise ValueError(
            f"a budget of {np.max(ends):g} is beyond the horizon {horizon:g}; give the longest "
            "budget of the study as horizon"
        )
    arrived = (times <= ends) & ~lost
    return Arrivals(np.where(arrived, times, np.where(lost, horizon, ends)), arrived, horizon)


@dataclass(frozen=True)
class TimeToTarget:
    """The Kaplan-Meier estimate of the time to a target.

    Attributes:
        median: When half of the runs have arrived; infinite when fewer than half do.
        interval: Of the median, by the log-log band of the curve (Brookmeyer and Crowley 1982).
            The upper end is infinite when the runs do not bound it, and all is None when no run
            arrived.
        restricted_mean: Mean time to the target or the horizon, whichever comes first.
        times: Times at which the curve falls, rising; the curve is 1 before the first.
        remaining: Share of the runs still under way just after each of the times.
        arrived: How many runs arrived.
        count: Number of runs.
    """

    median: float
    interval: Interval | None
    restricted_mean: float
    times: Floats
    remaining: Floats
    arrived: int
    count: int


def time_to_target(runs: Arrivals, *, confidence: float = CONFIDENCE) -> TimeToTarget:
    """Estimates the time to a target, late and diverged runs included."""
    times, arrived = np.unique(runs.times[runs.arrived], return_counts=True)
    # Who ends at the very time of an arrival was still under way.
    under_way = len(runs.times) - np.searchsorted(np.sort(runs.times), times)
    remaining: Floats = np.cumprod((under_way - arrived) / under_way, dtype=np.float64)
    low, high = _band(remaining, arrived, under_way, confidence)
    starts = np.concatenate([[0.0], times])
    heights = np.concatenate([[1.0], remaining])
    return TimeToTarget(
        _first_at_half(times, remaining),
        (_first_at_half(times, low), _first_at_half(times, high)) if times.size else None,
        float(np.sum(heights * np.diff(starts, append=runs.horizon))),
        times,
        remaining,
        int(np.count_nonzero(runs.arrived)),
        len(runs.times),
    )


def _band(
    remaining: Floats, arrived: np.ndarray, under_way: np.ndarray, confidence: float
) -> tuple[Floats, Floats]:
    """The log-log band of a Kaplan-Meier curve; from 0 to 1 where it is not defined, at its end."""
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(arrived / (under_way * (under_way - arrived))) / np.log(remaining) ** 2
        middle = np.log(-np.log(remaining))
        half = ndtri((1 + confidence) / 2) * np.sqrt(variance)
        low, high = np.exp(-np.exp(middle + half)), np.exp(-np.exp(middle - half))
    return np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=1.0)


def _first_at_half(times: Floats, remaining: Floats) -> float:
    # Rounding must not turn one half into a little more.
    there = times[remaining <= 0.5 + 1e-12]
    return float(there[0]) if there.size else math.inf


@dataclass(frozen=True)
class FirstToTarget:
    """Which of two arms reached the target first, pair by pair.

    Attributes:
        first: Pairs in which the first arm did.
        second: Pairs in which the second arm did.
        undecided: Pairs that arrived together, or neither, or that censoring leaves open.
    """

    first: int
    second: int
    undecided: int


def first_to_target(runs: Arrivals, others: Arrivals) -> FirstToTarget:
    """Counts which of two arms, whose runs are paired by seed, reached the target first.

    Raises:
        ValueError: The arms have different numbers of runs.
    """
    if len(runs.times) != len(others.times):
        raise ValueError(
            f"{len(runs.times)} and {len(others.times)} runs; keep only the seeds that both have"
        )
    first, second = _sooner(runs, others), _sooner(others, runs)
    return FirstToTarget(first, second, len(runs.times) - first - second)


def _sooner(runs: Arrivals, others: Arrivals) -> int:
    # One that ends at the very time of the other's arrival has not arrived by then.
    later = (runs.times < others.times) | ((runs.times == others.times) & ~others.arrived)
    return int(np.count_nonzero(runs.arrived & later))
