"""How records of this package look when they are printed."""

import io
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Printed:
    """A record that rich prints as a table, and `print` as that table without colours."""

    def __rich__(self) -> Table:
        """Returns the table."""
        raise NotImplementedError

    def __str__(self) -> str:
        # In a notebook Rich would also show there what is printed.
        console = Console(file=io.StringIO(), width=160, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Returns a table of text."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made
