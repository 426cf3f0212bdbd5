"""Scores of runs, task by task, and what one arm's are above another's."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Tasks = Sequence[Sequence[float] | NDArray[np.floating]]
"""The scores of one arm: for each task (data set) one score a run, higher being better. Tasks may
have different numbers of runs."""


def checked(tasks: Tasks) -> list[Floats]:
    """The scores as one float64 array a task.

    Raises:
        ValueError: There is no task, a task has no run, or a score is NaN.
    """
    arrays = [np.asarray(task, dtype=np.float64) for task in tasks]
    if not arrays:
        raise ValueError("scores of no task; give one array of scores for each task")
    for index, array in enumerate(arrays):
        if array.ndim != 1 or array.size == 0:
            raise ValueError(
                f"task {index} has scores of shape {array.shape}; expected one score for each run, "
                "and at least one run"
            )
        if np.isnan(array).any():
            raise ValueError(
                f"task {index} has a score that is not a number; give a diverged run the worst "
                "score (0 of a share, minus infinity else)"
            )
    return arrays


def paired_differences(tasks: Tasks, others: Tasks) -> list[Floats]:
    """What one arm's scores are above another's, pair by pair.

    Args:
        tasks: Scores of the arm.
        others: Scores of the other arm, the same tasks and seeds in the same order.

    Returns:
        The differences of each task. Two runs that are infinitely bad alike differ by 0.

    Raises:
        ValueError: The arms have different numbers of tasks or of runs; see also `checked`.
    """
    ours, theirs = checked(tasks), checked(others)
    counts, other_counts = [len(it) for it in ours], [len(it) for it in theirs]
    if counts != other_counts:
        raise ValueError(
            f"runs in each task: {counts} and {other_counts}; pairs need equal numbers, so keep "
            "only the seeds that both arms have"
        )
    with np.errstate(invalid="ignore"):
        return [np.where(a == b, 0.0, a - b) for a, b in zip(ours, theirs, strict=True)]
