"""The verdict on an arm against a baseline, in a word and in a sentence made of its numbers."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .estimates import Estimate, bootstrap_interval, estimate, standard_error
from .permutation import fewest_pairs, holm, joint_sign_flip_p, pairs_for_power, sign_flip_p
from .scores import Floats, Tasks, checked

Verdict = Literal["better", "worse", "equivalent", "undecided"]

MOST_PAIRS_TOLD = 1000
EQUAL = 1e-12  # differences of accuracies that are equal but for rounding


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline, over runs that are paired by seed.

    The verdict, at significance level a with intervals of 1 - a:

    - "equivalent" (no different within the margin): the interval lies inside (-margin, margin).
      That comes first: a difference that is significant but within the margin is one that the
      study has declared too small to matter. Two one-sided tests at level a would ask this of the
      interval of 1 - 2a; the wider one is asked, so that one interval serves every claim, and a
      wrong "equivalent" has a probability of a/2 at most.
    - "better", "worse": the interval lies above, below 0, and the p-value of the exact sign-flip
      test, adjusted for all comparisons, is at most a. The interval leans on normal differences
      and the test on none, so that a claim stands on both.
    - "undecided": anything else; always with a single pair, with an infinite difference, and when
      all differences are equal though they are too few for the level, since such data say nothing
      of the spread.

    Equivalence is not adjusted for the number of comparisons.

    Attributes:
        arm: Name of the arm.
        baseline: Name of the baseline.
        difference: Mean over tasks of the mean paired difference, with Student's t interval.
        bootstrap: The bootstrap interval of the same, which supposes no normality but needs 5
            pairs; no verdict depends on it.
        pairs: Number of pairs in each task.
        equal: Whether all differences are equal.
        p: Of the sign-flip test.
        adjusted_p: Adjusted for `comparisons`.
        correction: By what: "Holm", or "joint" for `joint_sign_flip_p`.
        comparisons: Number of comparisons that the correction is for.
        needed: Pairs that the level takes, whatever the data, all tasks together.
        needed_for_spread: Pairs that would show a difference of the observed size and spread with
            probability 0.8; infinite when the difference is 0, None when the spread is unknown.
        margin: Differences of at most this size are of no practical account; 0 for none.
        level: The significance level a.
        diverged: Diverged runs of the arm and of the baseline, which count as the worst outcome.
        verdict: See above.
    """

    arm: str
    baseline: str
    difference: Estimate
    bootstrap: tuple[float, float] | None
    pairs: tuple[int, ...]
    equal: bool
    p: float
    adjusted_p: float
    correction: Literal["Holm", "joint"]
    comparisons: int
    needed: int
    needed_for_spread: float | None
    margin: float
    level: float
    diverged: tuple[int, int]
    verdict: Verdict

    @property
    def within_reach(self) -> bool:
        """Whether so many pairs can reach the level at all."""
        return self.adjusted_p <= self.level or self.difference.count >= self.needed

    @property
    def sentence(self) -> str:
        """The verdict in words: effect, interval and pairs, whether these can do, the p-value."""
        sentences = [self._claim()]
        if not self.within_reach:
            sentences.append(
                f"Whatever the data, {_counted(self.difference.count, 'pair')} cannot show a "
                f"difference at p = {self.level:g}{self._correction()}: "
                f"that takes {self.needed} pairs. Here {_p(self.adjusted_p)}."
            )
        if self.verdict == "undecided" and self.needed_for_spread is not None:
            needed = f"about {self.needed_for_spread:.0f}"
            if self.needed_for_spread > MOST_PAIRS_TOLD:
                needed = f"more than {MOST_PAIRS_TOLD}"
            sentences.append(f"A difference of this size and spread takes {needed} pairs to show.")
        if self.equal and self.difference.count > 1:
            sentences.append("All pairs differ by the same, so their spread is unknown.")
        if any(self.diverged):
            arm, baseline = self.diverged
            sentences.append(
                f"Diverged, counted as the worst outcome: {_counted(arm, 'run')} of {self.arm}, "
                f"{_counted(baseline, 'run')} of {self.baseline}."
            )
        return " ".join(sentences)

    def _claim(self) -> str:
        value = self.difference.value
        if self.verdict in ("better", "worse"):
            sign = 1 if self.verdict == "better" else -1
            return (
                f"{self.arm} is {self.verdict} than {self.baseline} by "
                f"{_points(sign * value)} points{self._interval(sign)} {self._support()}."
            )
        claim = f"It is undecided whether {self.arm} differs from {self.baseline}"
        if self.verdict == "equivalent":
            claim = (
                f"{self.arm} is no different from {self.baseline} "
                f"within {_points(self.margin)} points"
            )
        return f"{claim}: {_points(value, '+')} points{self._interval(1)} {self._support()}."

    def _interval(self, sign: int) -> str:
        if self.difference.interval is None:
            return ""
        low, high = sorted(sign * end for end in self.difference.interval)
        return f" [{_points(low)}, {_points(high)}]"

    def _support(self) -> str:
        support = _counted(self.difference.count, "paired seed")
        if len(self.pairs) > 1:
            support = f"{_counted(self.difference.count, 'pair')} over {len(self.pairs)} tasks"
        if self.within_reach:
            support += f", {_p(self.adjusted_p)}{self._correction()}"
        return f"({support})"

    def _correction(self) -> str:
        if self.comparisons == 1:
            return ""
        by = {"Holm": "Holm's correction", "joint": "a joint correction"}[self.correction]
        return f" after {by} for {self.comparisons} comparisons"


def compare(
    differences: Mapping[tuple[str, str], Tasks],
    *,
    margin: float = 0.0,
    level: float = 0.05,
    diverged: Mapping[str, int] | None = None,
) -> dict[tuple[str, str], Comparison]:
    """Compares arms with their baselines, as one family of comparisons, corrected by Holm.

    Args:
        differences: Arm and baseline -> the arm's paired differences from the baseline, task by
            task, of scores where higher is better; see `paired_differences`. Diverged runs belong
            in it with the worst score.
        margin: See `Comparison`; in units of the scores.
        level: Two-sided level of significance.
        diverged: Arm or baseline -> number of diverged runs, where there are any.

    Returns:
        Arm and baseline -> comparison, in the order given.

    Raises:
        ValueError: The margin is negative or infinite, or the level is not a probability; see also
            `checked`.
    """
    adjusted = holm({pair: sign_flip_p(tasks) for pair, tasks in differences.items()})
    return _compared(differences, adjusted, "Holm", margin, level, diverged or {})


def compare_jointly(
    differences: Mapping[tuple[str, str], Sequence[Mapping[int, float]]],
    told: Collection[tuple[str, str]],
    *,
    margin: float = 0.0,
    level: float = 0.05,
    diverged: Mapping[str, int] | None = None,
) -> dict[tuple[str, str], Comparison]:
    """Compares arms with each other, corrected by joint sign flips.

    Of all pairs of arms, those of the arm that came out best may be told by themselves: that it was
    chosen by the same data is accounted for. See `joint_sign_flip_p`.

    Args:
        differences: Two arms -> for each task seed -> the first one's difference from the second.
        told: Those of them that are asked for; all are corrected for.
        margin: See `compare`, as all that follows.
        level: Likewise.
        diverged: Likewise.

    Returns:
        The two arms -> comparison, of those asked for, in the order given.
    """
    by_task = {
        pair: [list(it.values()) for it in tasks]
        for pair, tasks in differences.items()
        if pair in told
    }
    adjusted = joint_sign_flip_p(differences)
    return _compared(by_task, adjusted, "joint", margin, level, diverged or {})


def _compared(
    differences: Mapping[tuple[str, str], Tasks],
    adjusted: Mapping[tuple[str, str], float],
    correction: Literal["Holm", "joint"],
    margin: float,
    level: float,
    diverged: Mapping[str, int],
) -> dict[tuple[str, str], Comparison]:
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin {margin}; expected a difference of scores, 0 or more")
    arrays = {pair: checked(tasks) for pair, tasks in differences.items()}
    comparisons = {}
    for (arm, baseline), tasks in arrays.items():
        difference = estimate(tasks, confidence=1 - level)
        # The smallest p-value of joint flips is that of one test, however many the comparisons.
        needed = fewest_pairs(level, len(adjusted) if correction == "Holm" else 1)
        equal = bool(np.ptp(np.concatenate(tasks)) < EQUAL)
        enough = difference.count >= needed or not equal
        comparisons[arm, baseline] = Comparison(
            arm=arm,
            baseline=baseline,
            difference=difference,
            bootstrap=bootstrap_interval(tasks, confidence=1 - level),
            pairs=tuple(map(len, tasks)),
            equal=equal,
            p=sign_flip_p(tasks),
            adjusted_p=adjusted[arm, baseline],
            correction=correction,
            comparisons=len(adjusted),
            needed=needed,
            needed_for_spread=_needed_for_spread(tasks, difference, level, len(adjusted)),
            margin=margin,
            level=level,
            diverged=(diverged.get(arm, 0), diverged.get(baseline, 0)),
            verdict=decide(
                difference.interval if enough else None, adjusted[arm, baseline], margin, level
            ),
        )
    return comparisons


def decide(
    interval: tuple[float, float] | None, adjusted_p: float, margin: float, level: float
) -> Verdict:
    """The verdict; see `Comparison` for the rule."""
    if interval is None:
        return "undecided"
    low, high = interval
    if -margin < low and high < margin:
        return "equivalent"
    if adjusted_p <= level and low > 0:
        return "better"
    if adjusted_p <= level and high < 0:
        return "worse"
    return "undecided"


def _needed_for_spread(
    tasks: list[Floats], difference: Estimate, level: float, comparisons: int
) -> float | None:
    error, _ = standard_error(tasks)
    if math.isnan(error) or error < EQUAL:
        return None
    # The deviation of pairs that, all alike, would give the mean this standard error.
    deviation = error * math.sqrt(difference.count)
    return pairs_for_power(difference.value, deviation, level, comparisons)


def _points(difference: float, sign: str = "") -> str:
    """0.0123 -> "1.23", in percentage points."""
    # Adding 0 turns what rounds to -0.00 into 0.00.
    return f"{round(100 * difference, 2) + 0:{sign}.2f}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
