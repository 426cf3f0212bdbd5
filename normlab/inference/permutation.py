"""Exact tests of paired differences by flips of their signs."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .scores import Floats, Tasks, checked

MOST_ENUMERATED = 20
RESAMPLES = 99_999
ROWS = 10_000  # flips at a time, for the sake of memory
COLUMNS = 256  # comparisons at a time, likewise


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
    return sign_flip_ps([differences], seed=seed)[0]


def sign_flip_ps(comparisons: Sequence[Tasks], *, seed: int = 0) -> list[float]:
    """The p-values of many comparisons, each by itself; see `sign_flip_p`."""
    terms = [_terms(it) for it in comparisons]
    found = [_enumerated(it) if len(it) <= MOST_ENUMERATED else math.nan for it in terms]
    by_length: dict[int, list[int]] = {}
    for place, it in enumerate(terms):
        if len(it) > MOST_ENUMERATED:
            by_length.setdefault(len(it), []).append(place)
    for length, places in by_length.items():
        for start in range(0, len(places), COLUMNS):
            part = places[start : start + COLUMNS]
            columns = np.stack([terms[place] for place in part], axis=1)
            thresholds = np.array([_threshold(terms[place]) for place in part])
            extreme = np.zeros(len(part), dtype=np.int64)
            for signs in _random_signs(length, seed):
                extreme += np.count_nonzero(np.abs(signs @ columns) >= thresholds, axis=0)
            for place, p in zip(part, (extreme + 1) / (RESAMPLES + 1), strict=True):
                found[place] = float(p)
    return found


def _terms(differences: Tasks) -> Floats:
    """What each pair adds to the statistic."""
    terms = np.concatenate([it / len(it) for it in checked(differences)])
    finite = np.isfinite(terms)
    beyond = 2 * float(np.sum(np.abs(terms[finite]))) + 1
    return np.where(finite, terms, np.sign(terms) * beyond)


def _threshold(terms: Floats) -> float:
    # Sums that are equal in exact arithmetic may differ by rounding.
    return abs(float(np.sum(terms))) - 1e-12 * float(np.sum(np.abs(terms)))


def _enumerated(terms: Floats) -> float:
    """Counts all flips: the sums of one half of the terms, looked up among those of the other."""
    threshold = _threshold(terms)
    # Flipping all signs changes no absolute sum, so the first sign can stay.
    ours, theirs = (
        _sums(it) for it in (terms[: len(terms) // 2 + 1], terms[len(terms) // 2 + 1 :])
    )
    ours = ours[: len(ours) // 2]
    theirs = np.sort(theirs)
    above = len(theirs) - np.searchsorted(theirs, threshold - ours, side="left")
    below = np.searchsorted(theirs, -threshold - ours, side="right")
    if threshold <= 0:
        return 1.0
    return float(np.sum(above + below)) / (len(ours) * len(theirs))


def _sums(terms: Floats) -> Floats:
    """Sums over all signs of the terms, those with the first term as it is first."""
    sums = np.zeros(1)
    for term in terms[::-1]:
        sums = np.concatenate([sums + term, sums - term])
    return sums


@lru_cache(maxsize=2)
def _drawn_signs(length: int, seed: int) -> tuple[NDArray[np.int8], ...]:
    draw = np.random.default_rng(seed)
    sizes = [ROWS] * (RESAMPLES // ROWS) + [RESAMPLES % ROWS]
    return tuple((2 * draw.integers(0, 2, (rows, length)) - 1).astype(np.int8) for rows in sizes)


def _random_signs(length: int, seed: int) -> Iterator[Floats]:
    for signs in _drawn_signs(length, seed):
        yield signs.astype(np.float64)
