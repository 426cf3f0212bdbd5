"""The table of costs in a terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .step import StepCost

_UNITS = ("", "k", "M", "G", "T", "P")


def print_costs(costs: Sequence[StepCost], console: Console) -> None:
    """Prints one table a target, one row an arm, and what the columns say."""
    for target in dict.fromkeys(cost.target for cost in costs):
        of_target = [cost for cost in costs if cost.target == target]
        least = min(cost.program.traffic for cost in of_target)
        chips = of_target[0].chips
        console.print(Text(f"{target}, {chips} {'chip' if chips == 1 else 'chips'}", style="bold"))
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("variant", overflow="fold", min_width=8)
        for title in ("traffic", "passes", "more", "memory", "work", "exchanges", "time"):
            table.add_column(title, justify="right", no_wrap=True)
        for cost in of_target:
            program = cost.program
            more = (program.traffic - least) / cost.normalized if cost.normalized else None
            table.add_row(
                Text(cost.arm),
                f"{_short(program.traffic)}B",
                "" if cost.passes is None else f"{cost.passes:.1f}",
                "" if more is None else f"+{more:.1f}",
                f"{_short(program.memory)}B",
                _short(program.operations),
                _exchanges(cost),
                "" if program.seconds is None else f"{_short(program.seconds)}s",
            )
        console.print(table)
    for line in (
        "Of one training step, for each chip; compiled, not run.",
        "passes     traffic / all that enters the normalization layers of the chip",
        "more       passes beyond those of the variant with the least traffic",
        "memory     at the peak; work: floating-point operations",
        "exchanges  collectives between chips: how many, and what a chip puts in",
        "time       the compiler's estimate, where it makes one",
    ):
        console.print(Text(line, style="dim"))


def _exchanges(cost: StepCost) -> str:
    every = cost.program.exchanges
    return f"{every.count} ({_short(every.bytes)}B)" if every.count else "0"


def _short(number: float) -> str:
    """A number to three digits, with a unit: 12.3 G."""
    if 0 < number < 1:
        return f"{number * 1e3:.3g} m" if number >= 1e-3 else f"{number * 1e6:.3g} u"
    power = 0
    while number >= 999.5 and power < len(_UNITS) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {_UNITS[power]}"
