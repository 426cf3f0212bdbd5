"""Exact tests of paired differences, and the number of pairs that they need."""

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from scipy import stats
from scipy.special import stdtrit

from .scores import Floats, Tasks, checked

MOST_ENUMERATED = 20
RESAMPLES = 99_999
POWER = 0.8
MOST_PAIRS = 100_000

Key = TypeVar("Key", bound=Hashable)


def sign_flip_p(differences: Tasks, *, seed: int = 0) -> float:
    """Two-sided p-value of the hypothesis that the arms of each pair are interchangeable.

    The statistic is the absolute mean over tasks of the mean difference. Up to 20 pairs all
    2^pairs ways to flip signs are counted; of more, 99 999 random ones and the observed one.

    An infinite difference counts as larger than all finite ones together.

    Args:
        differences: The paired differences of each task.
        seed: Of the random flips.

    Returns:
        The share of flips whose statistic is at least the observed one.
    """
    terms = np.concatenate([it / len(it) for it in checked(differences)])
    finite = np.isfinite(terms)
    beyond = 2 * float(np.sum(np.abs(terms[finite]))) + 1
    terms = np.where(finite, terms, np.sign(terms) * beyond)
    # Sums that are equal in exact arithmetic may differ by rounding.
    threshold = abs(float(np.sum(terms))) - 1e-12 * float(np.sum(np.abs(terms)))
    if len(terms) <= MOST_ENUMERATED:
        # Flipping all signs changes no absolute sum, so the first sign can stay.
        sums = terms[:1]
        for term in terms[1:]:
            sums = np.concatenate([sums + term, sums - term])
        return float(np.mean(np.abs(sums) >= threshold))
    draw = np.random.default_rng(seed)
    extreme = sum(
        int(np.count_nonzero(np.abs(_random_signs(draw, rows, len(terms)) @ terms) >= threshold))
        for rows in [10_000] * (RESAMPLES // 10_000) + [RESAMPLES % 10_000]
    )
    return (extreme + 1) / (RESAMPLES + 1)


def _random_signs(draw: np.random.Generator, rows: int, columns: int) -> Floats:
    return 2.0 * draw.integers(0, 2, (rows, columns)).astype(np.float64) - 1


def smallest_p(pairs: int, comparisons: int = 1) -> float:
    """The smallest p-value that a sign-flip test can give, whatever the data.

    Args:
        pairs: Number of pairs, all tasks together.
        comparisons: Holm's correction is for so many comparisons of so many pairs each.
    """
    smallest = 2.0 ** (1 - pairs) if pairs <= MOST_ENUMERATED else 1 / (RESAMPLES + 1)
    return min(1.0, comparisons * smallest)


def fewest_pairs(level: float, comparisons: int = 1) -> int:
    """The smallest number of pairs of which a sign-flip test can reach a level at all.

    See `smallest_p`, of which this is the inverse.

    Raises:
        ValueError: The level is not above 0 and below 1, or below what random flips can show.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}; expected a probability above 0 and below 1, as 0.05")
    for pairs in range(1, MOST_ENUMERATED + 1):
        if smallest_p(pairs, comparisons) <= level:
            return pairs
    raise ValueError(
        f"level {level} over {comparisons} comparisons cannot be reached by {MOST_ENUMERATED} "
        "pairs; give a level of at least 1e-5 for each comparison"
    )


def pairs_for_power(
    difference: float, deviation: float, level: float, comparisons: int = 1, power: float = POWER
) -> float:
    """How many pairs show a difference of this size and spread, as a plan for the next study.

    Of the paired t-test with the level divided by the comparisons, and at least `fewest_pairs`.

    Args:
        difference: True mean of the paired differences.
        deviation: Their true standard deviation.
        level: Two-sided level of significance.
        comparisons: Number of comparisons that share the level.
        power: Probability to show the difference.

    Returns:
        The number of pairs; infinite for a difference of 0, and beyond 100 000 pairs.
    """
    fewest = fewest_pairs(level, comparisons)
    if difference == 0 or not math.isfinite(deviation):
        return math.inf
    if deviation == 0:
        return float(fewest)
    size = abs(difference) / deviation

    def reaches(pairs: int) -> bool:
        threshold = float(stdtrit(pairs - 1, 1 - level / comparisons / 2))
        shift = size * math.sqrt(pairs)
        # The far side's tail adds less than half the level, and nothing where power is near 0.8.
        return float(stats.nct.sf(threshold, pairs - 1, shift)) >= power

    low, high = 1, max(fewest, 2)  # one pair never reaches, high is doubled until it does
    while not reaches(high):
        low, high = high, 2 * high
        if low >= MOST_PAIRS:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return float(max(high, fewest))


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """P-values adjusted so that the chance of any false finding keeps the level (Holm 1979)."""
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
