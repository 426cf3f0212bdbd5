"""The results of a study, read from its folder for Python and notebooks, without JAX."""

import io
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.text import Text

from .compare.export import curve_table, run_table
from .compare.fingerprint import of_config
from .report import Study, print_table, read_study, write_report
from .report.words import conclude

WIDTH = 100


class Results:
    """What a study came to so far; shows itself as the table and the verdicts.

    Args:
        folder: What `normlab.compare` or the command of that name wrote.

    Raises:
        NoStudyError: The folder holds no study.
        StoreError: A file is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._study: Study = read_study(self.folder)
        self.summary = self._study.summary
        self.config: dict[str, Any] = self._study.config
        conclusion = conclude(self.summary)
        self.headline: str = conclusion.headline
        """Which arm won, by how much."""
        self.verdicts: dict[str, str] = conclusion.comparisons
        """Arm -> how it compares with its baseline."""

    @property
    def hash(self) -> str:
        """The hash of the study, as `Study.hash`."""
        return of_config(self.config)

    @cached_property
    def runs(self) -> pl.DataFrame:
        """One row a run: where it stands, its values, its last metrics, its status."""
        return run_table(self.folder)

    @cached_property
    def curves(self) -> pl.DataFrame:
        """One row an epoch of each run."""
        return curve_table(self.folder)

    @cached_property
    def report(self) -> Path:
        """The path of the page, which is written when it is first asked for."""
        return write_report(self.folder)

    def __repr__(self) -> str:
        return self._printed().export_text()

    def __rich__(self) -> Text:
        return Text.from_ansi(self._printed().export_text(styles=True))

    def _repr_html_(self) -> str:
        # The colours of the notebook, which may be dark.
        return self._printed().export_html(inline_styles=True, code_format="<pre>{code}</pre>")

    def _printed(self) -> Console:
        console = Console(file=io.StringIO(), record=True, width=WIDTH, markup=False)
        console.print(f"{self._study.name}: {self._study.setting}", highlight=False)
        print_table(self.summary, console)
        console.print(f"Folder: {self.folder}", highlight=False, soft_wrap=True)
        return console


def read_results(folder: str | Path) -> Results:
    """Reads the results of a study, finished or under way.

    Args:
        folder: Where `normlab compare` left them.

    Raises:
        NoStudyError: The folder holds no study.
        StoreError: A file is damaged.
    """
    return Results(folder)
