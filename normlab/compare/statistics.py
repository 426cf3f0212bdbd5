"""What the runs of a study mean: winning values, intervals, paired differences."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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


def trials(results: Iterable[Result], variant: str) -> list[Trial]:
    """All points of the search space that a variant was tuned on, best first.

    Best is the highest mean validation accuracy after the last epoch, then the lowest mean
    validation loss, then the smallest values.

    Raises:
        StoreError: Two runs have the same values and seed.
    """
    points: dict[str, list[Result]] = {}
    for result in results:
        if result.phase == "tune" and result.variant == variant:
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


def best_values(results: Iterable[Result], variant: str) -> dict[str, Any]:
    """The tuned values with which a variant's final runs are made; empty without tuning runs.

    See `trials` for what is best and what is an error.
    """
    tried = trials(results, variant)
    return tried[0].values if tried else {}


def final_runs(results: Sequence[Result], variant: str) -> list[Result]:
    """The final runs of a variant, by seed.

    A study that is run again with a wider search space leaves final runs behind whose values no
    longer win: where values differ, those that win now count.

    Raises:
        StoreError: Two runs have the same values and seed.
    """
    runs = [it for it in results if it.variant == variant and it.phase == "final"]
    if any(run.values != runs[0].values for run in runs):
        best = best_values(results, variant)
        runs = [run for run in runs if run.values == best]
    return _by_seed(runs)


def paired_differences(runs: Iterable[Result], others: Iterable[Result]) -> dict[int, float]:
    """Seed -> accuracy on the test split minus the others', for the seeds that both have."""
    accuracies = {run.seed: _test_accuracy(run) for run in others}
    return {
        run.seed: _test_accuracy(run) - accuracies[run.seed]
        for run in runs
        if run.seed in accuracies
    }


@dataclass(frozen=True)
class VariantSummary:
    """What the runs of one variant say.

    Attributes:
        name: The variant's name in the study.
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
        values: Tuned values of the final runs; before these exist, the best so far.
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
        variants: One summary a variant, in the order of the study.
        baseline: The variant that the others are compared with.
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
    target_accuracy: float | None
    target_given: bool
    best: str | None
    leads: dict[str, Estimate]

    def __getitem__(self, name: str) -> VariantSummary:
        """The summary of one variant."""
        return next(variant for variant in self.variants if variant.name == name)


def summarize(
    results: Sequence[Result],
    variants: Sequence[str],
    baseline: str,
    target_accuracy: float | None = None,
) -> Summary:
    """Summarizes the results of a study, be it finished or under way.

    Args:
        results: Tuning and final runs; those of other variants are left out.
        variants: Names in the order of the study.
        baseline: Name of the variant that the others are compared with.
        target_accuracy: See `Summary.target_accuracy`.

    Returns:
        The summary of all variants, those without runs included.

    Raises:
        ValueError: The baseline is no variant.
        StoreError: Two runs have the same variant, values and seed.
    """
    if baseline not in variants:
        raise ValueError(f"baseline {baseline!r} is none of the variants {', '.join(variants)}")
    final = {name: final_runs(results, name) for name in variants}
    given = target_accuracy is not None
    if not given:
        ends = [fmean(_validation_accuracy(run) for run in runs) for runs in final.values() if runs]
        target_accuracy = 0.95 * max(ends, default=0.0) or None
    best = min(
        (name for name in variants if not all(run.diverged for run in final[name])),
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
            final[baseline] if name != baseline else [],
            trials(results, name),
            target_accuracy,
        )
        for name in variants
    )
    return Summary(summaries, baseline, target_accuracy, given, best, leads)


def _summarize_variant(
    name: str,
    final: Sequence[Result],
    baseline: Sequence[Result],
    tried: Sequence[Trial],
    target: float | None,
) -> VariantSummary:
    steps = [math.inf if target is None else _steps_to(run, target) for run in final]
    seconds = [run.seconds for run in final if not run.diverged]
    values = dict(final[0].values) if final else tried[0].values if tried else {}
    return VariantSummary(
        name=name,
        seeds=len(final),
        diverged=sum(run.diverged for run in final),
        accuracy=estimate([_test_accuracy(run) for run in final]) if final else None,
        loss=estimate([_test_loss(run) for run in final]) if final else None,
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


def _by_seed(runs: Sequence[Result]) -> list[Result]:
    for seed, count in Counter(run.seed for run in runs).items():
        if count > 1:
            raise StoreError(
                f"variant {runs[0].variant!r} has {count} {runs[0].phase} runs with seed {seed} "
                f"and {runs[0].values}, so they come from different configurations. Give each "
                "configuration a folder of its own, or delete the folder `runs` and run again."
            )
    return sorted(runs, key=lambda run: run.seed)


def _paired(runs: Iterable[Result], others: Iterable[Result]) -> Estimate | None:
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
