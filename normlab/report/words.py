"""The numbers of a study in words."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..compare.summary import ArmSummary, Contest, Summary
from ..inference.estimates import Estimate
from ..inference.measure import Measure, in_units
from ..inference.power import enough_pairs, too_few
from ..inference.verdict import Comparison, margin_in_words
from ..spec import displayed

EXACT_TEST = "exact sign-flip test of this pair alone (not corrected)"
WHICH_DECIDES = (
    "The corrected p-value alone decides: in simulations its test holds its level, and finds clear "
    f"differences with few seeds. The {EXACT_TEST} is there for who wants to suppose less; of n "
    "seeds its p-value is 2/2ⁿ at least, so that of few it shows nothing once corrected."
)


def hundredfold(share: float) -> str:
    """0.98123 -> "98.12"."""
    return _minus(f"{100 * share:.2f}")


def percent(share: float) -> str:
    """0.98123 -> "98.12%"."""
    return f"{hundredfold(share)}%"


def value_of(measure: Measure, beside: float | None = None) -> Callable[[float], str]:
    """How values stand in a column: 0.98123 -> "98.12" of a share; see `Measure.number`."""
    return lambda value: _minus(measure.number(value, beside))


def told_of(measure: Measure, beside: float | None = None) -> Callable[[float], str]:
    """How they stand in a sentence: 0.98123 -> "98.12%" of a share."""
    return lambda value: _minus(measure.told(value, beside))


def estimated(estimate: Estimate | None, measure: Measure) -> str:
    """A mean with its interval, as "98.12 [97.20, 99.04]"; empty for none."""
    if estimate is None:
        return ""
    end = value_of(measure, estimate.value)
    return f"{end(estimate.value)} {interval(estimate, end)}".strip()


def signed(difference: float, digits: int, measure: Measure) -> str:
    """0.0123 -> "+1.23" in percentage points of a share."""
    return _minus(in_units(difference, digits, measure, "+"))


def number(value: float) -> str:
    """Up to three digits: 0.1 -> "0.1", 0.08123 -> "0.0812", 1234.5 -> "1,234"."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def loss(value: float) -> str:
    """Three digits: 0.1 -> "0.100", infinity -> "∞"."""
    return "∞" if math.isinf(value) else _minus(f"{value:#.3g}")


def interval(estimate: Estimate, end: Callable[[float], str]) -> str:
    """The interval of an estimate, as "[0.80, 1.66]"; empty when it has none."""
    return "[" + ", ".join(map(end, estimate.interval)) + "]" if estimate.interval else ""


def difference(comparison: Comparison) -> str:
    """The difference of a comparison, as "+1.23", with as many digits as its verdict needs."""
    return signed(comparison.difference.value, comparison.digits, comparison.measure)


def interval_of(comparison: Comparison) -> str:
    """The interval of a comparison, as "[+0.80, +1.66]", likewise; empty when it has none."""
    return interval(
        comparison.difference, lambda end: signed(end, comparison.digits, comparison.measure)
    )


def difference_with_interval(comparison: Comparison) -> str:
    """Both, as "+1.23 [+0.80, +1.66]"."""
    return f"{difference(comparison)} {interval_of(comparison)}".strip()


def beside(comparison: Comparison) -> str:
    """What stands beside the p-value that decides, for who asks: that of the exact test."""
    return f"{EXACT_TEST}: {comparison.sign_flip_in_words}"


def tuned_value(value: Any) -> str:
    """A tuned value as a reader would write it: 1e-05, 0.1, cosine."""
    return f"{value:g}" if isinstance(value, float) else displayed(str(value))


def confidence(summary: Summary) -> str:
    """What the intervals of a summary are of, as "95%"."""
    return f"{100 * (1 - summary.significance):g}%"


def listed(names: Iterable[str]) -> str:
    """a, b and c."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def by_rank(summary: Summary) -> Callable[[ArmSummary], tuple[bool, float]]:
    """Sorts arms by their means on the test split, best first, those without any last."""

    def key(arm: ArmSummary) -> tuple[bool, float]:
        return (False, -summary.measure.score(arm.mean.value)) if arm.mean else (True, 0.0)

    return key


def short(path: str) -> str:
    """The last word of a dotted path."""
    return path.rpartition(".")[2]


@dataclass(frozen=True)
class Fact:
    """A difference and whether it is shown.

    Attributes:
        label: What it is the difference to.
        comparison: Of the best arm with it.
        belief: "yes" where it is shown, "no" where it is shown to be too small to matter, "open"
            where nothing is shown.
    """

    label: str
    comparison: Comparison
    belief: Literal["yes", "no", "open"]


@dataclass(frozen=True)
class Conclusion:
    """What a study shows, for readers with ten seconds and for those with a minute.

    Attributes:
        headline: Which arm won, by how much; or that none is shown best, and who came first.
        belief: What is shown of the first, in a sentence or two; empty with nothing to compare.
        facts: The first arm against the baseline, against the runner-up, and where both are shown
            but not all others, against the one that is shown least; none with factors.
        levels: With factors, the combination of levels -> headline and belief at it.
        tasks: Of several tasks, the task -> headline and belief on it.
        comparisons: Arm -> how it compares with its baseline.
        remarks: What to keep in mind before believing any of it.
    """

    headline: str
    belief: str
    facts: tuple[Fact, ...]
    levels: dict[str, str]
    tasks: dict[str, str]
    comparisons: dict[str, str]
    remarks: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Headline and belief as one paragraph."""
        return f"{self.headline} {self.belief}".strip()


def conclude(summary: Summary) -> Conclusion:
    """Puts a summary into words."""
    headline, belief, facts, levels = _no_winner(summary), "", (), {}
    if not headline and len(summary.contests) == 1:
        (contest,) = summary.contests
        headline, belief = _headline(summary, contest), _belief(summary, contest)
        facts = tuple(_facts(summary, contest))
    elif not headline:
        headline, belief = _headline_over_levels(summary)
        levels = {
            it.name: f"{_headline(summary, it)} {_belief(summary, it)}".strip()
            for it in summary.contests
            if it.best
        }
    return Conclusion(
        headline,
        belief,
        facts,
        levels,
        {task: conclude(it).verdict for task, it in summary.tasks.items()},
        {it.name: it.comparison.sentence for it in summary.arms if it.comparison},
        tuple(_remarks(summary)),
    )


def _no_winner(summary: Summary) -> str:
    if summary.best:
        return ""
    if not any(it.runs for it in summary.arms):
        return "No conclusion yet: no final run is done."
    if all(len(it.diverged) == it.runs for it in summary.arms):
        return "Nothing to conclude: every final run diverged."
    if all(len(it.lost) == it.runs for it in summary.arms):
        return f"Nothing to conclude: no final run has a finite test {summary.measure.words}."
    return "No conclusion yet: no arm has final runs on every task."


def _headline(summary: Summary, contest: Contest) -> str:
    # Within a contest the levels are the same, so the variant tells which arm it is.
    assert contest.best is not None
    best = summary[contest.best]
    assert best.mean is not None
    measure = summary.measure
    reached = _reached(best.mean.value, f"test {measure.words}", measure)
    if summary.tasks:
        over = f"over {len(summary.tasks)} tasks"
        reached = f"{_reached(best.mean.value, f'mean test {measure.words}', measure)} {over}"
    if not contest.leads:
        why = "there is nothing to compare it with yet"
        if any(summary[name].mean for name in contest.arms if name != best.name):
            why = "no other variant has seeds in common with it, so that nothing can be compared"
        return f"{best.variant} reached {reached}; {why}."
    others = [name for name in contest.leads if name not in contest.first]
    lead = ""
    if others:
        other, role = summary.baselines[best.name], "the baseline"
        if other not in others:
            other, role = _runner_up(contest, others), "the runner-up"
        compared = contest.leads[other]
        value = compared.difference.value
        apart = in_units(abs(value), compared.digits, measure)
        lead = f", {_minus(apart)} {measure.noun} {_side(compared)} "
        lead += f"{summary[other].variant}, {role}"
    if not _rivals(contest):
        return f"{best.variant} won with {reached}{lead}."
    tied = [summary[name].variant for name in contest.first]
    if len(tied) == 1:
        came = f"{best.variant} came first with {reached}{lead}."
    elif others:
        came = f"{_some(tied, 'variants')} tie for the first place with {reached}{lead}."
    else:
        came = f"all {len(tied)} tie" if len(tied) > 2 else f"{listed(tied)} tie"
        came += f" at {reached}."
    return f"No variant is shown best{_too_few(summary, contest)}: {came}"


def _too_few(summary: Summary, contest: Contest) -> str:
    """Whether so few seeds can show a best one at all; empty where they can."""
    leads = list(contest.leads.values())
    if not _few(summary, leads):
        return ""
    seeds = min(min(it.pairs) for it in leads)
    can = "can hardly" if any(it.difference.interval for it in leads) else "cannot"
    return f"; {seeds} seed{'s' * (seeds != 1)} {can} show one"


def _few(summary: Summary, leads: Sequence[Comparison]) -> bool:
    """Whether the seeds are fewer than a study should have; over several tasks, whether none."""
    if summary.tasks:
        return all(it.difference.interval is None for it in leads)
    enough = enough_pairs(summary.significance, summary.pairs.comparisons)
    return min(min(it.pairs) for it in leads) < enough


def _reached(value: float, what: str, measure: Measure) -> str:
    """98.12% test accuracy; a test RMSE of 1.234."""
    told = _minus(measure.told(value))
    return f"{told} {what}" if measure.share else f"a {what} of {told}"


def _side(comparison: Comparison) -> str:
    """Where the best arm lies: over the seeds of a pair alone it may be worse, while runs lack."""
    higher = comparison.difference.value > 0
    if comparison.difference.value == 0:
        higher = comparison.measure.higher_is_better
    return "above" if higher else "below"


def _rivals(contest: Contest) -> list[str]:
    """Whom the best arm is not shown to be better than."""
    return [name for name, it in contest.leads.items() if it.verdict != "better"]


def _runner_up(contest: Contest, among: Iterable[str]) -> str:
    return min(among, key=lambda name: contest.leads[name].lead)


def _belief(summary: Summary, contest: Contest) -> str:
    if not contest.leads:
        return ""
    tied = [summary[name].variant for name in contest.first[1:] if name in contest.leads]
    by_verdict: dict[str, list[str]] = {}
    for name, lead in contest.leads.items():
        # Over the seeds of a pair alone the first may lie below, while runs lack; and arms of equal
        # mean are ahead of each other by nothing.
        ahead = lead.lead >= 0 and name not in contest.first
        no_lead = lead.verdict == "undecided" and not ahead
        if not (lead.tied and name in contest.first):
            said_of = by_verdict.setdefault("no lead" if no_lead else lead.verdict, [])
            said_of.append(summary[name].variant)
    # One of those that tie is told as the first, and the others are compared with it.
    assert contest.best is not None
    who = summary[contest.best].variant if tied else "It"
    its = f"The lead of {who}" if tied else "Its lead"
    said = []
    if better := by_verdict.get("better"):
        every = "every other variant" if len(better) == len(contest.leads) > 1 else _some(better)
        said.append(f"{who} is shown to be better than {every}.")
    if worse := by_verdict.get("worse"):
        said.append(f"{who} is shown to be worse than {_some(worse)}, over the seeds of both.")
    if equal := by_verdict.get("equivalent"):
        within = f"{margin_in_words(summary.margin, summary.measure)} {summary.measure.noun}"
        said.append(f"{who} is equivalent to {_some(equal)} within {within}.")
    if open_ := by_verdict.get("undecided"):
        said.append(f"{its} over {_some(open_)} may be chance.")
    if level := by_verdict.get("no lead"):
        said.append(f"{who} is not shown to differ from {_some(level)}.")
    return " ".join(said)


def _some(names: Sequence[str], noun: str = "arms") -> str:
    return listed(names) if len(names) <= 5 else f"{len(names)} {noun}"


def _headline_over_levels(summary: Summary) -> tuple[str, str]:
    """Which variant is first at how many combinations of levels, and how often that is shown."""
    decided = [it for it in summary.contests if it.leads]
    shown = [it for it in decided if not _rivals(it)]
    if not decided:
        return "There is nothing to compare yet: no two variants share a level and a seed.", ""
    first: dict[str, list[Contest]] = {}
    for contest in decided:
        variants = [summary[name].variant for name in contest.first]
        told = variants[0] if len(variants) == 1 else f"a tie of {_some(variants, 'variants')}"
        first.setdefault(told, []).append(contest)
    count = len(summary.contests)
    every = "both" if count == 2 else f"all {count}"
    if len(first) == 1 and len(decided) == count:
        (who,) = first
        placed = f"{who} came first at {every} combinations of levels"
    else:
        ordered = sorted(first.items(), key=lambda item: -len(item[1]))
        placed = "first came " + "; ".join(
            f"{who} at {_levels_named(contests)}" for who, contests in ordered
        )
    if not shown:
        return (
            f"No variant is shown best at any combination of levels: {placed}.",
            "Nowhere is the first shown to be better than every other variant there.",
        )
    if len(shown) == count:
        if len(first) == 1:
            headline = f"{next(iter(first))} won at {every} combinations of levels."
        else:
            headline = f"No variant won everywhere: {placed}."
        return headline, "Each of them is shown to be better than every other variant there."
    beyond = []
    if len(decided) > len(shown):
        beyond.append("Elsewhere the lead of the first may be chance or too small to matter.")
    if lacking := [it for it in summary.contests if not it.leads]:
        beyond.append(f"At {_levels_named(lacking)} there is nothing to compare yet.")
    return f"A variant is shown best only at {_levels_named(shown)}: {placed}.", " ".join(beyond)


def _levels_named(contests: Sequence[Contest]) -> str:
    if len(contests) > 3:
        return f"{len(contests)} combinations of levels"
    return listed(it.name for it in contests)


def _facts(summary: Summary, contest: Contest) -> Iterable[Fact]:
    assert contest.best is not None
    if not contest.leads:
        return
    baseline, runner_up = summary.baselines[contest.best], _runner_up(contest, contest.leads)
    if baseline in contest.leads:
        yield _fact(f"{baseline}, the baseline", contest.leads[baseline])
    if runner_up != baseline:
        role = "tied with it" if runner_up in contest.first else "the runner-up"
        yield _fact(f"{runner_up}, {role}", contest.leads[runner_up])
    # Two differences that are shown would belie a headline that names no winner.
    rivals = _rivals(contest)
    if rivals and not {baseline, runner_up} & {*rivals}:
        least = max(rivals, key=lambda name: contest.leads[name].adjusted_p)
        yield _fact(least, contest.leads[least])


def _fact(other: str, comparison: Comparison) -> Fact:
    # The number beside it has its sign.
    label = f"{_side(comparison) if comparison.lead > 0 else 'against'} {other}"
    if comparison.verdict == "better":
        return Fact(label, comparison, "yes")
    return Fact(label, comparison, "no" if comparison.verdict == "equivalent" else "open")


def _remarks(summary: Summary) -> Iterable[str]:
    leads = [it for contest in summary.contests for it in contest.leads.values()]
    comparisons = summary.pairs.comparisons
    if leads and _few(summary, leads):
        fewest = min(min(it.pairs) for it in leads)
        told = too_few(fewest, summary.significance, comparisons)
        others = [it.comparison for it in summary.arms if it.comparison]
        if any(max(it.pairs) > fewest for it in [*leads, *others]):
            told = f"Where arms share the fewest seeds: {told[0].lower()}{told[1:]}"
        yield told
    if any(it.difference.interval and not it.tied for it in leads):
        families = (
            "; each task's pairs, and those over all tasks, by themselves" if summary.tasks else ""
        )
        corrected = (
            f"P-values and intervals of differences are corrected for all {comparisons} pairs of "
            f"arms{families}, so that the best one may be picked by the same runs"
            if comparisons > 1
            else "The p-value is of a paired t-test"
        )
        yield (
            f"{corrected}. In simulations with near normal, skewed and discrete scores, unequal "
            "spreads and a failed seed, hardly more than 1 study in 20 came to any wrong “better” "
            "or “worse” at a significance of 0.05; of scores that were skewed and of unequal "
            "spread at once, up to 1 in 10."
        )
    if len({it.runs for it in summary.arms}) > 1:
        by_runs: dict[int, list[str]] = {}
        for arm in summary.arms:
            by_runs.setdefault(arm.runs, []).append(arm.name)
        counts = "; ".join(f"{runs} of {_some(by_runs[runs])}" for runs in sorted(by_runs))
        yield (
            f"The arms have unequal numbers of final runs: {counts}. The best is picked over the "
            "seeds that all have, where there are such."
        )
    for arm in summary.arms:
        if arm.diverged:
            yield (
                f"{len(arm.diverged)} of {arm.runs} final runs of {arm.name} diverged "
                f"({_places(arm.diverged)}). They count as {worst_in_words(summary.measure)}."
            )
        if arm.unmeasured:
            measure = summary.measure
            yield (
                f"{len(arm.unmeasured)} of {arm.runs} final runs of {arm.name} ended without a "
                f"finite test {measure.words} ({_places(arm.unmeasured)}). They count as "
                f"{_worst(measure)}."
            )
    for task, of_task in (summary.tasks or {"": summary}).items():
        yield from _edges(of_task, f" on {task}" if task else "")


def worst_in_words(measure: Measure) -> str:
    """What a diverged run counts as: "accuracy 0 and infinite loss"."""
    if measure.name == "loss":
        return "infinite loss"
    return f"{_worst(measure)} and infinite loss"


def _worst(measure: Measure) -> str:
    if not measure.share:
        return f"infinitely bad {measure.words}"
    return f"{measure.words} {measure.worst:g}"


def target_short(measure: Measure) -> str:
    """How a run that has not reached the target stands: below it, or above."""
    return "below" if measure.higher_is_better else "above"


def _places(runs: Iterable[tuple[str, int]]) -> str:
    """The seeds of some runs, task by task: "seeds 1 and 2 on fashion"."""
    by_task: dict[str, list[int]] = {}
    for task, seed in runs:
        by_task.setdefault(task, []).append(seed)
    return "; ".join(
        f"seed{'s' * (len(seeds) > 1)} {listed(map(str, seeds))}" + (f" on {task}" if task else "")
        for task, seeds in by_task.items()
    )


def _edges(summary: Summary, where: str) -> Iterable[str]:
    edges: dict[str, list[str]] = {}
    for arm in summary.arms:
        for path in arm.at_edge:
            edges.setdefault(path, []).append(f"{arm.name} ({tuned_value(arm.values[path])})")
    for path, chosen in edges.items():
        yield (
            f"The chosen {short(path)} of {listed(chosen)}{where} lies at the edge of what was "
            "tried; a better one may lie beyond. To look there, run the study again with further "
            "values or a wider range in tune, or with a larger tune.extend, as tune.extend=3, "
            "which grids have whose points all run to their end."
        )


def values_in_words(values: Mapping[str, Any]) -> str:
    """Tuned values, as "0.1" for one and "learning_rate=0.1, weight_decay=0" for several."""
    if len(values) == 1:
        return tuned_value(next(iter(values.values())))
    return ", ".join(f"{short(path)}={tuned_value(value)}" for path, value in values.items())


def steps(arm: ArmSummary) -> str:
    """Median steps to the target, and how many runs reached it when not all did."""
    time = arm.time_to_target
    if time is None:
        return "\N{EN DASH}"
    reached = "" if time.arrived == time.count else f" ({time.arrived}/{time.count})"
    if math.isinf(time.median):
        return f"never{reached}"
    return f"{number(time.median)}{reached}"


def target_in_words(summary: Summary) -> str:
    """What the steps to the target wait for."""
    if summary.tasks:
        return "Each task has a target of its own."
    measure = summary.measure
    if summary.target is None:
        return f"No target {measure.words}: no final run finished."
    source = "a twentieth short of what the best arm ends with"
    if measure.share and measure.higher_is_better:
        source = "95% of what the best arm ends with"
    if summary.target_given:
        source = "as the study sets"
    return f"Target: {_target(summary.target, measure)}, {source}."


def _target(value: float, measure: Measure) -> str:
    told, what = _minus(measure.told(value)), f"validation {measure.words}"
    return f"{told} {what}" if measure.share else f"{what} of {told}"


def reaches(value: float, measure: Measure) -> str:
    """98.12% validation accuracy; a validation RMSE of 1.234."""
    return ("" if measure.share else "a ") + _target(value, measure)


def selected_in_words(summary: Summary) -> str:
    """What tuning keeps: "the highest validation accuracy"."""
    selected = summary.selected_by
    most = "highest" if selected.higher_is_better else "lowest"
    return f"the {most} validation {selected.words}"


def selection_in_words(summary: Summary) -> str:
    """Says that tuning selects by another metric than is reported; empty where it is the same."""
    if summary.selected_by == summary.measure:
        return ""
    return (
        f"Tuning selects by {selected_in_words(summary)}; what is reported and tested is the "
        f"{summary.measure.words}."
    )


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
