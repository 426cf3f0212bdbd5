"""What the runs of a study say: estimates, comparisons with a baseline, contests, tasks."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from ..inference.budget import BudgetCurve, expected_best
from ..inference.estimates import Estimate, Statistic, estimate, interquartile_mean, mean, median
from ..inference.improvement import probability_of_improvement
from ..inference.measure import LOSS, Measure
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
from .outcome import on_test, on_validation, steps_to
from .search import Range, at_edge
from .selection import Trial, final_runs, mean_of, trials
from .store import Result

SHARE_OF_BEST = 0.95  # of what the best arm ends with on validation, as the target if none is set
PROFILE_THRESHOLDS = 101
EQUAL = 1e-9  # means that are equal but for rounding

Measured = Mapping[str, Mapping[int, float]]
"""Task -> seed -> what was measured."""


@dataclass(frozen=True)
class ArmSummary:
    """What the runs of one arm say, over all tasks of a summary.

    Attributes:
        name: The arm's name in the study.
        variant: The name of its variant.
        levels: Dotted path -> value of each factor.
        measured: Task -> seed -> what was measured on the test split; the worst for a diverged run.
        diverged: Task and seed of each final run that diverged.
        unmeasured: Task and seed of each other one whose metric is no finite number, and counts as
            the worst as well.
        mean: Mean over tasks and seeds of what was measured on the test split, of shares with its
            interval within 0 and 1. This and what follows is None as long as some task has no
            final run.
        median: The median of the same.
        interquartile_mean: The mean of the middle half of the same.
        loss: Mean loss on the test split, infinite when a run diverged.
        values: Tuned values of the final runs, as far as they are the same on every task; before
            these exist, the best so far.
        at_edge: Dotted paths whose value lies at the edge of what was tried.
        trials: The points that were tried in tuning, best first; none over several tasks.
        budget: Expected best on validation, of what is selected by, against the number of trials;
            None over several tasks, without tuning, and where it was stopped early.
        seconds: Mean wall time of the final runs that finished; None without any.
        comparison: The arm against its baseline; None for the baseline, and as long as some task
            has no seed that both have.
        improvement: The probability that a run of the arm beats an independent run of its
            baseline; None where there is no comparison.
        time_to_target: Optimizer steps until the first evaluation on validation that reaches the
            target; None without a target, and over several tasks, whose steps are not alike.
        first_to_target: Which of the arm and its baseline reached the target first, by pairs.
        profile: Share of the runs above each score; None on a single task.
    """

    name: str
    variant: str
    levels: dict[str, Any]
    measured: Measured
    diverged: tuple[tuple[str, int], ...]
    unmeasured: tuple[tuple[str, int], ...]
    mean: Estimate | None
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
        return sum(map(len, self.measured.values()))

    @property
    def lost(self) -> tuple[tuple[str, int], ...]:
        """Task and seed of each final run that counts as the worst."""
        return self.diverged + self.unmeasured

    @property
    def by_seed(self) -> dict[int, float]:
        """Seed -> mean over the tasks, where all of them have the seed."""
        tasks = list(self.measured.values())
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
        best: The arm with the best mean on the test split, of equal ones that with the lowest loss;
            None as long as no final run finished. Of unequal numbers of runs those seeds count that
            all arms have, if there are any on every task.
        first: The arms whose mean is the best, those with the lowest loss first: several where
            they tie.
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
        measure: What is measured.
        selected_by: What tuning selects by, on the validation split.
        target: What `time_to_target` waits for on the validation split; None without one, and over
            several tasks.
        target_given: Whether the study set the target. Otherwise it lies a twentieth below the mean
            that the best arm ends with, or above it where the lower is the better.
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
    measure: Measure
    selected_by: Measure
    target: float | None
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
        reached = [self[it.best] for it in self.contests if it.best]
        return next(iter(_first(reached, self.measure)), None)

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
    measure: Measure,
    selected_by: Measure | None = None,
    target: float | None = None,
    margin: float | None = None,
    significance: float = 0.05,
    ranges: Mapping[str, Range] | None = None,
) -> Summary:
    """Summarizes the results of a study, be it finished or under way.

    Args:
        results: Tuning and final runs; those of other arms and tasks are left out.
        arms: The arms of the study, on each of its tasks.
        baseline: Name of the variant that the others are compared with, at the same levels.
        measure: See `Summary.measure`.
        selected_by: See `Summary.selected_by`; the same by default.
        target: See `Summary.target`.
        margin: See `Summary.margin`.
        significance: See `Summary.significance`.
        ranges: Dotted path -> the range from which tuned values were drawn, where it was one.

    Returns:
        The summary of all arms, those without runs included.

    Raises:
        ValueError: The baseline is none of the variants.
        StoreError: Two runs have the same arm, task, values and seed.
    """
    selected_by = selected_by or measure
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
        name: {task: final_runs(of_arm, name, selected_by) for task, of_arm in by_task.items()}
        for name, by_task in by_arm.items()
    }
    alone = {
        name: _summarize_arm(
            arm,
            final[name],
            trials(next(iter(by_arm[name].values())), name, selected_by) if len(tasks) == 1 else [],
            ranges or {},
            1 - significance,
            measure,
            selected_by,
        )
        for name, arm in named.items()
    }

    levels = _by_levels(named)
    pairs = all_pairs(
        {
            name: [{seed: measure.score(it) for seed, it in of_task.items()} for of_task in tasks]
            for name, tasks in ((name, it.measured.values()) for name, it in alone.items())
        },
        [names for _, names in levels.values()],
        margin=margin or 0.0,
        level=significance,
        diverged={name: len(arm.diverged) for name, arm in alone.items()},
        measure=measure,
    )
    leading = {
        words: _first([alone[it] for it in names], measure) for words, (_, names) in levels.items()
    }
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
    waited_for, times, first = None, {}, {}
    if len(tasks) == 1:
        runs = {name: next(iter(it.values())) for name, it in final.items()}
        waited_for = _target(runs.values(), measure) if target is None else target
        if waited_for is not None:
            times, first = _race(runs, baselines, waited_for, 1 - significance, measure)
    complete = [_scores(it.measured, measure) for it in alone.values() if it.mean]
    thresholds = _thresholds(complete) if len(tasks) > 1 else None
    return Summary(
        arms=tuple(
            replace(
                arm,
                comparison=compared.get((name, baselines[name])),
                improvement=_improvement(arm, alone[baselines[name]], 1 - significance, measure)
                if (name, baselines[name]) in compared
                else None,
                time_to_target=times.get(name),
                first_to_target=first.get(name),
                profile=performance_profile(
                    _scores(arm.measured, measure), thresholds, confidence=1 - significance
                )
                if arm.mean and thresholds is not None
                else None,
            )
            for name, arm in alone.items()
        ),
        baseline=baseline,
        baselines=baselines,
        contests=contests,
        measure=measure,
        selected_by=selected_by,
        target=waited_for,
        target_given=target is not None,
        margin=margin or 0.0,
        significance=significance,
        pairs=pairs,
        ranking=rank(
            {
                arm.name: [fmean(it) for it in _scores(arm.measured, measure)]
                for arm in alone.values()
            }
        )
        if len(tasks) > 1 and len(alone) > 1 and len(complete) == len(alone)
        else None,
        tasks={
            task: summarize(
                of_task,
                [arm for arm in arms if arm.task == task],
                baseline,
                measure=measure,
                selected_by=selected_by,
                target=target,
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
    measure: Measure,
    selected_by: Measure,
) -> ArmSummary:
    """What an arm's runs say by themselves, without other arms beside it."""
    complete = all(final.values())
    measured = {
        task: {run.seed: on_test(run, measure) for run in runs} for task, runs in final.items()
    }
    each = [list(of_task.values()) for of_task in measured.values()]
    losses = [[on_test(run, LOSS) for run in runs] for runs in final.values()]
    runs = [run for of_task in final.values() for run in of_task]
    values = _common([it.values for it in runs] or [it.values for it in tried[:1]])
    seconds = [run.seconds for run in runs if not run.diverged]

    def estimated(scores: Tasks, statistic: Statistic) -> Estimate | None:
        return estimate(scores, statistic, confidence=confidence) if complete else None

    budget = None
    # Points that were stopped early would count for what they had not come to.
    if tried and all(it.until is None for it in tried):
        budget = expected_best([selected_by.score(it.reached.value) for it in tried])
        if not selected_by.higher_is_better:
            budget = replace(budget, validation=-budget.validation)
    return ArmSummary(
        name=arm.name,
        variant=arm.variant,
        levels=arm.levels,
        measured=measured,
        diverged=tuple((run.task, run.seed) for run in runs if run.diverged),
        unmeasured=tuple(
            (run.task, run.seed)
            for run in runs
            if run.test is not None and run.test.get(measure.name) is None
        ),
        mean=mean_of(each, measure, confidence) if complete else None,
        median=estimated(each, median),
        interquartile_mean=estimated(each, interquartile_mean),
        loss=estimated(losses, mean),
        values=values,
        at_edge=tuple(
            path
            for path, value in values.items()
            if at_edge(value, [trial.values.get(path) for trial in tried], ranges.get(path))
        ),
        trials=tuple(tried),
        budget=budget,
        seconds=fmean(seconds) if seconds else None,
    )


def _scores(measured: Measured, measure: Measure) -> list[list[float]]:
    return [[measure.score(it) for it in of_task.values()] for of_task in measured.values()]


def _improvement(
    arm: ArmSummary, baseline: ArmSummary, confidence: float, measure: Measure
) -> Estimate:
    ours, theirs = (_scores(it.measured, measure) for it in (arm, baseline))
    return probability_of_improvement(ours, theirs, confidence=confidence)


def _by_levels(arms: Mapping[str, Arm]) -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
    """The levels in words -> the levels, and the names of the arms at them."""
    found: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {}
    for name, arm in arms.items():
        _, others = found.get(arm.place, (arm.levels, ()))
        found[arm.place] = arm.levels, (*others, name)
    return found


def _first(arms: Iterable[ArmSummary], measure: Measure) -> tuple[str, ...]:
    """The arms of the best mean, that of the lowest loss first."""
    reached = [it for it in arms if it.mean]
    shared = {
        task: set.intersection(*(set(it.measured[task]) for it in reached))
        for task in (reached[0].measured if reached else {})
    }
    finished = {
        it.name: (measure.score(_mean(it, shared)), it.loss.value)
        for it in reached
        if it.loss and len(it.lost) < it.runs
    }
    highest = max((score for score, _ in finished.values()), default=0.0)
    # Of what is no share, in proportion to its size, which may be any.
    equal = EQUAL if measure.share or math.isinf(highest) else EQUAL * abs(highest)
    first = [name for name, (score, _) in finished.items() if score >= highest - equal]
    return tuple(sorted(first, key=lambda name: finished[name][1]))


def _mean(arm: ArmSummary, seeds: Mapping[str, Collection[int]]) -> float:
    """Mean over tasks and the seeds given, or over all seeds when some task has none."""
    if not all(seeds.values()):
        seeds = arm.measured
    return fmean(
        fmean(arm.measured[task][seed] for seed in of_task) for task, of_task in seeds.items()
    )


def _target(final: Iterable[Sequence[Result]], measure: Measure) -> float | None:
    """The target of a study that sets none; None as long as no final run has reached anything."""
    ends = [fmean(on_validation(run, measure) for run in runs) for runs in final if runs]
    ends = [it for it in ends if math.isfinite(it)]
    if not ends:
        return None
    best = max(ends, key=measure.score)
    if measure.higher_is_better and best >= 0:
        return SHARE_OF_BEST * best or None
    return best - measure.score((1 - SHARE_OF_BEST) * abs(best))


def _race(
    final: Mapping[str, Sequence[Result]],
    baselines: Mapping[str, str],
    target: float,
    confidence: float,
    measure: Measure,
) -> tuple[dict[str, TimeToTarget], dict[str, FirstToTarget]]:
    """When each arm with final runs reaches the target, and whether before its baseline."""
    horizon = max((float(run.steps) for runs in final.values() for run in runs), default=0.0)

    def arrived(runs: Iterable[Result]) -> Arrivals:
        runs = list(runs)
        return arrivals(
            [steps_to(run, target, measure) for run in runs],
            [float(run.steps) for run in runs],
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


def _thresholds(scores: Iterable[Sequence[Sequence[float]]]) -> Floats:
    """Scores at which all profiles are read."""
    every = [it for of_arm in scores for of_task in of_arm for it in of_task if math.isfinite(it)]
    every = every or [0.0]
    return np.linspace(min(every), max(every), PROFILE_THRESHOLDS)


def _common(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of some records have alike."""
    first = values[0] if values else {}
    return {key: it for key, it in first.items() if all(key in o and o[key] == it for o in values)}
