"""The table of a study in a terminal."""

import itertools

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..compare.arm import short_names
from ..compare.summary import ArmSummary, Summary
from ..inference.estimates import Estimate
from ..inference.measure import Measure, in_units
from ..inference.verdict import Comparison, digits_beside
from . import words

UNLIMITED = 10_000


def print_table(summary: Summary, console: Console) -> None:
    """Prints one row an arm, best first, and then what the numbers say.

    With factors the arms of one combination of levels stand together.
    """
    table = _table(summary, intervals=True)
    # Measured as if there were room enough, since a measure never exceeds the width at hand.
    roomy = console.options.update(width=UNLIMITED)
    if console.measure(table, options=roomy).minimum > console.width:
        table = _table(summary, intervals=False)
    console.print(table)
    conclusion = words.conclude(summary)
    console.print(Text(conclusion.headline, style="bold"))
    if conclusion.belief:
        console.print(Text(conclusion.belief))
    for name, said in (conclusion.levels | conclusion.tasks).items():
        console.print(Text(f"  {name}: {said}"))
    for it in sorted(summary.arms, key=words.by_rank(summary)):
        if it.name in conclusion.comparisons:
            console.print(Text(f"  {conclusion.comparisons[it.name]}"))
    notes = words.target_in_words(summary), words.selection_in_words(summary)
    for line in (*filter(None, notes), *conclusion.remarks):
        console.print(Text(line, style="dim"))


def _table(summary: Summary, *, intervals: bool) -> Table:
    """The table, with intervals written out or as half their width."""
    contests = [
        sorted((summary[name] for name in it.arms), key=words.by_rank(summary))
        for it in summary.contests
    ]
    ranked = [arm for arms in contests for arm in arms]
    measure = summary.measure
    heading = f"{measure.words} %" if measure.share else measure.heading()
    columns = {
        heading: [_estimate(it.mean, measure, intervals) for it in ranked],
        f"vs {summary.baseline}": [_difference(it.comparison, intervals) for it in ranked],
        "verdict": [_verdict(it, summary) for it in ranked],
    }
    if any(it.time_to_target for it in ranked):
        columns["steps"] = [words.steps(it) for it in ranked]
    for path, name in short_names(path for it in ranked for path in it.values).items():
        columns[name.replace("_", "\n")] = [
            words.tuned_value(it.values[path]) if path in it.values else "" for it in ranked
        ]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    # Only names break: Rich would shorten the widest column first, which numbers must not be.
    least = min(8, max(len(it.name) for it in ranked))
    table.add_column("arm", overflow="fold", min_width=least)
    for title, cells in columns.items():
        width = max(map(len, [*title.splitlines(), *cells]))
        justify = "left" if title == "verdict" else "right"
        table.add_column(Text(title), justify=justify, no_wrap=True, min_width=width)
    ends = set(itertools.accumulate(map(len, contests)))
    for row, arm in enumerate(ranked):
        cells = [arm.name, *(column[row] for column in columns.values())]
        table.add_row(*map(Text, cells), end_section=row + 1 in ends)
    return table


def _verdict(arm: ArmSummary, summary: Summary) -> str:
    if arm.comparison:
        return arm.comparison.verdict
    return "baseline" if arm.name == summary.baselines[arm.name] else ""


def _difference(compared: Comparison | None, intervals: bool) -> str:
    if compared is None:
        return ""
    if compared.difference.interval is None or intervals:
        return words.difference_with_interval(compared)
    # As many digits as tell both ends, which a reader computes from these two.
    low, high = compared.difference.interval
    value, half = compared.difference.value, (high - low) / 2
    digits = digits_beside(
        {value: [half, -half, compared.margin - half, half - compared.margin]}, compared.measure
    )
    digits = max(digits, compared.digits)
    told = words.signed(value, digits, compared.measure)
    return f"{told} ±{in_units(half, digits, compared.measure)}"


def _estimate(value: Estimate | None, measure: Measure, intervals: bool) -> str:
    if value is None or value.interval is None or intervals:
        return words.estimated(value, measure)
    # Student's t intervals are symmetric, but for what is cut off where no share can be.
    low, high = value.interval
    half = max(high - value.value, value.value - low)
    middle = words.value_of(measure)(value.value)
    return f"{middle} \N{PLUS-MINUS SIGN}{measure.number(half, value.value)}"
