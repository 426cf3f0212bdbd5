"""Mean, median and interquartile mean of runs, with intervals stratified by task."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from .resampling import RESAMPLES, expanded_tail
from .scores import Floats, Tasks, checked

CONFIDENCE = 0.95
FEWEST_FOR_BOOTSTRAP = 5
AT_A_TIME = 500  # resamples, for the sake of memory

Interval = tuple[float, float]
Statistic = Callable[..., Floats]
"""Tasks' arrays and the axis along which the runs lie -> one number for each of what remains."""


def mean(*tasks: Floats, axis: int = -1) -> Floats:
    """The mean over tasks of the mean over runs, so that each task weighs the same."""
    return np.asarray(np.mean([np.mean(task, axis=axis) for task in tasks], axis=0))


def median(*tasks: Floats, axis: int = -1) -> Floats:
    """The median of all runs of all tasks."""
    return np.asarray(np.median(np.concatenate(tasks, axis=axis), axis=axis))


def interquartile_mean(*tasks: Floats, axis: int = -1) -> Floats:
    """The mean of the middle half of all runs of all tasks (Agarwal et al. 2021, rliable)."""
    runs = np.moveaxis(np.concatenate(tasks, axis=axis), axis, -1)
    count = runs.shape[-1]
    cut = count // 4
    # The module of SciPy that has this takes longer to import than most pages to make.
    middle = np.partition(runs, [cut, count - cut - 1], axis=-1)[..., cut : count - cut]
    return np.asarray(np.mean(middle, axis=-1))


@dataclass(frozen=True)
class Estimate:
    """A statistic of runs with its interval.

    Attributes:
        value: The statistic; infinite where infinite scores make it so.
        interval: Lower and upper end; None when the runs are too few, or one is infinite.
        count: Number of runs, all tasks together.
    """

    value: float
    interval: Interval | None
    count: int

    @property
    def of_shares(self) -> "Estimate":
        """The same of scores between 0 and 1, with its interval cut off where none can be."""
        if self.interval is None:
            return self
        low, high = self.interval
        return replace(self, interval=(max(low, 0.0), min(high, 1.0)))


def estimate(
    tasks: Tasks, statistic: Statistic = mean, *, confidence: float = CONFIDENCE
) -> Estimate:
    """Estimates a statistic with the interval that covers the truth most reliably.

    For the mean that is `student_interval`, for other statistics `bootstrap_interval`. Percentage
    of nominal 95% intervals that held the true mean of n runs, in 4000 simulations each, of scores
    that are normal; the difference of two log-normal arms (sigma 0.75); and log-normal:

    | interval | n = 5 | n = 8 | n = 20 |
    | --- | --- | --- | --- |
    | Student t | 95, 97, 88 | 95, 96, 88 | 94, 96, 91 |
    | bootstrap, expanded percentiles | 91, 91, 86 | 94, 93, 88 | 94, 94, 91 |
    | bootstrap, plain percentiles | 82, 84, 77 | 89, 88, 82 | 92, 91, 89 |
    | bootstrap, BCa | 83, 81, 78 | 88, 84, 84 | 92, 88, 90 |
    | bootstrap-t | 95, 95, 92 | 95, 93, 92 | 94, 92, 93 |

    Percentiles of resamples cannot reach beyond the data, so that five runs are too few for any of
    them; bootstrap-t is 1.7 to 2.8 times as wide as Student's t there, and has no end below.
    The median and the interquartile mean were held by 94% of the expanded intervals for n = 5 and
    by 95 to 97% for n = 8 and 20, of all three kinds of scores. Of the mean over three tasks of
    unlike spread with three runs each, Student's t held 93%.

    Args:
        tasks: See `Tasks`; for paired differences those of the pairs.
        statistic: `mean`, `median` or `interquartile_mean`.
        confidence: Nominal share of the intervals that hold the true value.

    Returns:
        The estimate.

    Raises:
        ValueError: See `checked`.
    """
    arrays = checked(tasks)
    if statistic is mean:
        interval = student_interval(arrays, confidence=confidence)
    else:
        interval = bootstrap_interval(arrays, statistic, confidence=confidence)
    return Estimate(float(statistic(*arrays)), interval, sum(map(len, arrays)))


def standard_error(tasks: Tasks) -> tuple[float, float]:
    """Standard error of the mean over tasks, and its degrees of freedom (Welch-Satterthwaite).

    Both are NaN when a task has a single run, and the error is when a score is infinite. Without
    any spread the degrees of freedom are those of equal variances.
    """
    arrays = checked(tasks)
    counts = np.array([len(it) for it in arrays])
    if counts.min() < 2 or not all(np.isfinite(it).all() for it in arrays):
        return math.nan, math.nan
    variances = np.array([np.var(it, ddof=1) for it in arrays]) / counts
    total = float(np.sum(variances))
    freedom = float(np.sum(counts - 1))
    if total > 0:
        freedom = 1 / float(np.sum((variances / total) ** 2 / (counts - 1)))
    return math.sqrt(total) / len(arrays), freedom


def student_interval(tasks: Tasks, *, confidence: float = CONFIDENCE) -> Interval | None:
    """Student's t interval of the mean over tasks.

    Returns:
        Lower and upper end; None when a task has a single run or a score is infinite.
    """
    arrays = checked(tasks)
    error, freedom = standard_error(arrays)
    if math.isnan(error):
        return None
    middle, half = float(mean(*arrays)), float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return middle - half, middle + half


def bootstrap_interval(
    tasks: Tasks,
    statistic: Statistic = mean,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap interval of a statistic: the runs of each task are drawn again.

    The percentiles are those of `expanded_tail`; see `estimate` for what they gain.

    Returns:
        Lower and upper end; None when a task has a single run, all have fewer than 5 runs
        together (the widest interval then is the range of the data, which holds a median less
        often than 95%), or a score is infinite.
    """
    arrays = checked(tasks)
    error, freedom = standard_error(arrays)
    if math.isnan(error) or sum(map(len, arrays)) < FEWEST_FOR_BOOTSTRAP:
        return None
    resampled_variance = sum(np.var(it) / len(it) for it in arrays) / len(arrays) ** 2
    expansion = error / math.sqrt(resampled_variance) if error > 0 else 1.0
    tail = expanded_tail(freedom, expansion, confidence)
    drawn = _resampled(arrays, statistic, resamples, seed)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _resampled(arrays: Sequence[Floats], statistic: Statistic, resamples: int, seed: int) -> Floats:
    """The statistic of each resample.

    Sorting every resample is what would take time. How often each run is drawn is the same for all
    arms with so many runs; with the runs in rising order, its cumulative sum is the place up to
    which each run fills the resample, and cut off at the middle places it counts the run there.
    """
    counts = tuple(map(len, arrays))
    times = _times(counts, resamples, seed)
    if statistic is mean:
        tasks = zip(arrays, np.split(times, np.cumsum(counts)[:-1]), strict=True)
        return np.mean([it @ drawn / len(it) for it, drawn in tasks], axis=0)
    runs = np.concatenate(arrays)
    cut = (len(runs) - 1) // 2 if statistic is median else len(runs) // 4
    order = np.argsort(runs, kind="stable")
    drawn = np.empty(resamples)
    for start in range(0, resamples, AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        places = np.cumsum(times[order, part], axis=0, dtype=np.int32)
        inside = np.diff(np.clip(places, cut, len(runs) - cut), axis=0, prepend=np.int32(cut))
        drawn[part] = runs[order] @ inside
    return drawn / (len(runs) - 2 * cut)


@lru_cache(maxsize=4)
def _times(counts: tuple[int, ...], resamples: int, seed: int) -> NDArray[np.int32]:
    """How often each run, task by task, is in each resample: a row a run, a column a resample."""
    draw = np.random.default_rng(seed)
    times: list[NDArray[np.int32]] = []
    for count in counts:
        cells = resamples * draw.integers(0, count, (resamples, count))
        cells += np.arange(resamples)[:, None]
        times.append(np.bincount(cells.ravel(), minlength=count * resamples).astype(np.int32))
    return np.concatenate(times).reshape(-1, resamples)
