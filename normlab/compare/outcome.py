"""What a run is worth in a comparison.

A metric that is absent, since the run diverged or since it overflowed, is the worst there is.
"""

import math

from ..inference.measure import Measure
from .store import Result


def on_validation(run: Result, measure: Measure) -> float:
    """What was measured on the validation split at the end; the worst for a diverged run."""
    return _or_worst(next(reversed(run.curve.validation.get(measure.name, [])), None), run, measure)


def on_test(run: Result, measure: Measure) -> float:
    """What was measured on the test split; the worst for a diverged run."""
    return _or_worst(run.test.get(measure.name) if run.test else None, run, measure)


def steps_to(run: Result, target: float, measure: Measure) -> float:
    """Steps until the first evaluation on validation that reaches a target; else infinite."""
    points = zip(run.curve.step, run.curve.validation.get(measure.name, []), strict=False)
    wanted = measure.score(target)
    reached = (step for step, it in points if it is not None and measure.score(it) >= wanted)
    return float(next(reached, math.inf))


def _or_worst(value: float | None, run: Result, measure: Measure) -> float:
    return measure.worst if value is None or run.diverged else value
