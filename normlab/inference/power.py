"""How many pairs show a difference, for the plan of a study and of the next one."""

import math
from functools import lru_cache

from scipy.special import nctdtr, nctdtrinc, stdtrit

FEWEST_PAIRS = 3
"""Fewer pairs decide nothing: two have a spread with one degree of freedom."""

POWER = 0.8
CLEAR = 2.0  # the difference a study should be able to show, in deviations of its pairs
MOST_PAIRS = 100_000


def pairs_for_power(
    difference: float, deviation: float, level: float, comparisons: int = 1, power: float = POWER
) -> float:
    """How many pairs show a difference of this size and spread.

    Of the paired t-test with the level divided by the comparisons, which is the first step of
    Shaffer's correction; at least `FEWEST_PAIRS`.

    Args:
        difference: True mean of the paired differences.
        deviation: Their true standard deviation.
        level: Two-sided level of significance.
        comparisons: Number of comparisons that share the level.
        power: Probability to show the difference.

    Returns:
        The number of pairs; infinite for a difference of 0, and beyond 100 000 pairs.
    """
    if difference == 0 or not math.isfinite(deviation):
        return math.inf
    if deviation == 0:
        return float(FEWEST_PAIRS)
    size = abs(difference) / deviation

    def reaches(pairs: int) -> bool:
        return 1 - _missed(size, pairs, level / comparisons) >= power

    low, high = FEWEST_PAIRS - 1, FEWEST_PAIRS  # the higher one is doubled until it reaches
    while not reaches(high):
        low, high = high, 2 * high
        if low >= MOST_PAIRS:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return float(high)


def pairs_to_decide(
    mean: float, bounds: tuple[float, float], deviation: float, level: float, most: int
) -> int | None:
    """How many pairs show in four of five studies on which side of two bounds a mean lies.

    A mean between the bounds is shown to lie there where the interval lies wholly between them,
    which fails on either side: its probability is that of the one plus that of the other less 1.

    Args:
        mean: The true mean.
        bounds: The lower and the upper one; infinite for none.
        deviation: True standard deviation of a value.
        level: One less the confidence of the interval.
        most: Beyond so many it is None.
    """
    if deviation == 0:
        return None if mean in bounds else FEWEST_PAIRS
    low, high = bounds
    crossed = bounds if low < mean < high else (low,) if mean <= low else (high,)
    sizes = [abs(mean - bound) / deviation for bound in crossed if math.isfinite(bound)]
    return next(
        (
            pairs
            for pairs in range(FEWEST_PAIRS, most + 1)
            if 1 - sum(_missed(size, pairs, level) for size in sizes) >= POWER
        ),
        None,
    )


def _missed(size: float, pairs: int, level: float) -> float:
    """The probability that a mean of `size` deviations is not shown to be above 0.

    The far side's tail is left out: less than half the level, and nothing where this is near 0.2.
    """
    threshold = float(stdtrit(pairs - 1, 1 - level / 2))
    return float(nctdtr(pairs - 1, size * math.sqrt(pairs), threshold))


def difference_for_power(
    pairs: int, deviation: float, level: float, comparisons: int = 1, power: float = POWER
) -> float:
    """The smallest true difference that so many pairs show with a probability.

    The inverse of `pairs_for_power`; infinite for fewer than `FEWEST_PAIRS`.

    Args:
        pairs: Number of pairs.
        deviation: True standard deviation of the paired differences.
        level: Two-sided level of significance.
        comparisons: Number of comparisons that share the level.
        power: Probability to show the difference.
    """
    if pairs < FEWEST_PAIRS:
        return math.inf
    threshold = float(stdtrit(pairs - 1, 1 - level / comparisons / 2))
    # Noncentral t has the probability `1 - power` below the threshold at this noncentrality.
    return float(nctdtrinc(pairs - 1, 1 - power, threshold)) / math.sqrt(pairs) * deviation


@lru_cache
def enough_pairs(level: float, comparisons: int) -> int:
    """How many pairs a study should have: the one answer to "how many seeds".

    So many show a difference of twice the standard deviation of the paired differences with
    probability 0.8, see `pairs_for_power`.

    Args:
        level: Two-sided level of significance.
        comparisons: Number of pairs of arms that are compared.

    Raises:
        ValueError: The level is not above 0 and below 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}; expected a probability above 0 and below 1, as 0.05")
    return int(pairs_for_power(CLEAR, 1.0, level, max(comparisons, 1)))


def smallest_shown(pairs: int, level: float, comparisons: int) -> float:
    """The smallest mean difference that so many pairs can show, in their standard deviations.

    Where no other of the comparisons is shown; infinite for fewer than `FEWEST_PAIRS`.
    """
    if pairs < FEWEST_PAIRS:
        return math.inf
    return float(stdtrit(pairs - 1, 1 - level / max(comparisons, 1) / 2)) / math.sqrt(pairs)


def too_few(seeds: int, level: float, comparisons: int) -> str:
    """What too few seeds can show and how many would do, in a sentence; empty for enough.

    Args:
        seeds: Number of seeds that all arms have.
        level: Two-sided level of significance.
        comparisons: Number of pairs of arms that are compared.
    """
    enough = enough_pairs(level, comparisons)
    if seeds >= enough or not comparisons:
        return ""
    shown = f"With {seeds} seed{'s' * (seeds != 1)} no difference can be shown"
    if seeds >= FEWEST_PAIRS:
        # Once one pair is shown, the next take less.
        which = f"the clearest of {comparisons} differences" if comparisons > 1 else "a difference"
        shown = (
            f"With {seeds} seeds {which} is shown only where its mean is at least "
            f"{smallest_shown(seeds, level, comparisons):.1f} times its standard deviation over "
            "the seeds"
        )
    return (
        f"{shown}. Take {enough}: with these a true difference of {CLEAR:g} standard deviations "
        "is shown in 4 of 5 studies."
    )
