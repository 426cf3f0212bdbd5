"""Ranks of arms over several tasks, and which of them cannot be told apart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of arms over tasks (Demsar 2006).

    Attributes:
        ranks: Arm -> mean rank, best (lowest) first; ties share the mean of their ranks.
        critical_difference: Mean ranks of arms that differ by less are not told apart by Nemenyi's
            test.
        groups: The largest sets of neighbours in rank that are not told apart, two arms at least.
        p: Of Friedman's test that all arms are alike, which is an approximation that wants ten
            tasks or so; None for two arms, for which it is not made.
        tasks: Number of tasks.
    """

    ranks: dict[str, float]
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]
    p: float | None
    tasks: int


def rank(scores: Mapping[str, Sequence[float]], *, level: float = 0.05) -> Ranking:
    """Ranks arms on each task and averages the ranks.

    Args:
        scores: Arm -> one score for each task, say the mean over its runs; higher is better.
        level: Of Nemenyi's test.

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
    means = np.mean(stats.rankdata(-table, axis=0), axis=1)
    arms, tasks = table.shape
    # The studentized range belongs to differences of two means, each with a variance of half.
    quantile = float(stats.studentized_range.isf(level, arms, np.inf)) / math.sqrt(2)
    critical = quantile * math.sqrt(arms * (arms + 1) / (6 * tasks))
    order = sorted(range(arms), key=means.__getitem__)
    ranks = {names[i]: float(means[i]) for i in order}
    p = None
    if arms > 2:
        # Arms that tie on every task have no ranks to test.
        p = float(stats.friedmanchisquare(*table).pvalue) if np.ptp(table, axis=0).any() else 1.0
    return Ranking(ranks, critical, _groups(ranks, critical), p, tasks)


def _groups(ranks: Mapping[str, float], critical: float) -> tuple[tuple[str, ...], ...]:
    names = list(ranks)
    groups: list[tuple[str, ...]] = []
    covered = 0
    for start, name in enumerate(names):
        end = start
        while end < len(names) and ranks[names[end]] - ranks[name] < critical:
            end += 1
        if end - start > 1 and end > covered:
            groups.append(tuple(names[start:end]))
            covered = end
    return tuple(groups)
