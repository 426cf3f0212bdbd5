"""Which runs of a study count, by the tuned values that win."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..inference.estimates import CONFIDENCE, Estimate, estimate
from ..inference.measure import LOSS, Measure
from .outcome import on_validation
from .store import Result, StoreError


@dataclass(frozen=True)
class Trial:
    """One point of an arm's search space, over its tuning seeds.

    Attributes:
        values: Dotted path -> value tried.
        reached: Mean of what is selected by, on the validation split at the end; a diverged run
            counts as the worst.
        loss: Mean validation loss at the end; infinite when a run diverged.
        diverged: How many of the runs diverged.
        until: Points of their curves after which the runs were stopped early; None for whole ones.
    """

    values: dict[str, Any]
    reached: Estimate
    loss: float
    diverged: int
    until: int | None = None


def trials(results: Iterable[Result], arm: str, measure: Measure) -> list[Trial]:
    """All points of the search space that an arm was tuned on, best first.

    Best is the best mean on the validation split at the end, then the lowest mean validation loss,
    then the smallest values. Of a point with runs of several lengths the longest ones count, and
    points that went further come first.

    Args:
        results: Those of one task, for which the arm is tuned by itself.
        arm: Name of the arm.
        measure: What is selected by.

    Raises:
        StoreError: Two runs have the same values and seed.
    """
    points: dict[str, list[Result]] = {}
    for result in results:
        if result.phase == "tune" and result.arm == arm:
            points.setdefault(json.dumps(result.values, sort_keys=True), []).append(result)
    tried = [
        Trial(
            dict(runs[0].values),
            mean_of([[on_validation(run, measure) for run in runs]], measure),
            fmean(on_validation(run, LOSS) for run in runs),
            sum(run.diverged for run in runs),
            runs[0].until,
        )
        for runs in map(_by_seed, map(_furthest, points.values()))
    ]

    def order(trial: Trial) -> Any:
        far = _far(trial.until), measure.score(trial.reached.value)
        return *(-it for it in far), trial.loss, _order(trial.values)

    return sorted(tried, key=order)


def mean_of(
    values: Sequence[Sequence[float]], measure: Measure, confidence: float = CONFIDENCE
) -> Estimate:
    """Estimates a mean of what was measured, of shares with its interval within 0 and 1."""
    found = estimate(values, confidence=confidence)
    return found.of_shares if measure.share else found


def best_values(results: Iterable[Result], arm: str, measure: Measure) -> dict[str, Any]:
    """The tuned values with which an arm's final runs are made; empty without tuning runs.

    See `trials` for the arguments, what is best and what is an error.
    """
    tried = trials(results, arm, measure)
    return tried[0].values if tried else {}


def final_runs(results: Sequence[Result], arm: str, measure: Measure) -> list[Result]:
    """The final runs of an arm, by task and seed.

    A study that is run again with a wider search space leaves final runs behind whose values no
    longer win: where values differ, those that win now count.

    Raises:
        StoreError: Two runs have the same task, values and seed.
    """
    counted: list[Result] = []
    for task in dict.fromkeys(it.task for it in results):
        of_task = [it for it in results if it.task == task]
        runs = [it for it in of_task if it.arm == arm and it.phase == "final"]
        if any(run.values != runs[0].values for run in runs):
            best = best_values(of_task, arm, measure)
            runs = [run for run in runs if run.values == best]
        counted += runs
    return _by_seed(counted)


def _far(until: int | None) -> float:
    return math.inf if until is None else float(until)


def _furthest(runs: Sequence[Result]) -> list[Result]:
    furthest = max(_far(run.until) for run in runs)
    return [run for run in runs if _far(run.until) == furthest]


def _by_seed(runs: Sequence[Result]) -> list[Result]:
    for (_, seed), count in Counter((run.task, run.seed) for run in runs).items():
        if count > 1:
            raise StoreError(
                f"{runs[0].arm!r} has {count} {runs[0].phase} runs with seed {seed} "
                f"and {runs[0].values}, so they come from different configurations. Give each "
                "configuration a folder of its own, or delete the folder `runs` and run again."
            )
    return sorted(runs, key=lambda run: (run.task, run.seed))


def _order(values: Mapping[str, Any]) -> list[tuple[float, str]]:
    return [
        (float(value), "") if isinstance(value, int | float) else (math.inf, str(value))
        for _, value in sorted(values.items())
    ]
