"""Exact tests of paired differences, and the number of pairs that they need."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy import stats
from scipy.special import stdtrit

from .scores import Floats, Tasks, checked

MOST_ENUMERATED = 20
RESAMPLES = 99_999
MOST_ENUMERATED_JOINTLY = 15
JOINT_RESAMPLES = 20_000
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


def joint_sign_flip_p(
    differences: Mapping[Key, Sequence[Mapping[int, float]]], *, seed: int = 0
) -> dict[Key, float]:
    """P-values of many comparisons of the same runs, adjusted for all of them together.

    Each way to flip signs flips those of all comparisons at a seed at once, so that it keeps how
    they depend on each other: differences of all pairs of arms depend so strongly that correcting
    as if they did not would leave little to find. By steps, largest statistic first, the p-value is
    the share of flips in which the largest statistic of those not yet done is at least that of the
    one at hand (Westfall and Young 1993, Romano and Wolf 2005). The chance of any false finding
    keeps the level whichever hypotheses hold, so that a comparison may be chosen after the fact, as
    those of the arm that came out best. It rests on differences whose joint distribution is the
    same after a change of all signs; of interchangeable arms that holds for each pair exactly, for
    all together nearly.

    The statistic is the absolute mean over tasks of the mean difference, over the root of the sum
    of squares, which no flip changes: arms with other spreads weigh alike.

    Args:
        differences: Comparison -> for each task seed -> paired difference, finite. Not all
            comparisons need have all seeds.
        seed: Of the random flips, where there are too many to count.

    Returns:
        The adjusted p-values. Up to 15 seeds, all tasks together, the smallest possible is that of
        a single sign-flip test, however many the comparisons.
    """
    if not differences:
        return {}
    rows = {
        place: row
        for row, place in enumerate(
            dict.fromkeys(
                (task, run)
                for tasks in differences.values()
                for task, runs in enumerate(tasks)
                for run in runs
            )
        )
    }
    terms = np.zeros((len(rows), len(differences)))
    for column, tasks in enumerate(differences.values()):
        for task, runs in enumerate(tasks):
            for run, difference in runs.items():
                terms[rows[task, run], column] = difference / len(runs)
    lengths = np.linalg.norm(terms, axis=0)
    terms /= np.where(lengths > 0, lengths, 1)
    observed = np.abs(np.sum(terms, axis=0))
    steps = np.argsort(-observed, kind="stable")
    terms, observed = terms[:, steps], observed[steps]
    extreme, flips = np.zeros(len(observed)), 0
    for signs in _joint_signs(len(rows), seed):
        statistics = np.abs(signs @ terms)
        largest = np.maximum.accumulate(statistics[:, ::-1], axis=1)[:, ::-1]
        extreme += np.count_nonzero(largest >= observed - 1e-12, axis=0)
        flips += len(signs)
    adjusted = np.maximum.accumulate(extreme / flips)
    names = list(differences)
    found = {names[step]: float(p) for step, p in zip(steps, adjusted, strict=True)}
    return {name: found[name] for name in names}


def _joint_signs(count: int, seed: int) -> Iterator[Floats]:
    """All ways to flip signs but the last, since flipping all changes no sum; or random ones."""
    rows = 2_000  # at a time, for the sake of memory
    if count <= MOST_ENUMERATED_JOINTLY:
        ways = np.arange(2 ** (count - 1))
        for start in range(0, len(ways), rows):
            bits = (ways[start : start + rows, None] >> np.arange(count)) & 1
            yield 1.0 - 2.0 * bits
        return
    draw = np.random.default_rng(seed)
    yield np.ones((1, count))
    for _ in range(JOINT_RESAMPLES // rows):
        yield _random_signs(draw, rows, count)


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
