"""The table of verdicts for papers and for other programs."""

from typing import Any

import polars as pl

from ..compare.arm import short_names
from ..compare.export import frame
from ..compare.summary import ArmSummary, Summary
from ..inference.estimates import Estimate
from . import words

LEFT = ("task", "arm", "verdict")
"""Columns of `verdict_words` that hold words."""


def verdict_numbers(summary: Summary) -> pl.DataFrame:
    """Returns one row an arm, best first, of full precision; percentages are shares.

    Columns: `arm`, `variant`, one for each factor by its path, `runs`, `diverged`, the metric after
    `test_` with the ends of its interval, `baseline`, `difference` likewise, `p` (adjusted for all
    comparisons), `verdict`, which that p decides, `exact_sign_flip_p_not_corrected`, which decides
    nothing, and one for each tuned value by its path. With several tasks `task` stands before them,
    empty for all of them together.
    """
    several = len(summary.tasks) > 0
    rows = [
        ({"task": task} if several else {}) | _numbers(arm, of_task)
        for task, of_task in {"": summary, **summary.tasks}.items()
        for arm in sorted(of_task.arms, key=words.by_rank(of_task))
    ]
    return frame(rows)


def verdict_words(summary: Summary) -> pl.DataFrame:
    """Returns one row an arm, best first, rounded and with intervals, as papers print them."""
    tasks = {"": summary, **summary.tasks}
    ranked = [
        (task, of_task, arm)
        for task, of_task in tasks.items()
        for arm in sorted(of_task.arms, key=words.by_rank(of_task))
    ]
    columns: dict[str, list[str]] = {}
    if summary.tasks:
        columns["task"] = [task or "all together" for task, *_ in ranked]
    columns["arm"] = [arm.name for *_, arm in ranked]
    measure = summary.measure
    columns[measure.heading("test")] = [words.estimated(arm.mean, measure) for *_, arm in ranked]
    columns[f"difference to {summary.baseline}, {measure.noun}"] = [
        words.difference_with_interval(arm.comparison) if arm.comparison else ""
        for *_, arm in ranked
    ]
    columns["p"] = [_p(arm) for *_, arm in ranked]
    columns["verdict"] = [verdict(arm, of_task) for _, of_task, arm in ranked]
    paths = dict.fromkeys(path for *_, arm in ranked for path in arm.values)
    for path, name in short_names(paths).items():
        columns[name] = [
            words.tuned_value(arm.values[path]) if path in arm.values else "" for *_, arm in ranked
        ]
    return pl.DataFrame([pl.Series(name, cells, pl.String) for name, cells in columns.items()])


def verdict(arm: ArmSummary, summary: Summary) -> str:
    """The verdict on an arm in a word; what it is where there is none."""
    if arm.comparison:
        return arm.comparison.verdict
    return "baseline" if arm.name == summary.baselines[arm.name] else ""


def _numbers(arm: ArmSummary, summary: Summary) -> dict[str, Any]:
    compared = arm.comparison
    return {
        "arm": arm.name,
        "variant": arm.variant,
        **arm.levels,
        "runs": arm.runs,
        "diverged": len(arm.diverged),
        **_ends(f"test_{summary.measure.name}", arm.mean),
        "baseline": summary.baselines[arm.name],
        **_ends("difference", compared.difference if compared else None),
        "p": compared.adjusted_p if compared else None,
        "verdict": verdict(arm, summary),
        "exact_sign_flip_p_not_corrected": compared.sign_flip_p if compared else None,
        **arm.values,
    }


def _ends(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    low, high = (estimate.interval if estimate else None) or (None, None)
    return {name: estimate.value if estimate else None, f"{name}_low": low, f"{name}_high": high}


def _p(arm: ArmSummary) -> str:
    if arm.comparison is None:
        return ""
    return arm.comparison.p_in_words.removeprefix("p ").removeprefix("= ")
