"""What signals to stop do: Ctrl-C, and those that end a process or come as its terminal closes.

A command ends at once, since whatever is written appears whole or not at all. While a study runs,
the signal is noted instead, and looked at where work can be left; a second one ends at once.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_SHOW_CURSOR = "\x1b[?25h"  # which a progress bar hides


class StoppedError(BaseException):
    """A signal to stop came; raised where work can be left."""


class _Said:
    """Whether the process has told that it was stopped."""

    yet = False


def end_at_signals() -> None:
    """Has this process end at once, with a word, where a signal to stop comes.

    Signals that came while it was started anew, by `normlab.process.settle`, come now. What is
    ignored, as by `nohup`, stays so.
    """
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def hold_back() -> None:
    """Lets signals to stop wait until `end_at_signals`, also through the start of a program."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _end(number: int, _: FrameType | None) -> None:
    _flush()
    command = shlex.join(["normlab", *sys.argv[1:]])
    _tell(lambda: f"Stopped; to go on:\n  {command}")
    os._exit(128 + number)


class Interrupts:
    """Notes the signals to stop that come within it, and passes them on at its end.

    In a thread other than the main one, which no signal comes to, it does nothing.

    Args:
        words: What to tell who stops it.
    """

    def __init__(self, words: Callable[[], str]):
        self._words = words
        self._before: dict[int, Any] = {}
        self._noted: int | None = None
        self._passed_on = False

    def __enter__(self) -> "Interrupts":
        _Said.yet = False
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # What is ignored, as by `nohup`, stays so; None is not Python's.
                if (before := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()
        if self._noted is not None and not self._passed_on:
            _flush()
            self._pass_on(self._noted)

    def told(self) -> None:
        """Says that whoever stopped it has been told."""
        _Said.yet = True

    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._noted is not None

    def ask(self) -> None:
        """Does as if a signal to stop had come, unless one has."""
        if self._noted is None:
            self._note(signal.SIGTERM, None)

    def check(self) -> None:
        """Has work be left if a signal has come.

        Raises:
            StoppedError: One has.
        """
        if self.asked():
            raise StoppedError

    def _note(self, number: int, _: FrameType | None) -> None:
        # No lock is taken here, which the interrupted code may hold.
        if self._noted is None:
            self._noted = number
            _write(2, "Stopping; a second signal ends it at once.")
            return
        self._restore()
        self._pass_on(self._noted)

    def _pass_on(self, number: int) -> None:
        self._passed_on = True
        _tell(self._words)
        signal.raise_signal(number)

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (RuntimeError, OSError, ValueError):  # It is being written to, gone, or closed.
            continue


def _tell(words: Callable[[], str]) -> None:
    """Tells once that the process was stopped, past buffers that it may be writing to."""
    if _Said.yet:
        return
    _Said.yet = True
    _write(1, words())


def _write(descriptor: int, words: str) -> None:
    try:
        cursor = _SHOW_CURSOR if os.isatty(descriptor) else ""
        os.write(descriptor, f"{cursor}{words}\n".encode(errors="backslashreplace"))
    except OSError:  # Nobody is there any more, as where a terminal was closed.
        return
