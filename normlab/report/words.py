"""The numbers of a study in words."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..compare.statistics import (
    Estimate,
    Summary,
    VariantSummary,
    smallest_sign_flip_p,
)

# With fewer pairs than this the smallest p-value of an exact sign-flip test is above 0.05.
ENOUGH_PAIRS = 6


def hundredfold(share: float) -> str:
    """0.98123 -> "98.12"."""
    return f"{100 * share:.2f}"


def percent(share: float) -> str:
    """0.98123 -> "98.12%"."""
    return f"{hundredfold(share)}%"


def points(difference: float) -> str:
    """0.0123 -> "+1.23", in percentage points."""
    # Adding 0 turns what rounds to -0.00 into 0.00.
    return _minus(f"{round(100 * difference, 2) + 0:+.2f}")


def number(value: float) -> str:
    """Up to three digits: 0.1 -> "0.1", 0.08123 -> "0.0812", 1234.5 -> "1,234"."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def loss(value: float) -> str:
    """Three digits: 0.1 -> "0.100", infinity -> "∞"."""
    return "∞" if math.isinf(value) else _minus(f"{value:#.3g}")


def interval(estimate: Estimate, end: Callable[[float], str] = points) -> str:
    """The interval of an estimate, as "[+0.80, +1.66]"; empty when it has none."""
    return "[" + ", ".join(map(end, estimate.interval)) + "]" if estimate.interval else ""


def tuned_value(value: Any) -> str:
    """A tuned value as a reader would write it: 1e-05, 0.1, cosine."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def listed(names: Iterable[str]) -> str:
    """a, b and c."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def rank(variant: VariantSummary) -> float:
    """Sorts variants by test accuracy, best first, those without any last."""
    return -variant.accuracy.mean if variant.accuracy else 1.0


def short(path: str) -> str:
    """The last word of a dotted path."""
    return path.rpartition(".")[2]


@dataclass(frozen=True)
class Fact:
    """A difference of accuracies and whether to believe it.

    Attributes:
        label: What it is the difference to.
        difference: The estimate.
        belief: "yes", "no" or "open".
        reason: Why.
    """

    label: str
    difference: Estimate
    belief: Literal["yes", "no", "open"]
    reason: str


@dataclass(frozen=True)
class Conclusion:
    """What a study shows, for readers with ten seconds and for those with a minute.

    Attributes:
        headline: Which variant won, by how much.
        facts: The best variant against the baseline and against the runner-up.
        comparisons: Variant -> how it compares with the baseline.
        remarks: What to keep in mind before believing any of it.
    """

    headline: str
    facts: tuple[Fact, ...]
    comparisons: dict[str, str]
    remarks: tuple[str, ...]


def conclude(summary: Summary) -> Conclusion:
    """Puts a summary into words."""
    compared = [it for it in summary.variants if it.difference] if summary.best else []
    return Conclusion(
        _headline(summary),
        tuple(_facts(summary)),
        {it.name: _comparison(it, summary.baseline) for it in compared},
        tuple(_remarks(summary)),
    )


def _headline(summary: Summary) -> str:
    if summary.best is None:
        if any(it.seeds for it in summary.variants):
            return "Nothing to conclude: every final run diverged."
        return "No conclusion yet: no final run is done."
    best = summary[summary.best]
    assert best.accuracy is not None
    reached = f"{percent(best.accuracy.mean)} test accuracy"
    if not summary.leads:
        return f"{best.name} reached {reached}; there is nothing to compare it with yet."
    rivals = [name for name, lead in summary.leads.items() if lead.verdict != "better"]
    pairs = min(lead.count for lead in summary.leads.values())
    if not rivals and pairs < ENOUGH_PAIRS:
        return f"{best.name} came first with {reached}, but {pairs} seeds are too few to be sure."
    if not rivals:
        return f"{best.name} won with {reached}."
    named = listed(rivals) if len(rivals) <= 3 else f"{len(rivals)} other variants"
    return f"{best.name} came first with {reached}, but its lead over {named} may be chance."


def _facts(summary: Summary) -> Iterable[Fact]:
    if not summary.leads:
        return
    if summary.baseline in summary.leads:
        yield _fact(f"above {summary.baseline}, the baseline", summary.leads[summary.baseline])
    runner_up = min(summary.leads, key=lambda name: summary.leads[name].mean)
    if runner_up != summary.baseline or summary.best == summary.baseline:
        yield _fact(f"above {runner_up}, the runner-up", summary.leads[runner_up])


def _fact(label: str, difference: Estimate) -> Fact:
    pairs = difference.count
    if difference.verdict == "undecided":
        return Fact(label, difference, "open", "One seed shows no spread, so this may be chance.")
    if difference.verdict == "no difference shown":
        return Fact(label, difference, "no", "The interval covers 0, so this may be chance.")
    if pairs < ENOUGH_PAIRS:
        return Fact(label, difference, "open", f"{pairs} seeds are too few to be sure.")
    return Fact(label, difference, "yes", f"The interval over {pairs} paired seeds excludes 0.")


def _comparison(variant: VariantSummary, baseline: str) -> str:
    difference = variant.difference
    assert difference is not None
    if difference.verdict in ("better", "worse") and difference.interval:
        low, size, high = sorted(abs(100 * it) for it in (difference.mean, *difference.interval))
        return f"{difference.verdict} than {baseline} by {size:.2f} points [{low:.2f}, {high:.2f}]"
    if difference.verdict == "no difference shown":
        return (
            f"no difference to {baseline} shown "
            f"({points(difference.mean)} points {interval(difference)})"
        )
    return f"{points(difference.mean)} points against {baseline} on one seed, which decides nothing"


def _remarks(summary: Summary) -> Iterable[str]:
    pairs = [it.difference.count for it in summary.variants if it.difference]
    if pairs and max(pairs) == 1:
        yield "One seed shows no spread: nothing here can be told from chance."
    elif pairs and min(pairs) < ENOUGH_PAIRS:
        yield (
            f"With {min(pairs)} paired seeds no exact sign-flip test can reach p < 0.05, whatever "
            f"the data: its smallest two-sided p-value is {smallest_sign_flip_p(min(pairs)):g}. "
            f"Take at least {ENOUGH_PAIRS}."
        )
    if len(pairs) > 1 and max(pairs) > 1:
        yield (
            f"{len(pairs)} comparisons with the baseline are made, and nothing corrects for their "
            "number: each interval holds at 95% by itself."
        )
    for variant in summary.variants:
        if variant.diverged:
            yield (
                f"{variant.diverged} of {variant.seeds} final runs of {variant.name} diverged. "
                "They count as accuracy 0 and infinite loss."
            )
    edges: dict[str, list[str]] = {}
    for variant in summary.variants:
        for path in variant.at_edge:
            chosen = f"{variant.name} ({tuned_value(variant.values[path])})"
            edges.setdefault(path, []).append(chosen)
    for path, chosen in edges.items():
        yield (
            f"The chosen {short(path)} of {listed(chosen)} lies at the edge of its grid; "
            "a better one may lie beyond."
        )


def values_in_words(values: Mapping[str, Any]) -> str:
    """Tuned values, as "0.1" for one and "learning_rate=0.1, weight_decay=0" for several."""
    if len(values) == 1:
        return tuned_value(next(iter(values.values())))
    return ", ".join(f"{short(path)}={tuned_value(value)}" for path, value in values.items())


def steps(variant: VariantSummary) -> str:
    """Median steps to the target, and how many runs reached it when not all did."""
    if variant.steps_to_target is None:
        return "\N{EN DASH}"
    reached = "" if variant.reached == variant.seeds else f" ({variant.reached}/{variant.seeds})"
    if math.isinf(variant.steps_to_target):
        return f"never{reached}"
    return f"{number(variant.steps_to_target)}{reached}"


def target_in_words(summary: Summary) -> str:
    """What the steps to the target wait for."""
    if summary.target_accuracy is None:
        return "No target accuracy: no final run finished."
    source = (
        "as the study sets" if summary.target_given else "95% of what the best variant ends with"
    )
    return f"Target: {percent(summary.target_accuracy)} validation accuracy, {source}."


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
