"""Bootstrap resamples as weights of runs."""

import numpy as np

from .scores import Floats

RESAMPLES = 9_999


def resample_weights(draw: np.random.Generator, count: int) -> Floats:
    """One bootstrap resample a row: the share that each of `count` runs has in it."""
    return draw.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
