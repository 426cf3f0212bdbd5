"""What a process that makes runs for another one does: it gets the study as data."""

import functools
import importlib
import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import UserError
from ...interrupts import StoppedError
from ...modules import import_modules
from ...user_code import explained
from ..arm import Arm
from ..environment import describe_device
from ..grid import make_runs
from ..kept import saves
from ..store import Failure, Result, Store, writing
from ..study import Study, StudyError, study_type
from ..workbench import Group, Workbench


@dataclass(frozen=True)
class Setting:
    """All that a worker must know to make any run of a study.

    Attributes:
        study: The study as JSON.
        environment: As JSON, what the runs are recorded to be made with.
        path: Where Python looks for modules.
        folder: The study's folder, for the curves; None where workers may not see it.
        saves: The study's folder, for checkpoints and weights; None if it has none.
        stop: A file that says, once it is there, that the study stops and what is under way is to
            be saved; None likewise.
    """

    study: str
    environment: str
    path: tuple[str, ...]
    folder: str | None
    saves: str | None = None
    stop: str | None = None


@dataclass(frozen=True)
class Order:
    """One run of a study, as data."""

    phase: Literal["tune", "final"]
    arm: Arm
    seed: int
    values: dict[str, Any]
    until: int | None


def setting(study: Study, environment: dict[str, Any], store: Store, *, curves: bool) -> Setting:
    """Describes a study to workers.

    Args:
        study: The study.
        environment: What the runs are recorded to be made with.
        store: Its folder.
        curves: Whether the workers write the curves of their runs.
    """
    folder = store.folder.resolve()
    told = study.model_dump_json(), json.dumps(environment), tuple(sys.path)
    written = str(folder) if curves else None
    if not saves(study):
        return Setting(*told, written)
    stops = folder / "checkpoints" / "stops"
    with writing(stops):
        stops.mkdir(parents=True, exist_ok=True)
    return Setting(*told, written, str(folder), str(stops / uuid.uuid4().hex))


@contextmanager
def stopping(setting: Setting) -> Iterator[None]:
    """Has workers save what they are at and leave it."""
    if setting.stop is None:
        yield
        return
    stop = Path(setting.stop)
    with suppress(OSError):  # On a full disk they go on until they are killed.
        stop.touch()
    try:
        yield
    finally:
        stop.unlink(missing_ok=True)


def orders(group: Group) -> list[Order]:
    """Describes the runs of a group."""
    return [Order(run.phase, run.arm, run.seed, run.values, run.until) for run in group.runs]


def work(setting: Setting, ordered: Sequence[Order], width: int) -> list[Result | Failure]:
    """Trains a group in this process.

    Returns:
        The results; none if the study stops, and the runs are saved.

    Raises:
        UserError: If this process cannot make the runs of the study as they are to be recorded.
    """
    study, bench, store = _opened(setting)
    runs = [
        run
        for it in ordered
        for run in make_runs(study, it.phase, it.arm, [it.seed], it.values, it.until)
    ]
    try:
        return bench.attempt(Group(tuple(runs), width), store)
    except StoppedError:
        return []


def check(group: Group, results: Sequence[Result | Failure], bench: Workbench) -> None:
    """Makes sure that a worker made the runs that it was asked for.

    Raises:
        StudyError: If it has other code or data than this process, or was told to stop.
    """
    if not results:
        raise StudyError("the study was stopped")
    for run, result in zip(group.runs, results, strict=True):
        if result.id != bench.name(run):
            mine, theirs = bench.identify(run)[1], getattr(result, "identity", {})
            other = [key for key in mine if mine[key] != theirs.get(key)]
            raise StudyError(
                f"a worker made {result.id} instead of {bench.name(run)}: it differs in "
                f"{', '.join(other) or 'code or data'}. Give all workers the same code and data."
            )


@functools.cache
def _opened(setting: Setting) -> tuple[Study, Workbench, Store | None]:
    sys.path[:] = dict.fromkeys([*setting.path, *sys.path])
    importlib.invalidate_caches()
    raw, environment = json.loads(setting.study), json.loads(setting.environment)
    _, errors = import_modules(raw["modules"], Path())
    try:
        for error in errors.values():
            raise error
        study = study_type().model_validate(raw)
    except (Exception, SystemExit) as error:  # Whatever the user's code raises is told as theirs.
        raise UserError(
            "a worker does not know all that the study names; list your modules in `modules`, and "
            f"let workers find them: {explained(error)}"
        ) from error
    if environment["device"] != describe_device():
        raise UserError(
            f"a worker computes on {describe_device()}, but the study was started on "
            f"{environment['device']}, where numbers may round differently; start it on a machine "
            "like those of the workers"
        )
    saves_in, stop = (Path(it) if it else None for it in (setting.saves, setting.stop))
    if stop is not None and not stop.parent.is_dir():
        raise UserError(
            f"train.checkpoint_every, keep and log: a worker does not see {saves_in}; give --out a "
            "folder that all machines share, or leave them out"
        )
    bench = Workbench(environment, folder=saves_in, stop=stop)
    return study, bench, Store(setting.folder) if setting.folder else None
