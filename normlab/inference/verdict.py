"""The verdict on one arm against another, in a word and in a sentence made of its numbers."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from .estimates import Estimate
from .measure import SHARE, Measure, digits_of, in_units
from .power import FEWEST_PAIRS, enough_pairs, pairs_for_power

Verdict = Literal["better", "worse", "equivalent", "undecided"]

MOST_PAIRS_TOLD = 1000


@dataclass(frozen=True)
class Comparison:
    """One arm against another, over runs that are paired by seed.

    It is one of all pairs of arms that a study compares; see `normlab.inference.pairs` for the
    test, its correction and the interval. The verdict, at significance level a:

    - "equivalent": the interval lies inside (-margin, margin).
      That comes first: a difference that is significant but within the margin is one that the
      study has declared too small to matter.
    - "better", "worse": the corrected p-value is at most a, which is where the interval lies
      above, below 0.
    - "undecided": anything else; always with fewer than 3 pairs, with a single pair on some task,
      and with an infinite difference, since such data say nothing of the spread.

    Attributes:
        arm: Name of the arm.
        baseline: Name of the arm that it is compared with.
        difference: Mean over tasks of the mean paired difference, in what was measured, of which
            the lower may be the better; its interval leaves out 0 just where the corrected p-value
            is at most a. None where the data say nothing of the spread.
        pairs: Number of pairs in each task.
        tied: Whether the two arms are equal in every pair.
        p: Of the paired t-test, for this comparison alone.
        adjusted_p: Corrected for `comparisons`.
        sign_flip_p: Of the exact sign-flip test, for this comparison alone. No verdict depends on
            it; it supposes less and shows less.
        comparisons: Number of pairs of arms that are compared.
        deviation: Standard deviation of the paired differences; of several tasks that of pairs
            which, all alike, would give the mean the same standard error. None as above.
        margin: Differences of at most this size are of no practical account; 0 for none.
        level: The significance level a.
        diverged: Diverged runs of the arm and of the other, which count as the worst outcome.
        verdict: See above.
        measure: What the scores measure.
    """

    arm: str
    baseline: str
    difference: Estimate
    pairs: tuple[int, ...]
    tied: bool
    p: float
    adjusted_p: float
    sign_flip_p: float
    comparisons: int
    deviation: float | None
    margin: float
    level: float
    diverged: tuple[int, int]
    verdict: Verdict
    measure: Measure = SHARE

    @property
    def lead(self) -> float:
        """By how much the arm is the better one."""
        return self.measure.score(self.difference.value)

    @cached_property
    def needed(self) -> float | None:
        """Pairs that would show a difference of the observed size and spread, at power 0.8.

        Infinite when the difference is 0; None when the spread is unknown or there is none. Never
        as few as there are, of a difference that these do not show.
        """
        if not self.deviation:
            return None
        pairs = pairs_for_power(self.difference.value, self.deviation, self.level, self.comparisons)
        return max(pairs, self.difference.count + 1.0) if self.adjusted_p > self.level else pairs

    @cached_property
    def digits(self) -> int:
        """Decimals at which difference and interval are told: of points 2, or as many as it takes.

        That an end or the difference itself is not 0, and on which side of the margin an end lies,
        can be read off what is told; but for what is equal up to rounding.
        """
        told = {self.difference.value: [0.0]}
        for end in self.difference.interval or ():
            told[end] = [0.0, -self.margin, self.margin]
        return digits_beside(told, self.measure)

    @property
    def sign_flip_in_words(self) -> str:
        """The p-value of the exact sign-flip test, as "p = 0.031"."""
        return _p(self.sign_flip_p, self.level)

    @property
    def p_in_words(self) -> str:
        """The corrected p-value, or why there is none: "p = 0.031", "too few pairs", "tied"."""
        if self.tied and self.difference.interval is not None:
            return "tied"
        if self.difference.interval is None:
            return "too few pairs"
        return _p(self.adjusted_p, self.level)

    @property
    def sentence(self) -> str:
        """The verdict in words: effect, interval, pairs, p-value, and how many pairs would do."""
        sentences = [self._claim()]
        if self.difference.interval is None:
            sentences.append(
                f"Fewer than {FEWEST_PAIRS} pairs, or a single one on a task, decide nothing; "
                f"{enough_pairs(self.level, self.comparisons)} seeds would show a clear difference."
                if math.isfinite(self.difference.value)
                else "An infinite difference says nothing of the spread."
            )
        elif self.tied:
            sentences.append("They are equal in every pair.")
        elif self.verdict == "undecided" and self.needed is not None:
            needed = f"about {self.needed:.0f}"
            if self.needed > MOST_PAIRS_TOLD:
                needed = f"more than {MOST_PAIRS_TOLD}"
            sentences.append(f"A difference of this size and spread takes {needed} pairs to show.")
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
            sign = 1 if value > 0 else -1
            by = in_units(sign * value, self.digits, self.measure)
            return (
                f"{self.arm} is {self.verdict} than {self.baseline} by {by} {self.measure.noun}"
                f"{self._interval(sign)} {self._support()}."
            )
        claim = f"It is undecided whether {self.arm} differs from {self.baseline}"
        if self.verdict == "equivalent":
            claim = (
                f"{self.arm} is equivalent to {self.baseline} within "
                f"{margin_in_words(self.margin, self.measure)} {self.measure.noun}"
            )
        told = in_units(value, self.digits, self.measure, "+")
        return f"{claim}: {told} {self.measure.noun}{self._interval(1)} {self._support()}."

    def _interval(self, sign: int) -> str:
        if self.difference.interval is None:
            return ""
        low, high = sorted(sign * end for end in self.difference.interval)
        low, high = (in_units(end, self.digits, self.measure) for end in (low, high))
        return f" [{low}, {high}]"

    def _support(self) -> str:
        support = _counted(self.difference.count, "paired seed")
        if len(self.pairs) > 1:
            support = f"{_counted(self.difference.count, 'pair')} over {len(self.pairs)} tasks"
        if self.difference.interval is not None and not self.tied:
            over = (
                f" corrected for {self.comparisons} pairs of arms" if self.comparisons > 1 else ""
            )
            support += f"; {self.p_in_words}{over}"
        return f"({support})"


def decide(
    interval: tuple[float, float] | None, adjusted_p: float, margin: float, level: float
) -> Verdict:
    """The verdict; see `Comparison` for the rule."""
    if interval is None:
        return "undecided"
    low, high = interval
    if -margin < low and high < margin:
        return "equivalent"
    if adjusted_p <= level:
        return "better" if low + high > 0 else "worse"
    return "undecided"


def digits_beside(told: Mapping[float, Iterable[float]], measure: Measure) -> int:
    """How many decimals tell on which side of others some differences lie, 2 at least of points.

    Args:
        told: Number -> those that it must not be taken for.
        measure: What they are differences of.
    """
    least, most = digits_of(told, measure)

    def side(value: float, digits: int, other: float) -> int:
        rounded = round(measure.factor * value, digits)
        limit = round(measure.factor * other, most)
        return (rounded > limit) - (rounded < limit)

    return next(
        digits
        for digits in range(least, most + 1)
        if all(
            side(value, digits, other) == side(value, most, other)
            for value, others in told.items()
            for other in others
        )
    )


def margin_in_words(margin: float, measure: Measure = SHARE) -> str:
    """0.005 -> "0.50", 0.00125 -> "0.125", in percentage points; as it is of what is no share."""
    if not measure.share:
        return f"{margin:g}"
    rounded = in_units(margin, 2, measure)
    return rounded if math.isclose(float(rounded), 100 * margin) else f"{100 * margin:g}"


def _p(p: float, level: float) -> str:
    """Two digits, or as many as tell on which side of the level it lies."""
    if p < 0.001 <= level:
        return "p < 0.001"
    digits = 2
    while (float(f"{p:.{digits}g}") <= level) != (p <= level):
        digits += 1
    return f"p = {p:.{digits}g}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
