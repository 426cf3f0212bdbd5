"""Ranks of arms over several tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of arms over tasks (Demsar 2006).

    They describe, and no verdict depends on them: Nemenyi's test of ranks knows a task by one
    number an arm, and would give a pair of arms a second answer.

    Attributes:
        ranks: Arm -> mean rank, best (lowest) first; ties share the mean of their ranks.
        tasks: Number of tasks.
    """

    ranks: dict[str, float]
    tasks: int


def rank(scores: Mapping[str, Sequence[float]]) -> Ranking:
    """Ranks arms on each task and averages the ranks.

    Args:
        scores: Arm -> one score for each task, say the mean over its runs; higher is better.

    Raises:
        ValueError: There are fewer than two arms or tasks, or an arm lacks a task.
    """
    names = list(scores)
    lengths = {len(it) for it in scores.values()}
    if len(names) < 2 or len(lengths) != 1 or min(lengths) < 2:
        raise ValueError(
            f"{len(names)} arms with {sorted(lengths)} tasks; ranks need at least two arms, and "
            "the scores of each on the same tasks, two at least"
        )
    table = np.array([scores[name] for name in names], dtype=np.float64)
    means = np.mean([_ranks(of_task) for of_task in table.T], axis=0)
    order = sorted(range(len(names)), key=means.__getitem__)
    return Ranking({names[i]: float(means[i]) for i in order}, table.shape[1])


def _ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each score, the highest first; ties share the mean of theirs."""
    _, place, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
