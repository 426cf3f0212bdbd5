"""What the runs of a study mean: winning values, intervals, paired differences."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from scipy.special import stdtrit

from .store import Result, StoreError

CONFIDENCE = 0.95

Verdict = Literal["better", "worse", "no difference shown", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval (Student t).

    Attributes:
        mean: Infinite when a sample is.
        interval: Lower and upper end; None with fewer than two samples or an infinite mean.
        count: Number of samples.
    """

    mean: float
    interval: tuple[float, float] | None
    count: int

    @property
    def verdict(self) -> Verdict:
        """What this says when it is a difference of accuracies."""
        if self.interval is None:
            return "undecided"
        low, high = self.interval
        if low > 0:
            return "better"
        return "worse" if high < 0 else "no difference shown"


def estimate(samples: Sequence[float]) -> Estimate:
    """The mean of at least one sample, with mean ± t(n - 1) · s / √n as its interval."""
    count, mean = len(samples), fmean(samples)
    if count < 2 or not math.isfinite(mean):
        return Estimate(mean, None, count)
    quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    variance = math.fsum((it - mean) ** 2 for it in samples) / (count - 1)
    half = quantile * math.sqrt(variance / count)
    return Estimate(mean, (mean - half, mean + half), count)


def smallest_sign_flip_p(pairs: int) -> float:
    """The smallest two-sided p-value that an exact sign-flip test of so many pairs can give."""
    return min(1.0, 2.0 / 2**pairs)


@dataclass(frozen=True)
class Trial:
    """One point of a variant's search space, over its tuning seeds.

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

    Of several tasks, the means go over all of them.

    Best is the highest mean validation accuracy after the last epoch, then the lowest mean
    validation loss, then the smallest values.

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
            estimate([_validation_accuracy(run) for run in runs]),
            fmean(_validation_loss(run) for run in runs),
            sum(run.diverged for run in runs),
        )
        for runs in map(_by_seed, points.values())
    ]
    return sorted(tried, key=lambda it: (-it.accuracy.mean, it.loss, _order(it.values)))


def best_values(results: Iterable[Result], arm: str) -> dict[str, Any]:
    """The tuned values with which an arm's final runs are made; empty without tuning runs.

    The results are those of one task, for which the arm is tuned by itself. See
    `trials` for what is best and what is an error.
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


def accuracies_on_test(runs: Sequence[Result]) -> dict[int, float]:
    """Seed -> accuracy on the test split; of several tasks their mean, where all of them are."""
    return _by_seed_over_tasks(runs, _test_accuracy)


def paired_differences(runs: Sequence[Result], others: Sequence[Result]) -> dict[int, float]:
    """Seed -> accuracy on the test split minus the others', for the seeds that both have."""
    theirs = accuracies_on_test(others)
    return {
        seed: it - theirs[seed] for seed, it in accuracies_on_test(runs).items() if seed in theirs
    }


def _by_seed_over_tasks(
    runs: Sequence[Result], metric: Callable[[Result], float]
) -> dict[int, float]:
    tasks = len({run.task for run in runs})
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(metric(run))
    return {seed: fmean(it) for seed, it in by_seed.items() if len(it) == tasks}


@dataclass(frozen=True)
class VariantSummary:
    """What the runs of one arm say, over all tasks.

    Attributes:
        name: The arm's name in the study.
        seeds: Number of final runs, diverged ones included.
        diverged: How many of these diverged.
        accuracy: Accuracy on the test split, 0 for a diverged run; None without final runs.
        loss: Loss on the test split, infinite for a diverged run; None without final runs.
        difference: Accuracy on the test split minus the baseline's, paired by seed; None for the
            baseline and where no seed is shared.
        steps_to_target: Optimizer steps until the first epoch end whose validation accuracy
            reaches the target, median over seeds. A run that diverges or never reaches the target
            counts as infinite. None without final runs or target.
        reached: How many final runs reached the target.
        values: Tuned values of the final runs, as far as they are the same on every task; before
            these exist, the best so far.
        at_edge: Dotted paths whose value is the smallest or largest that was tried.
        seconds: Mean wall time of the final runs that finished; None without any.
    """

    name: str
    seeds: int
    diverged: int
    accuracy: Estimate | None
    loss: Estimate | None
    difference: Estimate | None
    steps_to_target: float | None
    reached: int
    values: dict[str, Any]
    at_edge: tuple[str, ...]
    seconds: float | None


@dataclass(frozen=True)
class Summary:
    """What a study says so far.

    Attributes:
        variants: One summary an arm, in the order of the study.
        baseline: The variant that the others are compared with.
        baselines: Name of each arm -> that of the arm that it is compared with.
        target_accuracy: Validation accuracy that `steps_to_target` waits for; None without one.
        target_given: Whether the study set the target. Otherwise it is 95% of the mean validation
            accuracy that the best variant ends with.
        best: Name of the variant with the highest mean accuracy on the test split, at equal
            accuracy with the lowest loss; None as long as no final run finished.
        leads: Name of each other variant with final runs -> accuracy of the best minus its own,
            paired by seed.
    """

    variants: tuple[VariantSummary, ...]
    baseline: str
    baselines: dict[str, str]
    target_accuracy: float | None
    target_given: bool
    best: str | None
    leads: dict[str, Estimate]

    def __getitem__(self, name: str) -> VariantSummary:
        """The summary of one variant."""
        return next(variant for variant in self.variants if variant.name == name)


def summarize(
    results: Sequence[Result],
    arms: Sequence[str],
    baseline: str,
    target_accuracy: float | None = None,
    baselines: Mapping[str, str] | None = None,
) -> Summary:
    """Summarizes the results of a study, be it finished or under way.

    Args:
        results: Tuning and final runs; those of other arms are left out.
        arms: Names in the order of the study.
        baseline: Name of the variant that the others are compared with.
        target_accuracy: See `Summary.target_accuracy`.
        baselines: See `Summary.baselines`; by default each arm is compared with `baseline`.

    Returns:
        The summary of all arms, those without runs included.

    Raises:
        ValueError: The baseline of an arm is no arm.
        StoreError: Two runs have the same arm, task, values and seed.
    """
    baselines = dict(baselines or dict.fromkeys(arms, baseline))
    unknown = [it for it in baselines.values() if it not in arms]
    if unknown:
        raise ValueError(f"baseline {unknown[0]!r} is none of the arms {', '.join(arms)}")
    final = {name: final_runs(results, name) for name in arms}
    given = target_accuracy is not None
    if not given:
        ends = [fmean(_validation_accuracy(run) for run in runs) for runs in final.values() if runs]
        target_accuracy = 0.95 * max(ends, default=0.0) or None
    best = min(
        (name for name in arms if not all(run.diverged for run in final[name])),
        key=lambda it: (-fmean(map(_test_accuracy, final[it])), fmean(map(_test_loss, final[it]))),
        default=None,
    )
    leads = {
        name: lead
        for name, runs in final.items()
        if best is not None and name != best and (lead := _paired(final[best], runs))
    }
    summaries = tuple(
        _summarize_variant(
            name,
            final[name],
            final[baselines[name]] if name != baselines[name] else [],
            trials(results, name),
            target_accuracy,
        )
        for name in arms
    )
    return Summary(summaries, baseline, baselines, target_accuracy, given, best, leads)


def _summarize_variant(
    name: str,
    final: Sequence[Result],
    baseline: Sequence[Result],
    tried: Sequence[Trial],
    target: float | None,
) -> VariantSummary:
    steps = [math.inf if target is None else _steps_to(run, target) for run in final]
    seconds = [run.seconds for run in final if not run.diverged]
    values = _common([run.values for run in final] or [it.values for it in tried[:1]])
    return VariantSummary(
        name=name,
        seeds=len(final),
        diverged=sum(run.diverged for run in final),
        accuracy=_estimate_over_seeds(final, _test_accuracy),
        loss=_estimate_over_seeds(final, _test_loss),
        difference=_paired(final, baseline),
        steps_to_target=median(steps) if steps and target is not None else None,
        reached=sum(math.isfinite(it) for it in steps),
        values=values,
        at_edge=tuple(
            path
            for path, value in values.items()
            if _at_edge(value, [trial.values.get(path) for trial in tried])
        ),
        seconds=fmean(seconds) if seconds else None,
    )


def _estimate_over_seeds(
    runs: Sequence[Result], metric: Callable[[Result], float]
) -> Estimate | None:
    samples = list(_by_seed_over_tasks(runs, metric).values())
    return estimate(samples) if samples else None


def _common(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of some records have alike."""
    first = values[0] if values else {}
    return {key: it for key, it in first.items() if all(key in o and o[key] == it for o in values)}


def _by_seed(runs: Sequence[Result]) -> list[Result]:
    for (_, seed), count in Counter((run.task, run.seed) for run in runs).items():
        if count > 1:
            raise StoreError(
                f"{runs[0].arm!r} has {count} {runs[0].phase} runs with seed {seed} "
                f"and {runs[0].values}, so they come from different configurations. Give each "
                "configuration a folder of its own, or delete the folder `runs` and run again."
            )
    return sorted(runs, key=lambda run: (run.task, run.seed))


def _paired(runs: Sequence[Result], others: Sequence[Result]) -> Estimate | None:
    differences = paired_differences(runs, others)
    return estimate(list(differences.values())) if differences else None


def _steps_to(run: Result, target: float) -> float:
    if run.diverged:
        return math.inf
    epochs = enumerate(run.curve.validation_accuracy, start=1)
    reached = (epoch for epoch, it in epochs if it is not None and it >= target)
    return float(next(reached, math.inf) * run.steps_per_epoch)


def _at_edge(value: Any, tried: Iterable[Any]) -> bool:
    # A word has no neighbours, a single value was not tuned, and what is tuned ends at 0.
    numbers = {it for it in tried if isinstance(it, int | float) and not isinstance(it, bool)}
    return len(numbers) > 1 and value in {min(numbers), max(numbers)} - {0}


def _order(values: Mapping[str, Any]) -> list[tuple[float, str]]:
    return [
        (float(value), "") if isinstance(value, int | float) else (math.inf, str(value))
        for _, value in sorted(values.items())
    ]


# What a metric is worth in a comparison: one that is absent, since the run diverged or since it
# overflowed, is the worst there is.


def _worst_accuracy(value: float | None, run: Result) -> float:
    return 0.0 if value is None or run.diverged else value


def _worst_loss(value: float | None, run: Result) -> float:
    return math.inf if value is None or run.diverged else value


def _validation_accuracy(run: Result) -> float:
    return _worst_accuracy(next(reversed(run.curve.validation_accuracy), None), run)


def _validation_loss(run: Result) -> float:
    return _worst_loss(next(reversed(run.curve.validation_loss), None), run)


def _test_accuracy(run: Result) -> float:
    return _worst_accuracy(run.test.accuracy if run.test else None, run)


def _test_loss(run: Result) -> float:
    return _worst_loss(run.test.loss if run.test else None, run)
