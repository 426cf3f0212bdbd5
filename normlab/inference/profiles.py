"""Performance profiles: the share of runs above each score."""

from dataclasses import dataclass

import numpy as np

from .estimates import CONFIDENCE
from .resampling import resample_weights
from .scores import Floats, Tasks, checked


@dataclass(frozen=True)
class Profile:
    """A performance profile (Agarwal et al. 2021).

    Attributes:
        thresholds: Scores tau, rising.
        share: Share of the runs above each tau, the mean over tasks.
        low: Lower end of the pointwise band.
        high: Upper end of the pointwise band.
    """

    thresholds: Floats
    share: Floats
    low: Floats
    high: Floats


def performance_profile(
    tasks: Tasks, thresholds: Floats, *, confidence: float = CONFIDENCE, seed: int = 0
) -> Profile:
    """The share of runs above each threshold, with a bootstrap band stratified by task.

    The band holds pointwise, not for the whole curve. It has no width where all runs of every
    task lie on one side.

    Raises:
        ValueError: See `checked`.
    """
    above = [(it[:, None] > thresholds).astype(np.float64) for it in checked(tasks)]
    draw = np.random.default_rng(seed)
    drawn = np.mean([resample_weights(draw, len(it)) @ it for it in above], axis=0)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    share = np.mean([np.mean(it, axis=0) for it in above], axis=0)
    return Profile(np.asarray(thresholds, dtype=np.float64), share, low, high)
