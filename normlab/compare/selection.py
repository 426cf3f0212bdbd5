"""Which runs of a study count, by the tuned values that win."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..inference.estimates import Estimate, estimate
from .outcome import accuracy_on_validation, loss_on_validation
from .store import Result, StoreError


@dataclass(frozen=True)
class Trial:
    """One point of an arm's search space, over its tuning seeds.

    Attributes:
        values: Dotted path -> value tried.
        accuracy: Validation accuracy after the last epoch; a diverged run counts as 0.
        loss: Mean validation loss after the last epoch; infinite when a run diverged.
        diverged: How many of the runs diverged.
    """

    values: dict[str, Any]
    accuracy: Estimate
    loss: float
    diverged: int


def trials(results: Iterable[Result], arm: str) -> list[Trial]:
    """All points of the search space that an arm was tuned on, best first.

    Best is the highest mean validation accuracy after the last epoch, then the lowest mean
    validation loss, then the smallest values.

    Args:
        results: Those of one task, for which the arm is tuned by itself.
        arm: Name of the arm.

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
            estimate([[accuracy_on_validation(run) for run in runs]]).of_shares,
            fmean(loss_on_validation(run) for run in runs),
            sum(run.diverged for run in runs),
        )
        for runs in map(_by_seed, points.values())
    ]
    return sorted(tried, key=lambda it: (-it.accuracy.value, it.loss, _order(it.values)))


def best_values(results: Iterable[Result], arm: str) -> dict[str, Any]:
    """The tuned values with which an arm's final runs are made; empty without tuning runs.

    See `trials` for the arguments, what is best and what is an error.
    """
    tried = trials(results, arm)
    return tried[0].values if tried else {}


def final_runs(results: Sequence[Result], arm: str) -> list[Result]:
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
            best = best_values(of_task, arm)
            runs = [run for run in runs if run.values == best]
        counted += runs
    return _by_seed(counted)


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
