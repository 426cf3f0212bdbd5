"""What a page shows at a time: one task, all tasks of a study, or what several studies share."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..compare.arm import in_words, short_names
from ..compare.paths import flatten
from ..compare.selection import final_runs
from ..compare.store import Probed, Result
from ..compare.summary import ArmSummary, Summary, summarize
from .study import Study
from .style import Look, looks
from .words import by_rank

# More arms than these nobody looks at one by one.
MOST_ARMS, BEST_SHOWN, WORST_SHOWN = 100, 40, 10
MOST_TOLD_IN_TITLE = 3  # settings that tell studies of one name apart


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
        inside: Run's id -> what probes found of it; empty without probes.
        left_out: What it does not show of a large study, in a sentence; empty if it shows all.
        left_out_of: The view with all arms, if it does not show all.
    """

    title: str
    results: tuple[Result, ...]
    summary: Summary
    tuned: dict[str, list[Any]]
    drawn: frozenset[str]
    looks: dict[str, Look]
    inside: Mapping[str, Sequence[Probed]] = field(default_factory=dict)
    left_out: str = ""
    left_out_of: "View | None" = None

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
        return self._runs.get(arm, [])

    @cached_property
    def _runs(self) -> dict[str, list[Result]]:
        by_arm: dict[str, list[Result]] = {arm.name: [] for arm in self.arms}
        for result in self.results:
            if result.arm in by_arm:
                by_arm[result.arm].append(result)
        return {
            name: final_runs(results, name, self.summary.selected_by)
            for name, results in by_arm.items()
        }

    @property
    def shown(self) -> "View":
        """This view with as many arms as a reader can look at: the best, the worst, baselines."""
        if len(self.arms) <= MOST_ARMS:
            return self
        best_first = sorted(self.arms, key=by_rank(self.summary))
        kept = {arm.name for arm in [*best_first[:BEST_SHOWN], *best_first[-WORST_SHOWN:]]}
        kept |= {self.summary.baselines[name] for name in kept}
        contests = (
            dataclasses.replace(it, arms=tuple(name for name in it.arms if name in kept))
            for it in self.summary.contests
        )
        summary = dataclasses.replace(
            self.summary,
            arms=tuple(arm for arm in self.arms if arm.name in kept),
            contests=tuple(it for it in contests if it.arms),
        )
        said = (
            f"Of {len(self.arms)} arms the table and the charts show the {BEST_SHOWN} best, the "
            f"{WORST_SHOWN} worst and the baseline; the first chart has all of them. The verdicts "
            "are over all arms, and so is the table to download."
        )
        looks = {name: look for name, look in self.looks.items() if name in kept}
        return dataclasses.replace(
            self, summary=summary, looks=looks, left_out=said, left_out_of=self
        )


def views(studies: Sequence[Study]) -> list[View]:
    """Returns all that a page about one or several studies can show, what sums up most first.

    Several studies are joined as if they were the tasks of one: over the arms that have the same
    names in all of them, if these are two at least and the baselines agree. They are judged by the
    strictest of the studies' significances and margins.
    """
    named = titles(studies)
    drawn = looks([arm for study in studies for arm in study.summary.arms], _baseline(studies))
    made: list[View] = []
    together = joined(studies)
    if together is not None:
        made.append(View("all studies together", *together, {}, frozenset(), drawn))
    for study, title in zip(studies, named, strict=True):
        before = f"{title}: " if len(studies) > 1 else ""
        whole = f"{before}all tasks together" if study.summary.tasks else title
        made.append(
            View(
                whole,
                study.results,
                study.summary,
                study.tuned,
                frozenset(study.ranges),
                drawn,
                study.inside,
            )
        )
        for task, summary in study.summary.tasks.items():
            results = tuple(it for it in study.results if it.task == task)
            made.append(
                View(
                    before + task,
                    results,
                    summary,
                    study.tuned,
                    frozenset(study.ranges),
                    drawn,
                    study.inside,
                )
            )
    return made


def titles(studies: Sequence[Study]) -> list[str]:
    """Returns the names of the studies; those of one name with what tells them apart."""
    names = [study.name for study in studies]
    told = list(names)
    for name in dict.fromkeys(names):
        alike = [place for place, it in enumerate(names) if it == name]
        if len(alike) > 1:
            apart = differences([studies[place] for place in alike], MOST_TOLD_IN_TITLE)
            if len(set(apart)) < len(apart):  # Their settings are the same.
                apart = [str(studies[place].folder) for place in alike]
            for place, words in zip(alike, apart, strict=True):
                told[place] = f"{name} ({words})"
    return told


def differences(studies: Sequence[Study], most: int) -> list[str]:
    """Returns of each study what its configuration has that is not the same in all of them.

    Args:
        studies: These.
        most: Settings to tell; the rest is counted.
    """
    everywhere = set.intersection(*({*study.config["variants"]} for study in studies))
    configs = [flatten(_told(study.config, everywhere)) for study in studies]
    paths = dict.fromkeys(path for config in configs for path in config)
    apart = [path for path in paths if len({_level(config, path) for config in configs}) > 1]
    short = short_names(apart)
    rest = [f"{len(apart) - most} more"] if len(apart) > most else []
    return [
        ", ".join([f"{short[path]}={_level(config, path)}" for path in apart[:most]] + rest)
        for config in configs
    ]


def _told(config: Mapping[str, Any], variants: set[str]) -> dict[str, Any]:
    """A configuration with the fields of the variants given, and of the others their names."""
    # Where code is found and runs are made makes no difference to what was found.
    told = {key: it for key, it in config.items() if key not in ("study", "modules", "executor")}
    more = ", ".join(name for name in config["variants"] if name not in variants)
    own = {name: it for name, it in config["variants"].items() if name in variants}
    return told | {"variants": own} | ({"variants besides": more} if more else {})


def _level(config: Mapping[str, Any], path: str) -> str:
    return in_words(config[path]) if path in config else "none"


def _baseline(studies: Sequence[Study]) -> str:
    return studies[0].summary.baseline


def joined(studies: Sequence[Study]) -> tuple[tuple[Result, ...], Summary] | None:
    """The runs of the arms that all studies have, each study or task of it being a task.

    Returns:
        The runs and what they mean; None for a single study, and where `why_apart` says why.
    """
    if len(studies) < 2 or why_apart(studies):
        return None
    shared, named = _shared(studies), titles(studies)

    def of_page(title: str, task: str) -> str:
        return f"{title}: {task}" if task else title

    results = tuple(
        run.model_copy(update={"task": of_page(title, run.task)})
        for study, title in zip(studies, named, strict=True)
        for run in study.results
        if run.arm in shared and run.phase == "final"
    )
    arms = [
        dataclasses.replace(arm, task=of_page(title, arm.task))
        for study, title in zip(studies, named, strict=True)
        for arm in study.arms
        if arm.name in shared
    ]
    summary = summarize(
        results,
        arms,
        _baseline(studies),
        measure=studies[0].summary.measure,
        margin=min(study.summary.margin for study in studies),
        significance=min(study.summary.significance for study in studies),
    )
    return results, summary


def why_apart(studies: Sequence[Study]) -> str:
    """Why several studies have nothing to be joined over, in a sentence; empty if they have."""
    baselines = list(dict.fromkeys(study.summary.baseline for study in studies))
    if len(baselines) > 1:
        return f"Each study stands by itself, since their baselines differ: {', '.join(baselines)}."
    measures = list(dict.fromkeys(study.summary.measure for study in studies))
    if len(measures) > 1:
        told = ", ".join(dict.fromkeys(it.heading() for it in measures))
        return f"Each study stands by itself, since their metrics differ: {told}."
    if len(_shared(studies)) < 2:
        return (
            "Each study stands by itself, since no two arms, one of them a baseline, have the same "
            "names in all of them."
        )
    return ""


def _shared(studies: Sequence[Study]) -> set[str]:
    """The names of the arms that all studies have, with those that they are compared with."""
    named = [{arm.name for arm in study.arms} for study in studies]
    shared = set.intersection(*named)
    baselines = studies[0].summary.baselines
    return {name for name in shared if baselines[name] in shared}
