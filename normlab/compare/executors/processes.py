"""Runs in processes of this machine; one that dies is replaced, and its runs begin again."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import jax

from ...errors import UserError
from ...user_code import Explained
from ..store import Failure, Result
from ..study import StudyError
from ..workbench import Group, Workbench
from .interface import ATTEMPTS, Executor
from .worker import Setting, check, orders, stopping, work

# A process that was forked could not use JAX.
_SPAWN = multiprocessing.get_context("spawn")


# Seconds that a process whose connection is closed has to end by itself.
GRACE = 2.0

_WORKER = "normlab worker"
_UNGUARDED = 77
_GUARD = (
    "executor: processes: the script starts the study outside of `if __name__ == '__main__':`; "
    "each worker runs the script once more and would start it again. Put the call under that "
    "line, or give executor=local."
)


def end_unguarded() -> None:
    """Ends a worker that comes to start a study itself, as a script without a main guard has it."""
    process = multiprocessing.current_process()
    if process.name == _WORKER and getattr(process, "_inheriting", False):
        os._exit(_UNGUARDED)


@dataclass
class _Seat:
    """The place of one worker, whoever holds it."""

    number: int
    process: BaseProcess | None = None
    connection: Any = None
    program: Any = field(default=None)


class ProcessExecutor(Executor):
    """Trains in worker processes.

    The processes are not bound to cores: the compiler cuts its work by the number of cores that it
    may use, and other cuts round differently.

    Args:
        bench: Names the runs.
        setting: What the workers must know.
        workers: How many; None for one for each GPU, or for each core.

    Raises:
        StudyError: On a TPU, which belongs to one process.
    """

    def __init__(self, bench: Workbench, setting: Setting, workers: int | None):
        if jax.default_backend() == "tpu":
            raise StudyError("executor: a TPU belongs to one process; give executor=local")
        self._bench = bench
        self._setting = setting
        self._gpus = jax.local_device_count() if jax.default_backend() == "gpu" else 0
        self._seats = [_Seat(number) for number in range(workers or self._gpus or _cores())]
        self._idle: queue.SimpleQueue[_Seat] = queue.SimpleQueue()
        for seat in self._seats:
            self._idle.put(seat)
        # Ctrl-C goes to all processes of a terminal. Workers inherit that it is not for them, but
        # not from a thread that starts this helper of theirs, which lets it through again.
        resource_tracker.ensure_running()
        self._threads = ThreadPoolExecutor(len(self._seats), initializer=_block_interrupts)
        self._closing = threading.Lock()
        self._closed = False

    @property
    def slots(self) -> int:
        """The number of workers."""
        return len(self._seats)

    def prepare(self, groups: Sequence[Group]) -> None:
        """Compiles nothing: the workers do, as they need it."""
        self._bench.trace(groups)

    def submit(self, group: Group) -> Future[list[Result | Failure]]:
        """Trains in the next worker that is free."""
        return self._threads.submit(self._train, group)

    def close(self) -> None:
        """Kills the workers, once what is under way is saved if the study says so."""
        with self._closing:
            self._closed = True
        if self._setting.stop is not None:
            with stopping(self._setting):
                self._threads.shutdown(wait=True, cancel_futures=True)
        with self._closing:
            for seat in self._seats:
                if seat.process is not None:
                    seat.process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for seat in self._seats:
            if seat.process is not None:
                seat.process.join()

    def _train(self, group: Group) -> list[Result | Failure]:
        seat = self._idle.get()
        try:
            for _ in range(ATTEMPTS):
                self._fill(seat)
                try:
                    seat.connection.send((orders(group), group.width))
                    answer = seat.connection.recv()
                except (EOFError, OSError):
                    # Its end of the connection closes a moment before the process has ended.
                    assert seat.process is not None
                    seat.process.join(GRACE)
                    seat.process.kill()
                    seat.process.join()
                    if seat.process.exitcode == _UNGUARDED:
                        raise StudyError(_GUARD) from None
                    continue
                if isinstance(answer, UserError):
                    raise answer
                check(group, answer, self._bench)
                return answer
            assert seat.process is not None
            code = seat.process.exitcode
            died = f"its process died {ATTEMPTS} times, at last with exit code {code}"
            return self._bench.failures(group, Explained(died, "", ""))
        finally:
            self._idle.put(seat)

    def _fill(self, seat: _Seat) -> None:
        """Starts a process where there is none that lives."""
        with self._closing:
            if self._closed:
                raise StudyError("the study was stopped")
            if seat.process is not None and seat.process.is_alive():
                return
            seat.connection, theirs = _SPAWN.Pipe()
            gpu = seat.number % self._gpus if self._gpus else None
            process = _SPAWN.Process(
                target=_serve, args=(theirs, self._setting, gpu), daemon=True, name=_WORKER
            )
            process.start()
            seat.process = process
            theirs.close()


def _serve(connection: Connection, setting: Setting, gpu: int | None) -> None:
    """Trains what comes, until nothing comes any more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = visible.split(",") if visible else [str(gpu)] * (gpu + 1)
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[gpu]
    while True:
        try:
            ordered, width = connection.recv()
        except EOFError:
            return
        try:
            connection.send(work(setting, ordered, width))
        except UserError as error:
            connection.send(UserError(str(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _block_interrupts() -> None:
    # They come as a terminal is closed, too; SIGTERM ends a worker that somebody means to end.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})


def _cores() -> int:
    return os.cpu_count() or 1
