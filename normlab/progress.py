"""How far long work is: a bar on a terminal or in a notebook, now and then a line elsewhere."""

import html
import importlib
import sys
import time
import uuid
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# Seconds between two lines where the output is not a terminal.
LINE_EVERY = 5.0
# Seconds between two changes of a notebook's bar.
CHANGE_EVERY = 0.1


class PipedConsole(Console):
    """A console that raises where nobody reads it any more, instead of ending the process."""

    def on_broken_pipe(self) -> None:
        """Raises the error that is being handled.

        Raises:
            BrokenPipeError: As `normlab compare ... | head -1` has it.
        """
        raise


def progress_bar(console: Console) -> Progress:
    """Returns a bar with counts and times."""
    return Progress(
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class StudyProgress:
    """Shows how far a study is, with its rate and an estimate of what is left.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console):
        self.done = 0
        self.total = 0
        self._console = console
        # What a notebook prints to takes itself for a terminal.
        self._shown = uuid.uuid4().hex if _in_notebook() else ""
        self._bar = progress_bar(console) if console.is_terminal and not self._shown else None
        self._task = self._bar.add_task("starting", total=None) if self._bar else None
        self._found: int | None = None
        self._began = self._told = time.monotonic()
        self._named: set[str] = set()

    def __enter__(self) -> "StudyProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the bar, so that other lines can follow."""
        if self._bar:
            self._bar.stop()

    def advance(self, what: str, done: int, total: int) -> None:
        """Takes note of what is going on.

        Args:
            what: In two or three words.
            done: Runs done.
            total: Runs in all, as far as is known by now; 0 before anything is.
        """
        self.done, self.total = done, total
        if self._found is None and total:
            self._found, self._began = done, time.monotonic()  # What was there says no rate.
        if self._bar is not None and self._task is not None:
            if self._found == done:
                self._bar.reset(self._task, total=total or None, completed=done)
            self._bar.update(self._task, description=what, total=total or None, completed=done)
        elif self._shown:
            self._show(what)
        else:
            self._tell(what)

    def _show(self, what: str) -> None:
        """Makes the one line that a notebook shows say how far it is."""
        now = time.monotonic()
        ended = self.total and self.done == self.total
        if self._named and not ended and now - self._told < CHANGE_EVERY:
            return
        words = self._words(what, now)
        share = f' value="{self.done}" max="{self.total}"' if self.total else ""
        line = f"<progress{share}></progress> {html.escape(words)}"
        bundle = {"text/plain": words, "text/html": f'<div style="white-space:nowrap">{line}</div>'}
        display = importlib.import_module("IPython.display")
        show = display.update_display if self._named else display.display
        show(bundle, raw=True, display_id=self._shown)
        self._told = now
        self._named.add(what)

    def _tell(self, what: str) -> None:
        now = time.monotonic()
        going_on = what in self._named and self.done < self.total
        if going_on and now - self._told < LINE_EVERY:
            return
        self._console.print(self._words(what, now))
        self._told = now
        self._named.add(what)

    def _words(self, what: str, now: float) -> str:
        made = self.done - (self._found or 0)
        words = f"{what}: {self.done} of {self.total} runs" if self.total else what
        if made and self.done < self.total:
            rate = made / (now - self._began)
            left = duration((self.total - self.done) / rate)
            words += f", {rate:.2g} a second, about {left} left"
        return words


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class _Rate(ProgressColumn):
    """Things done in a second."""

    def render(self, task: Task) -> Text:
        """Shows the rate of the last half minute."""
        return Text(f"{task.speed:.2g}/s" if task.speed else "", style="progress.data.speed")


def duration(seconds: float) -> str:
    """Tells a time in words: 40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
