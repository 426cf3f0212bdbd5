"""Watching a study or a run from beside it, on this machine or another that shares the folder.

Files are read, and none is locked or written, so that whoever makes the runs notices nothing.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .compare.metric import measures_of
from .compare.status import Status, failures_in_words, read_status
from .compare.store import Store, StoreError
from .compare.under_way import Course, SavedRuns, is_saved, last_course, read_saved
from .inference.measure import Measure
from .progress import duration
from .spec import displayed

EVERY = 2.0  # seconds between two looks
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 24
_MOST_ROWS = 40


@dataclass(frozen=True)
class Seen:
    """What a folder told when it was looked at.

    Attributes:
        summary: A line.
        rows: What the table has below its columns.
        columns: Their titles.
        remarks: Lines below the table.
        end: Says that nothing is left to watch, and why; empty as long as something is.
    """

    summary: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    remarks: list[str]
    end: str = ""


class Watched:
    """A folder that is looked at again and again; results are read when there are new ones.

    Args:
        folder: Of a study, or that `normlab train` saves a run in.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._of: tuple[Any, ...] = ()
        self._status: Status | None = None
        self._config: Mapping[str, Any] = {}

    def state(self) -> tuple[Any, ...]:
        """Returns what changes with each result, failure or checkpoint."""
        names = ("config.yaml", "plan.json", "runs", "failed", "run.json", ".")
        return tuple(_changed(self.folder / name) for name in names)

    def look(self) -> Seen:
        """Looks at the folder.

        Raises:
            NoStudyError: It holds neither a study nor a run.
            StoreError: A file that is not of a single run is damaged.
        """
        if is_saved(self.folder):
            return _saved(read_saved(self.folder))
        now = self.state()
        if self._status is None or now != self._of:
            self._status = read_status(self.folder, claims=False)
            self._config = Store(self.folder).config()
            self._of = now
        return self._study(self._status)

    def _study(self, status: Status) -> Seen:
        reported, _ = measures_of(self._config)
        rows = []
        for title, it in status.arms.items():
            course = last_course(self.folder, status.runs[title])
            counts = (f"{it.done} of {it.planned}", str(it.diverged or ""), str(it.failed or ""))
            rows.append((title, *counts, *_course(course, reported)))
        total = status.total
        summary = f"{total.done} of {total.planned} runs are done"
        if total.left and status.seconds_left is not None:
            summary += f"; about {duration(status.seconds_left)} left, with one at a time"
        end = ""
        if not total.left:
            end = "The study is finished."
        elif total.left == total.failed:
            end = "The runs that are left have failed, and no other is left."
        remarks = [*failures_in_words(status.failures), *status.left_aside]
        columns = ("arm", "runs", "diverged", "failed", *_columns(reported))
        return Seen(summary, columns, rows, remarks, end)


def page_of(folder: Path) -> str:
    """Returns the page of what a folder has now, as HTML.

    Raises:
        StoreError: It is damaged, or just being written.
    """
    from .report import read_study
    from .report.page import page_of
    from .report.run_page import run_page

    return run_page(read_saved(folder)) if is_saved(folder) else page_of(read_study(folder))


def watch(folder: Path, console: Console, every: float = EVERY) -> None:
    """Shows how far a study or run is until it is finished.

    Args:
        folder: The study's, or the run's.
        console: Where to; a terminal has a table that changes, anything else a line a change.
        every: Seconds between two looks.

    Raises:
        NoStudyError: The folder holds neither.
        StoreError: It is damaged at the first look.
    """
    watched = Watched(folder)
    seen = watched.look()
    with _shown(console) as show:
        while True:
            show(seen)
            if seen.end:
                break
            time.sleep(every)
            try:
                seen = watched.look()
            except StoreError as error:  # It is being written anew, or was taken away.
                seen = Seen(displayed(str(error)), (), [], [])
    console.print(seen.end)


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[Seen], object]]:
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            height = max(5, min(_MOST_ROWS, console.height - 8))
            yield lambda seen: live.update(_drawn(seen, height), refresh=True)
        return
    told: list[str] = []

    def tell(seen: Seen) -> None:
        lines = [seen.summary, *seen.remarks]
        if lines != told:
            for line in (it for it in lines if it not in told):
                console.print(line, soft_wrap=True)
            told[:] = lines

    yield tell


def _drawn(seen: Seen, most: int) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for place, title in enumerate(seen.columns):
        table.add_column(title, overflow="fold" if place == 0 else "ellipsis", no_wrap=place > 0)
    for row in seen.rows[:most]:
        table.add_row(*map(Text, row))
    more = len(seen.rows) - most
    below = [f"and {more} more, as `normlab status` tells"] if more > 0 else []
    lines = [Text(it) for it in (*below, *seen.remarks)]
    return Group(Text(seen.summary, style="bold"), table, *lines)


def _columns(measure: Measure) -> tuple[str, ...]:
    return ("last run", "step", "train loss", measure.heading("validation"), "its curve", "ago")


def _course(course: Course | None, measure: Measure) -> tuple[str, ...]:
    """What the columns of the last run have."""
    if course is None:
        return ("",) * len(_columns(measure))
    losses = course.metrics.get("train_loss", [])
    values = course.metrics.get(f"validation_{measure.name}", [])
    there = [it for it in values if it is not None]
    return (
        _place(course.run),
        str(course.step[-1]) if course.step else "",
        f"{losses[-1]:.4f}" if losses and losses[-1] is not None else "",
        measure.told(there[-1]) if there else "",
        curve(values if there else losses),
        duration(course.age),
    )


def _place(run: str) -> str:
    """Phase and seed of a run, as "final 3", beside the name of its arm."""
    phase, *rest = run.split("-")
    return f"{phase} {rest[-2]}" if len(rest) > 2 else displayed(run)


def _saved(runs: SavedRuns) -> Seen:
    reported, _ = measures_of(runs.config)
    rows = [(displayed(it.run), *_course(it, reported)[1:]) for it in runs.courses]
    step = max((it.step[-1] for it in runs.courses if it.step), default=0)
    of_all = f" of {runs.steps}" if runs.steps else ""
    summary = f"{displayed(str(runs.config['study']))}: saved up to step {step}{of_all}"
    end = "The run is finished." if runs.is_finished else ""
    return Seen(summary, ("run", *_columns(reported)[1:]), rows, [], end)


def curve(values: Sequence[float | None]) -> str:
    """Draws a curve in a line of bars; a blank where there is no value."""
    there = [it for it in values if it is not None]
    if not there:
        return ""
    # The last point always, and those before it at equal distances.
    count = min(len(values), _WIDTH)
    places = [round(place * (len(values) - 1) / max(1, count - 1)) for place in range(count)]
    low, span = min(there), max(there) - min(there)
    drawn = (values[place] for place in places)
    return "".join(
        " " if it is None else _BARS[round((it - low) / span * (len(_BARS) - 1)) if span else 0]
        for it in drawn
    )


def _changed(path: Path) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:  # It is not there yet.
        return None
