"""The results of a study, read from its folder for Python and notebooks, without JAX."""

import io
from functools import cached_property
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
from rich.console import Console
from rich.text import Text

from .compare.export import curve_table, probe_table, run_table
from .compare.fingerprint import of_config
from .compare.status import failures_in_words
from .compare.store import Failure, Store
from .errors import UserError
from .report import Study, print_table, read_study, write_report
from .report.charts import overview_chart
from .report.notebook import notebook_html
from .report.words import conclude

WIDTH = 100


class Results:
    """What a study came to so far; shows itself as the table and the verdicts.

    The data frames are of Polars: `results.runs.to_pandas()` makes one of pandas, if that is
    installed.

    Args:
        folder: What `normlab.compare` or the command of that name wrote.

    Raises:
        NoStudyError: The folder holds no study.
        StoreError: A file that is not of a single run is damaged.
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
        self.failures: list[Failure] = Store(self.folder).failures()
        """The runs that failed, with message, place and traceback; the next call tries them again.
        """

    @property
    def hash(self) -> str:
        """The hash of the study, as `Study.hash`."""
        return of_config(self.config)

    @property
    def unpaired(self) -> list[str]:
        """Which arms do not start from the weights of their baselines, in a sentence each."""
        return self._study.unpaired

    @property
    def left_aside(self) -> tuple[str, ...]:
        """Which files of runs cannot be used and why, in a line each."""
        return self._study.left_aside

    @cached_property
    def runs(self) -> pl.DataFrame:
        """One row a run, as a `polars.DataFrame`.

        Its columns are `id`, `phase`, `arm`, `task` and `seed`; one for each factor and each tuned
        value, by its path; the metrics at the end of the curve and of the test split; `steps`,
        `epochs`, `seconds` and `status`. Values of several kinds in one column are JSON.
        """
        return run_table(self.folder)

    @cached_property
    def curves(self) -> pl.DataFrame:
        """One row a point of the curve of each run, as a `polars.DataFrame`.

        Its columns are those that say which run it is, `epoch`, `step` and the metrics.
        """
        return curve_table(self.folder)

    @cached_property
    def probes(self) -> pl.DataFrame:
        """One row a value that a probe found inside a run, as a `polars.DataFrame`.

        Its columns are those that say which run it is, `step`, `probe`, `quantity`, `of` (the
        layer, parameter or step) and `value`; no rows and columns for a study without probes.
        """
        return probe_table(self.folder)

    @cached_property
    def report(self) -> Path:
        """The path of the page, which is written when it is first asked for."""
        return write_report(self.folder)

    def plot(self) -> alt.HConcatChart:
        """Returns the overview of the study as an Altair chart: curves beside final results.

        Raises:
            UserError: No final run is done yet.
        """
        if not self._study.done("final"):
            raise UserError(f"{self.folder}: no final run is done, so there is nothing to plot yet")
        return overview_chart(self._study)

    def __repr__(self) -> str:
        return self._printed().export_text()

    def __rich__(self) -> Text:
        return Text.from_ansi(self._printed().export_text(styles=True))

    def _repr_html_(self) -> str:
        return notebook_html(self._study, self.folder, failures_in_words(self.failures))

    def _printed(self) -> Console:
        # In a notebook Rich would show all that is printed there, whatever file it is printed to.
        console = Console(
            file=io.StringIO(), record=True, width=WIDTH, markup=False, force_jupyter=False
        )
        console.print(f"{self._study.name}: {self._study.setting}", highlight=False)
        print_table(self.summary, console)
        failed = failures_in_words(self.failures)
        for sentence in (*failed, *self.unpaired, *self.left_aside):
            console.print(sentence, highlight=False)
        console.print(f"Folder: {self.folder}", highlight=False, soft_wrap=True)
        return console


def read_results(folder: str | Path) -> Results:
    """Reads the results of a study, finished or under way.

    Args:
        folder: Where `normlab compare` left them.

    Raises:
        NoStudyError: The folder holds no study.
        StoreError: A file that is not of a single run is damaged.
    """
    return Results(folder)
