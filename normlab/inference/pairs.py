"""All pairs of arms that compete, tested together: one p-value and one interval for each pair."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from .correction import multipliers, step_down
from .estimates import Estimate
from .measure import SHARE, Measure
from .permutation import sign_flip_ps
from .power import FEWEST_PAIRS
from .scores import Floats, paired_differences
from .verdict import Comparison, decide

# Scores that differ by less than this share of the largest are equal but for rounding, as means of
# float32 are.
ROUNDING = 1e-6
# The least variance of differences, in squared steps of the scores. Chosen so that the level holds
# however narrow the scores lie, see docs/conclusions.md.
LEAST_VARIANCE = 0.75

Ints = NDArray[np.int64]
BySeed = Sequence[Mapping[int, float]]
"""The scores of one arm: for each task seed -> score, higher being better."""


@dataclass(frozen=True)
class Pairs:
    """The paired t-tests of all pairs of arms that compete, as one family.

    Of each pair the differences of runs with the same seed: their mean over the tasks, over its
    standard error, by Student's t. Two things are added to the textbook's test:

    - The variance of the differences is taken for three quarters of the square of the scores' step
      at least. The step is the smallest gap between two scores on the task, which is one example
      for shares of a small test set. Without it, differences that are equal by rounding would
      look like differences without spread.
    - Over several tasks the degrees of freedom are halfway between Welch and Satterthwaite's and
      the fewest of a task: the former alone finds too much with three or four runs a task.

    The p-values are corrected for each other by Shaffer's steps, which keep the chance of any false
    finding among all pairs at the level; so any pair may be looked at, whichever arms were chosen
    by the same data. Intervals are Student's t, widened by the same correction: that of a pair that
    is shown by the multiplier of its step, those of all others by that of the step where the
    procedure stopped. So an interval leaves out 0 just where the corrected p-value is at most the
    level.

    Attributes:
        groups: Names of arms; those of a group compete, each with each.
        scores: Arm -> its scores.
        difference: Of each pair, group by group and in each as `itertools.combinations` has them,
            the mean over tasks of the mean paired difference; NaN where some task has no seed that
            both have.
        half: Half the width of its interval; NaN where the data say nothing of the spread.
        deviation: See `Comparison`; NaN likewise.
        counts: Number of pairs, a row a pair of arms and a column a task.
        tied: Whether the two arms are equal in every pair of runs.
        p: P-value of each pair by itself; 1 where the data say nothing of the spread.
        adjusted_p: Corrected for all pairs of arms that can be compared.
        comparisons: Number of these.
        margin: Differences of at most this size are of no practical account; 0 for none.
        level: Two-sided level of significance.
        diverged: Arm -> number of diverged runs, where there are any.
        measure: What the scores measure, in which differences are told.
    """

    groups: tuple[tuple[str, ...], ...]
    scores: Mapping[str, BySeed]
    difference: Floats
    half: Floats
    deviation: Floats
    counts: Ints
    tied: NDArray[np.bool_]
    p: Floats
    adjusted_p: Floats
    comparisons: int
    margin: float
    level: float
    diverged: Mapping[str, int]
    measure: Measure = SHARE

    def compare(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Comparison]:
        """Returns what was found of pairs of arms, each in the order its arms are given in.

        Args:
            pairs: Arm and other arm. Those that do not compete or share no seed are left out.
        """
        place = {
            name: (group, index)
            for group, names in enumerate(self.groups)
            for index, name in enumerate(names)
        }
        starts = np.cumsum([0, *(math.comb(len(names), 2) for names in self.groups)]).tolist()
        rows: dict[tuple[str, str], tuple[int, int]] = {}
        for arm, other in pairs:
            (group, one), (group_of_other, two) = place[arm], place[other]
            if group != group_of_other or one == two:
                continue
            first, second = sorted((one, two))
            row = starts[group] + first * (2 * len(self.groups[group]) - first - 1) // 2
            row += second - first - 1
            if not math.isnan(self.difference[row]):
                rows[arm, other] = row, 1 if one < two else -1
        # Of a pair that is asked for both ways the p-value is the same.
        once = {row: pair for pair, (row, _) in rows.items()}
        found = sign_flip_ps([self._differences(arm, other) for arm, other in once.values()])
        exact = dict(zip(once, found, strict=True))
        return {
            pair: self._comparison(pair, row, sign, exact[row])
            for pair, (row, sign) in rows.items()
        }

    def _differences(self, arm: str, other: str) -> list[Floats]:
        ours, theirs = self.scores[arm], self.scores[other]
        shared = [[it for it in a if it in b] for a, b in zip(ours, theirs, strict=True)]

        def of(arm: BySeed) -> list[list[float]]:
            return [[by[it] for it in seeds] for by, seeds in zip(arm, shared, strict=True)]

        return paired_differences(of(ours), of(theirs))

    def _comparison(self, pair: tuple[str, str], row: int, sign: int, exact: float) -> Comparison:
        arm, other = pair
        value, half = sign * float(self.difference[row]), float(self.half[row])
        interval = None if math.isnan(half) else (value - half, value + half)
        verdict = decide(interval, float(self.adjusted_p[row]), self.margin, self.level)
        # From here on in what was measured, of which the lower may be the better.
        value = self.measure.score(value)
        interval = interval and (value - half, value + half)
        pairs = tuple(self.counts[row].tolist())
        return Comparison(
            arm=arm,
            baseline=other,
            difference=Estimate(value, interval, sum(pairs)),
            pairs=pairs,
            tied=bool(self.tied[row]),
            p=float(self.p[row]),
            adjusted_p=float(self.adjusted_p[row]),
            sign_flip_p=exact,
            comparisons=self.comparisons,
            deviation=None if interval is None else float(self.deviation[row]),
            margin=self.margin,
            level=self.level,
            diverged=(self.diverged.get(arm, 0), self.diverged.get(other, 0)),
            verdict=verdict,
            measure=self.measure,
        )


def all_pairs(
    scores: Mapping[str, BySeed],
    groups: Sequence[Sequence[str]],
    *,
    margin: float = 0.0,
    level: float = 0.05,
    diverged: Mapping[str, int] | None = None,
    measure: Measure = SHARE,
) -> Pairs:
    """Tests all pairs of arms that compete; see `Pairs`.

    Args:
        scores: Arm -> its scores, all arms on the same tasks. Diverged runs belong in it with the
            worst score. Not all arms need have all seeds.
        groups: Names of arms; those of a group compete, each with each.
        margin: See `Pairs`; in units of the scores.
        level: Likewise.
        diverged: Likewise.
        measure: Likewise; the scores are as `Measure.score` makes them.

    Raises:
        ValueError: The margin is negative or infinite, the level is not a probability, or a score
            is NaN.
    """
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin {margin}; expected a difference of scores, 0 or more")
    if not 0 < level < 1:
        raise ValueError(f"level {level}; expected a probability above 0 and below 1, as 0.05")
    found = [_spread([scores[name] for name in names]) for names in groups]
    spread = _Spread(*map(np.concatenate, zip(*found, strict=True)))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(spread.freedom, -np.abs(spread.difference) / spread.error)
    p = np.where(spread.tied | np.isnan(spread.error), 1.0, p)
    compared = ~np.isnan(spread.difference)
    comparisons = int(np.count_nonzero(compared))
    # Pairs that cannot be compared leave fewer to be true, at most those not yet rejected.
    with_runs = [sum(all(scores[name]) for name in names) for names in groups]
    steps = multipliers(with_runs)[:comparisons]
    steps = np.minimum(steps, comparisons - np.arange(comparisons))
    adjusted = np.ones_like(p)
    adjusted[compared] = step_down(p[compared], steps)
    half = spread.error * stdtrit(
        spread.freedom, 1 - level / _widening(p, adjusted, steps, level) / 2
    )
    return Pairs(
        groups=tuple(tuple(names) for names in groups),
        scores=scores,
        difference=spread.difference,
        half=half,
        deviation=spread.error * np.sqrt(spread.counts.sum(axis=1)),
        counts=spread.counts,
        tied=spread.tied,
        p=p,
        adjusted_p=adjusted,
        comparisons=comparisons,
        margin=margin,
        level=level,
        diverged=dict(diverged or {}),
        measure=measure,
    )


def _widening(p: Floats, adjusted: Floats, steps: Ints, level: float) -> Floats:
    """For how many comparisons the interval of each pair is widened."""
    shown = adjusted <= level
    stopped = steps[min(np.count_nonzero(shown), len(steps) - 1)] if len(steps) else 1
    with np.errstate(divide="ignore", invalid="ignore"):
        # A p-value too small for a float leaves out 0 by whatever multiplier.
        own = np.where(p > 0, adjusted / p, steps[0] if len(steps) else 1)
    return np.where(shown, own, stopped)


class _Spread(NamedTuple):
    """Of each pair of arms of a group: its mean difference and how far that may be off."""

    difference: Floats
    error: Floats
    freedom: Floats
    counts: Ints
    tied: NDArray[np.bool_]


def _spread(arms: Sequence[BySeed]) -> _Spread:
    tasks = [_task([arm[task] for arm in arms]) for task in range(len(arms[0]))]
    means, variances, counts, tied = (np.stack(it, axis=1) for it in zip(*tasks, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = variances / counts
        total = parts.sum(axis=1)
        welch = total**2 / (parts**2 / (counts - 1)).sum(axis=1)
        fewest = np.where(parts > 0, counts - 1, np.inf).min(axis=1)
        freedom = np.where(total > 0, (welch + fewest) / 2, 1.0)
    # Without a spread on each task, or with one that two pairs alone tell.
    unknown = (counts < 2).any(axis=1) | (counts.sum(axis=1) < FEWEST_PAIRS)
    error = np.where(unknown | ~np.isfinite(total), np.nan, np.sqrt(total) / means.shape[1])
    difference = np.where((counts > 0).all(axis=1), means.mean(axis=1), np.nan)
    return _Spread(difference, error, freedom, counts, np.asarray(tied.all(axis=1)))


def _task(runs: Sequence[Mapping[int, float]]) -> tuple[Floats, Floats, Ints, NDArray[np.bool_]]:
    """Mean, variance and number of the differences of each pair of arms; whether all are 0."""
    seeds = list(dict.fromkeys(seed for arm in runs for seed in arm))
    scores = np.array([[arm.get(seed, np.nan) for seed in seeds] for arm in runs])
    there = np.array([[seed in arm for seed in seeds] for arm in runs], dtype=bool)
    if np.isnan(scores[there]).any():
        raise ValueError(
            "a score is not a number; give a diverged run the worst score (0 of a share, minus "
            "infinity else)"
        )
    rounding, step = _steps(scores[there])
    pairs = math.comb(len(runs), 2)
    means, variances = np.zeros(pairs), np.zeros(pairs)
    counts, tied = np.zeros(pairs, dtype=np.int64), np.zeros(pairs, dtype=bool)
    start = 0
    for first in range(len(runs) - 1):
        row = slice(start, start := start + len(runs) - 1 - first)
        with np.errstate(divide="ignore", invalid="ignore"):
            differences = scores[first] - scores[first + 1 :]
            differences[scores[first] == scores[first + 1 :]] = 0.0  # infinitely bad alike
            differences[np.abs(differences) <= rounding] = 0.0
            both = there[first] & there[first + 1 :]
            differences[~both] = 0.0
            counts[row] = count = both.sum(axis=1)
            means[row] = mean = differences.sum(axis=1) / count
            tied[row] = ~differences.any(axis=1)
            squares = np.where(both, (differences - mean[:, None]) ** 2, 0.0).sum(axis=1)
            variances[row] = np.maximum(squares / (count - 1), LEAST_VARIANCE * step**2)
    variances[tied] = 0.0
    return means, variances, counts, tied


def _steps(scores: Floats) -> tuple[float, float]:
    """Up to where scores differ by rounding only, and the smallest gap between others."""
    finite = np.sort(scores[np.isfinite(scores)])
    if not finite.size:
        return 0.0, 0.0
    rounding = ROUNDING * float(np.abs(finite).max())
    gaps = np.diff(finite)
    gaps = gaps[gaps > rounding]
    return rounding, float(gaps.min()) if gaps.size else 0.0
