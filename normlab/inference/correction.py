"""P-values of all pairs of arms, corrected for each other."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .scores import Floats


def multipliers(groups: Sequence[int]) -> NDArray[np.int64]:
    """How many hypotheses of equal arms can hold at each step, when all pairs are tested.

    At step i (from 0) i of the hypotheses were rejected. Of k arms that are all alike C(k, 2) hold;
    once one of them is false, the arms fall into sets of sizes k_1, k_2, ... that are alike within,
    and C(k_1, 2) + C(k_2, 2) + ... hold: with three arms and one difference found, one at most.

    Args:
        groups: Numbers of arms that are compared with each other; arms of different groups are not.

    Returns:
        For each step the largest possible number of true hypotheses that leaves room for those
        rejected (Shaffer 1986, method S1). Never more than Holm's, which is the number not yet
        rejected.
    """
    return _multipliers(tuple(sorted(groups)))


@lru_cache(maxsize=32)
def _multipliers(groups: tuple[int, ...]) -> NDArray[np.int64]:
    # Bit s of these numbers is set where s hypotheses can be true together.
    alike = [1, 1]
    for arms in range(2, max(groups, default=0) + 1):
        possible = alike[arms - 1]
        for size in range(2, arms + 1):
            possible |= alike[arms - size] << (size * (size - 1) // 2)
        alike.append(possible)
    together = 1
    for arms in groups:
        fewer, more = sorted((together, alike[arms]), key=int.bit_count)
        together = 0
        for s in _bits(fewer):
            together |= more << int(s)
    possible = _bits(together)
    total = int(possible[-1])
    left = total - np.arange(total)
    return possible[np.searchsorted(possible, left, side="right") - 1]


def _bits(number: int) -> NDArray[np.int64]:
    """Places of the bits that are set, rising."""
    octets = np.frombuffer(number.to_bytes(number.bit_length() // 8 + 1, "little"), np.uint8)
    return np.flatnonzero(np.unpackbits(octets, bitorder="little"))


def step_down(p: Floats, steps: NDArray[np.int64]) -> Floats:
    """P-values corrected by steps, smallest first.

    Args:
        p: P-values, those of a family along the last axis.
        steps: Multiplier of each step; see `multipliers`.

    Returns:
        The largest product of p-value and multiplier up to each one's step, 1 at most: the level
        at which the procedure that stops at the first p-value above level / multiplier rejects it.
    """
    order = np.argsort(p, axis=-1, kind="stable")
    rising = np.take_along_axis(p, order, axis=-1) * steps
    corrected = np.minimum(np.maximum.accumulate(rising, axis=-1), 1.0)
    found = np.empty_like(corrected)
    np.put_along_axis(found, order, corrected, axis=-1)
    return found
