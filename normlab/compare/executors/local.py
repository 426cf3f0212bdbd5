"""Runs in this process: each arm's program is compiled once, while earlier arms train."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from ..store import Failure, Result, Store
from ..workbench import Group, Workbench
from .interface import Executor

# Tracing holds Python's lock and compiling does not, so that two at a time keep two cores busy.
COMPILING_THREADS = 2

# A step that takes less, in seconds, keeps one core busy. Then as many runs as there are cores go
# at a time; what each comes to does not depend on it.
SHORT_STEP = 0.002


class LocalExecutor(Executor):
    """Trains in threads of this process.

    Args:
        bench: Data and programs.
        store: Takes the curves as training goes.
        saves: Whether runs are saved, which is waited for.
        alone: Whether a run is spread over devices, which then must not wait for each other in
            two programs at a time.
    """

    def __init__(self, bench: Workbench, store: Store, *, saves: bool, alone: bool = False):
        self._saves = saves
        self._bench = bench
        self._alone = alone
        self._store = store
        self._training = ThreadPoolExecutor(os.cpu_count() or 1)
        self._compiling = ThreadPoolExecutor(COMPILING_THREADS)

    @property
    def slots(self) -> int:
        """One; on a CPU more than it has cores, once a first run shows that steps are short.

        The one beyond its cores begins at once where another ends, whose results are yet to be
        written.
        """
        step = None if self._alone else self._bench.seconds_of_step
        short = step is not None and step < SHORT_STEP
        return (os.cpu_count() or 1) + 1 if short and jax.default_backend() == "cpu" else 1

    def prepare(self, groups: Sequence[Group]) -> None:
        """Compiles in the background, in the order of the groups."""
        # Not while they are traced: what is wrong with a later arm would wait for the compiler.
        for programs in self._bench.trace(groups):
            self._compiling.submit(programs.compile)

    def submit(self, group: Group) -> Future[list[Result | Failure]]:
        """Trains in a thread."""
        return self._training.submit(self._bench.attempt, group, self._store)

    def close(self) -> None:
        """Lets no further run begin, and ends those under way with their epoch, or saved."""
        self._bench.stop()
        self._compiling.shutdown(wait=False, cancel_futures=True)
        self._training.shutdown(wait=self._saves, cancel_futures=True)
