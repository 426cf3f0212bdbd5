"""What long work tells: lines where nobody sees a bar, and times in words."""

import io
import sys
import types
from types import SimpleNamespace

import pytest
from rich.console import Console

from normlab import progress
from normlab.progress import StudyProgress, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_an_arm_and_one_every_few_seconds(clock):
    file = io.StringIO()
    with StudyProgress(Console(file=file, width=80)) as shown:
        shown.advance("reading data", 0, 0)
        shown.advance("tuning a", 10, 50)
        for done in range(11, 31):  # one a second
            clock[0] += 1
            shown.advance("tuning a", done, 50)
        shown.advance("tuning b", 30, 50)
        shown.advance("tuning a", 31, 50)
        shown.advance("tuning b", 50, 50)
    assert file.getvalue().splitlines() == [
        "reading data",
        "tuning a: 10 of 50 runs",
        *(
            f"tuning a: {done} of 50 runs, 1 a second, about {50 - done} s left"
            for done in (15, 20, 25, 30)
        ),
        "tuning b: 30 of 50 runs, 1 a second, about 20 s left",
        "tuning b: 50 of 50 runs",
    ]
    assert (shown.done, shown.total) == (50, 50)


def test_on_a_terminal_there_is_a_bar_with_its_count():
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True)
    with StudyProgress(console) as shown:
        shown.advance("reading data", 0, 0)
        for done in range(5, 9):
            shown.advance("tuning a", done, 8)
    assert "tuning a" in file.getvalue()
    assert "8/8" in file.getvalue()


class Notebook(types.ModuleType):
    """What IPython has in the kernel of a notebook; `lines` are the outputs as they stand."""

    def __init__(self):
        super().__init__("IPython")
        self.get_ipython = lambda: SimpleNamespace(kernel=None)
        self.lines = {}

    def display(self, bundle, *, raw, display_id):
        assert raw
        assert display_id not in self.lines
        self.lines[display_id] = bundle

    def update_display(self, bundle, *, raw, display_id):
        assert raw
        assert display_id in self.lines
        self.lines[display_id] = bundle


def test_in_a_notebook_there_is_one_line_that_changes(clock, monkeypatch):
    notebook = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    file = io.StringIO()
    # The output of a notebook takes itself for a terminal.
    console = Console(file=file, width=100, force_terminal=True, force_jupyter=False)
    with StudyProgress(console) as shown:
        shown.advance("reading data", 0, 0)
        for done in range(1, 9):
            clock[0] += 1
            shown.advance("tuning <a>", done, 8)
    assert file.getvalue() == ""
    ((line),) = notebook.lines.values()
    assert line["text/plain"] == "tuning <a>: 8 of 8 runs"
    assert '<progress value="8" max="8"></progress> tuning &lt;a&gt;' in line["text/html"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99.0, "99 s"), (100.0, "2 min"), (6e3, "1.7 h"), (2e5, "2.3 days")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
