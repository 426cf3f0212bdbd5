"""The table of a study in a terminal."""

from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..compare.statistics import Estimate, Summary
from . import words

# From this width on, intervals are written out.
WIDE = 100


def print_table(summary: Summary, console: Console) -> None:
    """Prints one row a variant, best first, and then what the numbers say."""
    wide = console.width >= WIDE
    paths = list(dict.fromkeys(path for it in summary.variants for path in it.values))
    diverged = any(it.diverged for it in summary.variants)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("variant", overflow="fold", min_width=8)
    for title in ("accuracy %", "loss", f"vs {summary.baseline}", "steps"):
        table.add_column(Text(title), justify="right", no_wrap=title != "steps")
    for path in paths:
        table.add_column(
            Text(words.short(path).replace("_", " ")), justify="right", overflow="fold"
        )
    table.add_column("sec", justify="right", no_wrap=True)
    if diverged:
        table.add_column("diverged", justify="right")
    ranked = sorted(summary.variants, key=words.rank)
    for it in ranked:
        cells = [
            it.name,
            _estimate(it.accuracy, wide, words.hundredfold),
            words.loss(it.loss.mean) if it.loss else "",
            _estimate(it.difference, wide, words.points),
            words.steps(it),
            *(words.tuned_value(it.values[path]) if path in it.values else "" for path in paths),
            words.number(it.seconds) if it.seconds is not None else "",
        ]
        if diverged:
            cells.append(f"{it.diverged}/{it.seeds}")
        table.add_row(*map(Text, cells))
    console.print(table)
    conclusion = words.conclude(summary)
    console.print(Text(conclusion.headline, style="bold"))
    for it in ranked:
        if it.name in conclusion.comparisons:
            console.print(Text(f"  {it.name}: {conclusion.comparisons[it.name]}"))
    for line in (words.target_in_words(summary), *conclusion.remarks):
        console.print(Text(line, style="dim"))


def _estimate(value: Estimate | None, wide: bool, words_of: Callable[[float], str]) -> str:
    if value is None or value.interval is None or wide:
        return f"{words_of(value.mean)} {words.interval(value, words_of)}".strip() if value else ""
    half = (value.interval[1] - value.interval[0]) / 2
    return f"{words_of(value.mean)} \N{PLUS-MINUS SIGN}{words.hundredfold(half)}"
