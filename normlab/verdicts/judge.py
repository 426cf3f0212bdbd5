"""What measurements say of a rule's predictions, and these of its claim."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import UserError, nearest
from ..inference.estimates import student_interval
from ..inference.power import difference_for_power, pairs_to_decide
from .measures import Scores
from .rule import Prediction, Rule

Outcome = Literal["supported", "refuted", "undecided"]
Interval = tuple[float, float]
MOST_SEEDS = 1000  # that anyone would run


@dataclass(frozen=True)
class Judged:
    """A prediction beside what was measured.

    Attributes:
        prediction: The prediction.
        mean: Mean of the contrast over the seeds; with `log` the ratio that it means.
        interval: Its interval, likewise; None where it has none.
        pairs: How many seeds all arms of the contrast have.
        could_show: The smallest difference from the threshold, likewise, that the design could show
            in four of five studies, by the deviation that it reckons with; None where it says none.
        outcome: What follows.
        would_tell: Of an undecided prediction, how many seeds would decide four of five studies,
            were mean and spread those that were measured; None of a decided one, and where that
            is more than `MOST_SEEDS`.
    """

    prediction: Prediction
    mean: float
    interval: Interval | None
    pairs: int
    could_show: float | None
    outcome: Outcome
    would_tell: int | None


@dataclass(frozen=True)
class Verdict:
    """What a program says of a claim.

    Attributes:
        word: The verdict.
        predictions: Each prediction judged.
    """

    word: Literal["supported", "refuted", "mixed", "undecided"]
    predictions: tuple[Judged, ...]


def judge(rule: Rule, scores: Scores) -> Verdict:
    """Judges a claim; `Rule` says how.

    Args:
        rule: The rule.
        scores: What was measured.

    Raises:
        UserError: The rule names arms that were not measured.
    """
    share = rule.level / len(rule.predictions)
    judged = tuple(_judged(it, scores[it.measure], share) for it in rule.predictions)
    outcomes = {it.outcome for it in judged}
    if outcomes == {"supported"}:
        return Verdict("supported", judged)
    if {"supported", "refuted"} <= outcomes:
        return Verdict("mixed", judged)
    return Verdict("refuted" if "refuted" in outcomes else "undecided", judged)


def planned(rule: Rule, scores: Scores, seeds: int) -> tuple[tuple[float, float | None], ...]:
    """Returns of each prediction what a pilot says of a design, and nothing of its outcome.

    Args:
        rule: The rule.
        scores: What the pilot measured.
        seeds: How many the design has.

    Returns:
        The deviation of the contrast over the seeds of the pilot, for `Prediction.pilot`: NaN where
        the pilot has fewer than two seeds, or a value that is not finite. And what the design could
        show by it, as `Judged.could_show`.
    """
    share = rule.level / len(rule.predictions)
    found = []
    for it in rule.predictions:
        values = _contrasts(it, scores[it.measure])
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        could_show = None
        if spread > 0 and seeds > 1:
            could_show = difference_for_power(seeds, spread, share)
            could_show = math.exp(could_show) if it.log else could_show
        found.append((spread, could_show))
    return tuple(found)


def _contrasts(prediction: Prediction, by_arm: Mapping[str, Mapping[int, float]]) -> np.ndarray:
    """The contrast of each seed that all of its arms have."""
    for arm in prediction.contrast:
        if arm not in by_arm:
            told = f"{prediction.measure}: there is no arm {arm!r}{nearest(arm, by_arm)}"
            raise UserError(told)
    seeds = sorted(set.intersection(*({*by_arm[arm]} for arm in prediction.contrast)))
    return np.array([_contrast(prediction, by_arm, seed) for seed in seeds])


def _judged(
    prediction: Prediction, by_arm: Mapping[str, Mapping[int, float]], level: float
) -> Judged:
    values = _contrasts(prediction, by_arm)
    finite = len(values) > 0 and bool(np.all(np.isfinite(values)))
    mean = float(np.mean(values)) if finite else math.nan
    interval = student_interval([values], confidence=1 - level) if finite else None
    outcome: Outcome = "undecided"
    if interval is not None:
        low, high = _bounds(prediction)
        if low < interval[0] and interval[1] < high:
            outcome = "supported"
        elif interval[1] < low or high < interval[0]:
            outcome = "refuted"
    would_tell = None
    if outcome == "undecided" and interval is not None:
        spread = float(np.std(values, ddof=1))
        would_tell = pairs_to_decide(mean, _bounds(prediction), spread, level, MOST_SEEDS)
    could_show = None
    if prediction.pilot is not None and len(values) > 1:
        could_show = difference_for_power(len(values), prediction.pilot, level)
    if prediction.log:
        mean = math.exp(mean)
        interval = interval and (math.exp(interval[0]), math.exp(interval[1]))
        could_show = could_show and math.exp(could_show)
    return Judged(prediction, mean, interval, len(values), could_show, outcome, would_tell)


def _contrast(
    prediction: Prediction, by_arm: Mapping[str, Mapping[int, float]], seed: int
) -> float:
    def of_arm(arm: str) -> float:
        value = by_arm[arm][seed]
        if not prediction.log:
            return value
        return math.log(value) if value > 0 else math.nan

    return sum(it * of_arm(arm) for arm, it in prediction.contrast.items())


def _bounds(prediction: Prediction) -> Interval:
    """Between what the prediction holds, on the scale of the contrast."""
    convert = math.log if prediction.log else float
    if prediction.above is not None:
        return convert(prediction.above), math.inf
    if prediction.below is not None:
        return -math.inf, convert(prediction.below)
    assert prediction.within is not None
    return -convert(prediction.within), convert(prediction.within)
