"""What a page shows at a time: one task, all tasks of a study, or what several studies share."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..compare.selection import final_runs
from ..compare.store import Result
from ..compare.summary import ArmSummary, Summary, summarize
from .study import Study
from .style import Look, looks


@dataclass(frozen=True)
class View:
    """One of the things that the reader of a page can choose to see.

    Attributes:
        title: What it is called where there are several.
        results: Its runs.
        summary: What they mean.
        tuned: Dotted path -> values tried; empty when nothing is tuned.
        drawn: Which of these paths were drawn from a range.
        looks: Arm's name -> how it is drawn; the arms of all views of the page.
    """

    title: str
    results: tuple[Result, ...]
    summary: Summary
    tuned: dict[str, list[Any]]
    drawn: frozenset[str]
    looks: dict[str, Look]

    @property
    def arms(self) -> tuple[ArmSummary, ...]:
        """What its arms say."""
        return self.summary.arms

    @property
    def is_one_task(self) -> bool:
        """Whether its runs are of a single task, so that their steps and curves are alike."""
        return not self.summary.tasks

    @property
    def finals(self) -> list[Result]:
        """All final runs that count."""
        return [run for arm in self.arms for run in self.runs(arm.name)]

    @property
    def factors(self) -> dict[str, list[Any]]:
        """Dotted path -> levels, of each factor with several."""
        found: dict[str, list[Any]] = {}
        for arm in self.arms:
            for path, level in arm.levels.items():
                levels = found.setdefault(path, [])
                if level not in levels:
                    levels.append(level)
        return {path: levels for path, levels in found.items() if len(levels) > 1}

    def runs(self, arm: str) -> list[Result]:
        """The final runs of an arm, by task and seed."""
        return final_runs(self.results, arm)


def views(studies: Sequence[Study]) -> list[View]:
    """Returns all that a page about one or several studies can show, what sums up most first.

    Several studies are joined as if they were the tasks of one: over the arms that have the same
    names in all of them, if these are two at least and the baselines agree. They are judged by the
    strictest of the studies' significances and margins.
    """
    titles = _titles(studies)
    drawn = looks([arm for study in studies for arm in study.summary.arms], _baseline(studies))
    made: list[View] = []
    joined = _joined(studies, titles)
    if joined is not None:
        made.append(View("all studies together", *joined, {}, frozenset(), drawn))
    for study, title in zip(studies, titles, strict=True):
        before = f"{title}: " if len(studies) > 1 else ""
        whole = f"{before}all tasks together" if study.summary.tasks else title
        made.append(
            View(whole, study.results, study.summary, study.tuned, frozenset(study.ranges), drawn)
        )
        for task, summary in study.summary.tasks.items():
            results = tuple(it for it in study.results if it.task == task)
            made.append(
                View(before + task, results, summary, study.tuned, frozenset(study.ranges), drawn)
            )
    return made


def _titles(studies: Sequence[Study]) -> list[str]:
    names = [study.name for study in studies]
    return [
        name if names.count(name) == 1 else f"{name} ({study.folder})"
        for name, study in zip(names, studies, strict=True)
    ]


def _baseline(studies: Sequence[Study]) -> str:
    return studies[0].summary.baseline


def _joined(
    studies: Sequence[Study], titles: Sequence[str]
) -> tuple[tuple[Result, ...], Summary] | None:
    """The runs of the arms that all studies have, each study or task of it being a task."""
    if len(studies) < 2 or len({study.summary.baseline for study in studies}) > 1:
        return None
    shared = {arm.name for arm in studies[0].arms}
    for study in studies[1:]:
        shared &= {arm.name for arm in study.arms}
    baselines = studies[0].summary.baselines
    shared = {name for name in shared if baselines[name] in shared}
    if len(shared) < 2:
        return None

    def of_page(title: str, task: str) -> str:
        return f"{title}: {task}" if task else title

    results = tuple(
        run.model_copy(update={"task": of_page(title, run.task)})
        for study, title in zip(studies, titles, strict=True)
        for run in study.results
        if run.arm in shared and run.phase == "final"
    )
    arms = [
        dataclasses.replace(arm, task=of_page(title, arm.task))
        for study, title in zip(studies, titles, strict=True)
        for arm in study.arms
        if arm.name in shared
    ]
    summary = summarize(
        results,
        arms,
        _baseline(studies),
        margin=min(study.summary.margin for study in studies),
        significance=min(study.summary.significance for study in studies),
    )
    return results, summary
