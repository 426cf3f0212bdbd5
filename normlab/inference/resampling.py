"""Bootstrap resamples, and the percentiles of them that make an honest interval."""

import numpy as np
from scipy.special import ndtr, stdtrit

from .scores import Floats

RESAMPLES = 9_999


def resample_weights(draw: np.random.Generator, count: int) -> Floats:
    """One resample a row: the share that each of `count` runs has in it."""
    drawn = draw.integers(0, count, (RESAMPLES, count)) + count * np.arange(RESAMPLES)[:, None]
    times = np.bincount(drawn.ravel(), minlength=RESAMPLES * count)
    return times.reshape(RESAMPLES, count) / count


def expanded_tail(freedom: float, expansion: float, confidence: float) -> float:
    """The share of resamples to leave out at each end of a percentile interval.

    Plain percentiles leave out (1 - confidence) / 2, as if the spread of a resample were that of
    the truth, and known. A resample of n runs has sqrt((n - 1) / n) of it, and it is known no
    better than to Student's t (Hesterberg 2015, "What Teachers Should Know About the Bootstrap").

    Args:
        freedom: Degrees of freedom of the spread.
        expansion: The standard error over that of a resample: sqrt(n / (n - 1)) for n runs.
        confidence: Nominal share of the intervals that hold the true value.
    """
    return float(ndtr(-stdtrit(freedom, (1 + confidence) / 2) * expansion))
