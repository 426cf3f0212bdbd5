"""What the runs of a study say: estimates, comparisons with a baseline, contests, tasks."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from ..inference.budget import BudgetCurve, expected_best
from ..inference.estimates import Estimate, Statistic, estimate, interquartile_mean, mean, median
from ..inference.improvement import probability_of_improvement
from ..inference.pairs import Pairs, all_pairs
from ..inference.profiles import Profile, performance_profile
from ..inference.ranks import Ranking, rank
from ..inference.scores import Floats, Tasks
from ..inference.survival import (
    Arrivals,
    FirstToTarget,
    TimeToTarget,
    arrivals,
    first_to_target,
    time_to_target,
)
from ..inference.verdict import Comparison
from .arm import Arm, baseline_arms
from .outcome import accuracy_on_test, accuracy_on_validation, loss_on_test, steps_to
from .search import Range, at_edge
from .selection import Trial, final_runs, trials
from .store import Result

SHARE_OF_BEST = 0.95  # of the best arm's validation accuracy, as the target if none is set
PROFILE_THRESHOLDS = 101
EQUAL = 1e-9  # means of accuracies that are equal but for rounding

Scores = Mapping[str, Mapping[int, float]]
"""Task -> seed -> score."""


@dataclass(frozen=True)
class ArmSummary:
    """What the runs of one arm say, over all tasks of a summary.

    Attributes:
        name: The arm's name in the study.
        variant: The name of its variant.
        levels: Dotted path -> value of each factor.
        accuracies: Task -> seed -> accuracy on the test split; 0 for a diverged run.
        diverged: Task and seed of each final run that diverged.
        accuracy: Mean over tasks and seeds of the accuracy on the test split, its interval within
            0 and 1. This and what follows is None as long as some task has no final run.
        median: The median of the same.
        interquartile_mean: The mean of the middle half of the same.
        loss: Mean loss on the test split, infinite when a run diverged.
        values: Tuned values of the final runs, as far as they are the same on every task; before
            these exist, the best so far.
        at_edge: Dotted paths whose value lies at the edge of what was tried.
        trials: The points that were tried in tuning, best first; none over several tasks.
        budget: Expected best validation accuracy against the number of trials; None over several
            tasks and without tuning.
        seconds: Mean wall time of the final runs that finished; None without any.
        comparison: The arm against its baseline; None for the baseline, and as long as some task
            has no seed that both have.
        improvement: The probability that a run of the arm beats an independent run of its
            baseline; None where there is no comparison.
        time_to_target: Optimizer steps until the first epoch end whose validation accuracy reaches
            the target; None without a target, and over several tasks, whose steps are not alike.
        first_to_target: Which of the arm and its baseline reached the target first, by pairs.
        profile: Share of the runs above each accuracy; None on a single task.
    """

    name: str
    variant: str
    levels: dict[str, Any]
    accuracies: Scores
    diverged: tuple[tuple[str, int], ...]
    accuracy: Estimate | None
    median: Estimate | None
    interquartile_mean: Estimate | None
    loss: Estimate | None
    values: dict[str, Any]
    at_edge: tuple[str, ...]
    trials: tuple[Trial, ...]
    budget: BudgetCurve | None
    seconds: float | None
    comparison: Comparison | None = None
    improvement: Estimate | None = None
    time_to_target: TimeToTarget | None = None
    first_to_target: FirstToTarget | None = None
    profile: Profile | None = None

    @property
    def runs(self) -> int:
        """Number of final runs, diverged ones included."""
        return sum(map(len, self.accuracies.values()))

    @property
    def by_seed(self) -> dict[int, float]:
        """Seed -> mean accuracy over the tasks, where all of them have the seed."""
        tasks = list(self.accuracies.values())
        return {
            seed: fmean(task[seed] for task in tasks)
            for seed in (tasks[0] if tasks else {})
            if all(seed in task for task in tasks)
        }


@dataclass(frozen=True)
class Contest:
    """The arms at one combination of levels: all arms in a study without factors.

    Attributes:
        levels: Dotted path -> value of each factor.
        name: The levels as in the arms' names: "batch_size=16"; empty without factors.
        arms: Names of the arms.
        best: The arm with the highest mean accuracy on the test split, at equal accuracy with the
            lowest loss; None as long as no final run finished. Of unequal numbers of runs those
            seeds count that all arms have, if there are any on every task.
        first: The arms whose mean accuracy is the highest, the best one first: several where they
            tie.
        leads: Name of each other arm with final runs -> the best compared with it.
    """

    levels: dict[str, Any]
    name: str
    arms: tuple[str, ...]
    best: str | None
    first: tuple[str, ...]
    leads: dict[str, Comparison]


@dataclass(frozen=True)
class Summary:
    """What a study says so far.

    Attributes:
        arms: One summary an arm, in the order of the study.
        baseline: The variant that the others are compared with.
        baselines: Name of each arm -> that of the arm that it is compared with.
        contests: One for each combination of levels, in the order of the study.
        target_accuracy: Validation accuracy that `time_to_target` waits for; None without one, and
            over several tasks.
        target_given: Whether the study set the target. Otherwise it is 95% of the mean validation
            accuracy that the best arm ends with.
        margin: Differences within plus and minus this are of no practical account; 0 for none.
        significance: Level of all tests; the intervals are of one minus this.
        pairs: All pairs of arms at the same levels, tested as one family; every comparison is one
            of them.
        ranking: Mean ranks of the arms over the tasks; None with a single task or arm, and as long
            as some arm has no final run on some task.
        tasks: Of several tasks, each one's name -> its summary, whose pairs are a family of their
            own; empty for a single one.
    """

    arms: tuple[ArmSummary, ...]
    baseline: str
    baselines: dict[str, str]
    contests: tuple[Contest, ...]
    target_accuracy: float | None
    target_given: bool
    margin: float
    significance: float
    pairs: Pairs
    ranking: Ranking | None
    tasks: dict[str, "Summary"] = field(default_factory=dict)

    def __getitem__(self, name: str) -> ArmSummary:
        """The summary of one arm."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, ArmSummary]:
        return {arm.name: arm for arm in self.arms}

    @property
    def best(self) -> str | None:
        """The best arm of all contests; None as long as no final run finished."""
        return next(iter(_first([self[it.best] for it in self.contests if it.best])), None)

    def against(self, baselines: Mapping[str, str]) -> dict[str, Comparison]:
        """Compares arms as if the study had other baselines.

        Args:
            baselines: Name of an arm -> that of the arm to compare it with. An arm with itself,
                arms at other levels, and arms that do not share a seed on every task, are left out.

        Returns:
            Arm -> comparison, the same as wherever else the two are compared.
        """
        return {arm: it for (arm, _), it in self.pairs.compare(baselines.items()).items()}


def summarize(
    results: Sequence[Result],
    arms: Sequence[Arm],
    baseline: str,
    *,
    target_accuracy: float | None = None,
    margin: float | None = None,
    significance: float = 0.05,
    ranges: Mapping[str, Range] | None = None,
) -> Summary:
    """Summarizes the results of a study, be it finished or under way.

    Args:
        results: Tuning and final runs; those of other arms and tasks are left out.
        arms: The arms of the study, on each of its tasks.
        baseline: Name of the variant that the others are compared with, at the same levels.
        target_accuracy: See `Summary.target_accuracy`.
        margin: See `Summary.margin`.
        significance: See `Summary.significance`.
        ranges: Dotted path -> the range from which tuned values were drawn, where it was one.

    Returns:
        The summary of all arms, those without runs included.

    Raises:
        ValueError: The baseline is none of the variants.
        StoreError: Two runs have the same arm, task, values and seed.
    """
    variants = list(dict.fromkeys(arm.variant for arm in arms))
    if baseline not in variants:
        raise ValueError(f"baseline {baseline!r} is none of the variants {', '.join(variants)}")
    tasks = {
        task: [it for it in results if it.task == task]
        for task in dict.fromkeys(arm.task for arm in arms)
    }
    named = {arm.name: arm for arm in arms}
    baselines = baseline_arms(arms, baseline)
    by_arm: dict[str, dict[str, list[Result]]] = {name: {it: [] for it in tasks} for name in named}
    for task, of_task in tasks.items():
        for result in of_task:
            if result.arm in by_arm:
                by_arm[result.arm][task].append(result)
    final = {
        name: {task: final_runs(of_arm, name) for task, of_arm in by_task.items()}
        for name, by_task in by_arm.items()
    }
    alone = {
        name: _summarize_arm(
            arm,
            final[name],
            trials(next(iter(by_arm[name].values())), name) if len(tasks) == 1 else [],
            ranges or {},
            1 - significance,
        )
        for name, arm in named.items()
    }

    levels = _by_levels(named)
    pairs = all_pairs(
        {name: list(arm.accuracies.values()) for name, arm in alone.items()},
        [names for _, names in levels.values()],
        margin=margin or 0.0,
        level=significance,
        diverged={name: len(arm.diverged) for name, arm in alone.items()},
    )
    leading = {words: _first([alone[it] for it in names]) for words, (_, names) in levels.items()}
    compared = pairs.compare(
        [*baselines.items()]
        + [(it[0], other) for words, it in leading.items() if it for other in levels[words][1]]
    )
    contests = tuple(
        Contest(
            levels=at,
            name=words,
            arms=names,
            best=next(iter(leading[words]), None),
            first=leading[words],
            leads={
                other: compared[leading[words][0], other]
                for other in names
                if leading[words] and (leading[words][0], other) in compared
            },
        )
        for words, (at, names) in levels.items()
    )
    target, times, first = None, {}, {}
    if len(tasks) == 1:
        runs = {name: next(iter(it.values())) for name, it in final.items()}
        target = target_accuracy or _target(runs.values())
        if target is not None:
            times, first = _race(runs, baselines, target, 1 - significance)
    accuracies = [it.accuracies for it in alone.values() if it.accuracy]
    thresholds = _thresholds(accuracies) if len(tasks) > 1 else None
    return Summary(
        arms=tuple(
            replace(
                arm,
                comparison=compared.get((name, baselines[name])),
                improvement=_improvement(arm, alone[baselines[name]], 1 - significance)
                if (name, baselines[name]) in compared
                else None,
                time_to_target=times.get(name),
                first_to_target=first.get(name),
                profile=performance_profile(
                    _scores(arm.accuracies), thresholds, confidence=1 - significance
                )
                if arm.accuracy and thresholds is not None
                else None,
            )
            for name, arm in alone.items()
        ),
        baseline=baseline,
        baselines=baselines,
        contests=contests,
        target_accuracy=target,
        target_given=target_accuracy is not None,
        margin=margin or 0.0,
        significance=significance,
        pairs=pairs,
        ranking=rank(
            {arm.name: [fmean(it) for it in _scores(arm.accuracies)] for arm in alone.values()}
        )
        if len(tasks) > 1 and len(alone) > 1 and len(accuracies) == len(alone)
        else None,
        tasks={
            task: summarize(
                of_task,
                [arm for arm in arms if arm.task == task],
                baseline,
                target_accuracy=target_accuracy,
                margin=margin,
                significance=significance,
                ranges=ranges,
            )
            for task, of_task in tasks.items()
            if len(tasks) > 1
        },
    )


def _summarize_arm(
    arm: Arm,
    final: Mapping[str, Sequence[Result]],
    tried: Sequence[Trial],
    ranges: Mapping[str, Range],
    confidence: float,
) -> ArmSummary:
    """What an arm's runs say by themselves, without other arms beside it."""
    complete = all(final.values())
    accuracies = {
        task: {run.seed: accuracy_on_test(run) for run in runs} for task, runs in final.items()
    }
    losses = [[loss_on_test(run) for run in runs] for runs in final.values()]
    runs = [run for of_task in final.values() for run in of_task]
    values = _common([it.values for it in runs] or [it.values for it in tried[:1]])
    seconds = [run.seconds for run in runs if not run.diverged]

    def estimated(scores: Tasks, statistic: Statistic) -> Estimate | None:
        return estimate(scores, statistic, confidence=confidence) if complete else None

    accuracy = estimated(_scores(accuracies), mean)

    return ArmSummary(
        name=arm.name,
        variant=arm.variant,
        levels=arm.levels,
        accuracies=accuracies,
        diverged=tuple((run.task, run.seed) for run in runs if run.diverged),
        accuracy=accuracy and accuracy.of_shares,
        median=estimated(_scores(accuracies), median),
        interquartile_mean=estimated(_scores(accuracies), interquartile_mean),
        loss=estimated(losses, mean),
        values=values,
        at_edge=tuple(
            path
            for path, value in values.items()
            if at_edge(value, [trial.values.get(path) for trial in tried], ranges.get(path))
        ),
        trials=tuple(tried),
        budget=expected_best([it.accuracy.value for it in tried]) if tried else None,
        seconds=fmean(seconds) if seconds else None,
    )


def _scores(accuracies: Scores) -> list[list[float]]:
    return [list(of_task.values()) for of_task in accuracies.values()]


def _improvement(arm: ArmSummary, baseline: ArmSummary, confidence: float) -> Estimate:
    return probability_of_improvement(
        _scores(arm.accuracies), _scores(baseline.accuracies), confidence=confidence
    )


def _by_levels(arms: Mapping[str, Arm]) -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
    """The levels in words -> the levels, and the names of the arms at them."""
    found: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {}
    for name, arm in arms.items():
        _, others = found.get(arm.place, (arm.levels, ()))
        found[arm.place] = arm.levels, (*others, name)
    return found


def _first(arms: Iterable[ArmSummary]) -> tuple[str, ...]:
    """The arms of the highest mean accuracy, that of the lowest loss first."""
    reached = [it for it in arms if it.accuracy]
    shared = {
        task: set.intersection(*(set(it.accuracies[task]) for it in reached))
        for task in (reached[0].accuracies if reached else {})
    }
    finished = {
        it.name: (_accuracy(it, shared), it.loss.value)
        for it in reached
        if it.loss and len(it.diverged) < it.runs
    }
    highest = max((accuracy for accuracy, _ in finished.values()), default=0.0)
    first = [name for name, (accuracy, _) in finished.items() if accuracy >= highest - EQUAL]
    return tuple(sorted(first, key=lambda name: finished[name][1]))


def _accuracy(arm: ArmSummary, seeds: Mapping[str, Collection[int]]) -> float:
    """Mean accuracy over tasks and the seeds given, or over all seeds when some task has none."""
    if not all(seeds.values()):
        seeds = arm.accuracies
    return fmean(
        fmean(arm.accuracies[task][seed] for seed in of_task) for task, of_task in seeds.items()
    )


def _target(final: Iterable[Sequence[Result]]) -> float | None:
    """The target accuracy of a study that sets none; None as long as no final run has any."""
    ends = [fmean(map(accuracy_on_validation, runs)) for runs in final if runs]
    return SHARE_OF_BEST * max(ends, default=0.0) or None


def _race(
    final: Mapping[str, Sequence[Result]],
    baselines: Mapping[str, str],
    target: float,
    confidence: float,
) -> tuple[dict[str, TimeToTarget], dict[str, FirstToTarget]]:
    """When each arm with final runs reaches the target, and whether before its baseline."""
    horizon = max((_steps(run) for runs in final.values() for run in runs), default=0.0)

    def arrived(runs: Iterable[Result]) -> Arrivals:
        runs = list(runs)
        return arrivals(
            [steps_to(run, target) for run in runs],
            [_steps(run) for run in runs],
            [run.diverged for run in runs],
            horizon,
        )

    first = {}
    for name, other in baselines.items():
        ours, theirs = ({run.seed: run for run in final[it]} for it in (name, other))
        shared = [seed for seed in ours if seed in theirs]
        if name != other and shared:
            first[name] = first_to_target(
                arrived(ours[seed] for seed in shared), arrived(theirs[seed] for seed in shared)
            )
    times = {
        name: time_to_target(arrived(runs), confidence=confidence)
        for name, runs in final.items()
        if runs
    }
    return times, first


def _steps(run: Result) -> float:
    return float(run.steps_per_epoch * len(run.curve.validation_accuracy))


def _thresholds(accuracies: Iterable[Scores]) -> Floats:
    """Accuracies at which all profiles are read."""
    every = [it for scores in accuracies for of_task in _scores(scores) for it in of_task] or [0.0]
    return np.linspace(min(every), max(every), PROFILE_THRESHOLDS)


def _common(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of some records have alike."""
    first = values[0] if values else {}
    return {key: it for key, it in first.items() if all(key in o and o[key] == it for o in values)}
