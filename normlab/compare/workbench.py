"""The data sets and compiled programs of a study, and its runs as these make them."""

import hashlib
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ..data import Dataset, DataSpec, blocks, load
from ..interrupts import StoppedError
from ..models import network_of
from ..objectives import Objective
from ..spec import Targets
from ..train import (
    Feed,
    Hook,
    Outcome,
    Placed,
    Programs,
    Record,
    RecordHook,
    Resident,
    Streamed,
    fit,
    place,
)
from ..train.processes import with_others
from ..user_code import Explained, explained, with_place
from .grid import Run, identifier
from .kept import Saved, Saving, Weights, checkpoint_folder
from .loggers import logging_to
from .probing import probe_hooks
from .store import Curve, Failure, Label, Result, Store
from .study import Study, StudyError

# The share of an accelerator's memory that runs trained at a time may fill.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Group:
    """Runs of one program that are trained at a time.

    Attributes:
        runs: These.
        width: How many the program trains; the places left over are filled up.
    """

    runs: tuple[Run, ...]
    width: int


class Workbench:
    """Data sets and compiled programs, each made once and kept for all runs that share it.

    Args:
        environment: Versions and device, part of the identity of every run.
        check: Called where work can be left; it raises to have that done.
        folder: Where checkpoints and weights go, if the study has any.
        stop: A file that says, once it is there, that the study stops.
        spread: Whether runs are spread over devices as their study says; not where they are made
            elsewhere and this process only traces them.
    """

    def __init__(
        self,
        environment: dict[str, Any],
        check: Callable[[], None] = lambda: None,
        folder: Path | None = None,
        stop: Path | None = None,
        *,
        spread: bool = True,
    ):
        self.check = check
        self._folder = folder
        self._stop_file = stop
        self._spread = spread
        self._versions = {key: environment[key] for key in ("packages", "device")}
        self._git_revision = environment["git_revision"]
        self._data: dict[tuple[DataSpec, Targets], tuple[Placed | None, Dataset, str]] = {}
        self._programs: dict[Any, Programs] = {}
        self._names: dict[int, str] = {}
        self._making = threading.RLock()
        self._stopping = threading.Event()
        self.seconds_of_step: float | None = None
        """What a step of the first run took, as soon as that is known."""

    def name(self, run: Run) -> str:
        """Returns the name of a run, which its result has as its id."""
        # Asked often; kept as long as the run is, whose place in memory another has after it.
        if id(run) not in self._names:
            self._names[id(run)] = identifier(run, self._identity(run))
            weakref.finalize(run, self._names.pop, id(run), None).atexit = False
        return self._names[id(run)]

    def identify(self, run: Run) -> tuple[str, dict[str, Any]]:
        """Returns the name of a run and all that determines its result."""
        return self.name(run), self._identity(run)

    def _identity(self, run: Run) -> dict[str, Any]:
        *_, fingerprint = self._dataset(run.study)
        return run.identity({**self._versions, "data_fingerprint": fingerprint})

    def groups(self, runs: Sequence[Run], width: int | None) -> list[Group]:
        """Puts runs that share a program together, in their order.

        Which runs are trained at a time, and how many, follows from the study and the device and
        not from what is left of it, since another width or place may round differently.

        Args:
            runs: All runs of one phase of a study.
            width: Runs in a group; None for one on a CPU, which has nothing to gain from more, and
                for as many as fit on an accelerator.
        """
        together: dict[Any, list[Run]] = {}
        for run in runs:
            together.setdefault((self._program(run), run.until), []).append(run)
        groups = []
        for of_program in together.values():
            # More than there are runs would train copies of the last one.
            size = min(width or self._fitting(of_program), len(of_program))
            groups += [
                Group(tuple(of_program[start : start + size]), size)
                for start in range(0, len(of_program), size)
            ]
        return groups

    def trace(self, groups: Sequence[Group]) -> list[Programs]:
        """Returns the programs of some groups, each once, traced.

        Raises:
            StudyError: If a layer does not fit the model or the batch.
        """
        traced: dict[int, Programs] = {}
        for group in groups:
            self.check()
            try:
                programs = self.programs(group.runs[0], group.width)
            except StudyError:
                raise
            # An error inside a layer: its runs will fail with it, and say so.
            except (Exception, SystemExit):
                continue
            traced[id(programs)] = programs
        return list(traced.values())

    def attempt(self, group: Group, store: Store | None) -> list[Result | Failure]:
        """Trains a group and returns its results, or what came in their way.

        Args:
            group: What to train.
            store: Takes the curves as training goes; None for no curves before the end.
        """

        def log(run: Run, record: Record) -> None:
            # A run that is saved is stopped where it is saved.
            if self._stopping.is_set() and self._saving(group) is None:
                raise StoppedError
            if store is not None:
                programs = self.programs(run, group.width)
                metrics = {f"train_{name}": value for name, value in record.train.items()}
                validation = record.validation or dict.fromkeys(record.train)
                metrics |= {f"validation_{name}": value for name, value in validation.items()}
                store.write_point(
                    self.name(run),
                    record.step,
                    programs.feed.steps_per_epoch,
                    metrics,
                    first=record.step <= programs.length.record_every,
                )

        try:
            return [*self.execute(group, log)]
        # A user's layer may raise anything and even exit, a device have no memory.
        except (Exception, SystemExit) as error:
            return self.failures(group, explained(error))

    def stop(self) -> None:
        """Has every attempt under way, in whatever thread, given up with its epoch, or saved."""
        self._stopping.set()

    def _is_stopping(self) -> bool:
        stop = self._stop_file
        return self._stopping.is_set() or (stop is not None and stop.exists())

    def _saving(self, group: Group) -> Saving | None:
        """Where and when a study saves the runs of a group; None if it does not."""
        every = group.runs[0].study.train.checkpoint_every
        if every is None or self._folder is None:
            return None
        folder = checkpoint_folder(self._folder, [self.name(run) for run in group.runs])
        return Saving(folder, every, self._is_stopping, _warn)

    def failures(self, group: Group, why: Explained) -> list[Result | Failure]:
        """Returns that all runs of a group failed."""
        return [
            Failure(
                id=self.name(run),
                phase=run.phase,
                **dict(label(run)),
                seed=run.seed,
                values=dict(run.values),
                message=why.message,
                place=why.place,
                traceback=why.traceback,
            )
            for run in group.runs
        ]

    def execute(
        self,
        group: Group,
        after_record: Callable[[Run, Record], None] | None = None,
        saving: Saving | None = None,
    ) -> list[Result]:
        """Trains a group and returns its results.

        Args:
            group: What to train.
            after_record: Called with a run and each point of its curve, those included that it
                goes on from.
            saving: Where and when to save the runs; by default as their study says.

        Raises:
            StoppedError: They were asked to stop, and are saved.
            CheckpointError: Checkpoints or weights cannot be written or used.
        """
        runs = group.runs
        programs = self.programs(runs[0], group.width)

        def after(place: int, record: Record) -> None:
            if after_record is not None:
                after_record(runs[place], record)

        first = next((it for it in runs if it.phase == "final" and it.seed == 0), None)
        weights = programs.initial_weights(0) if first is not None else None
        names = [self.name(run) for run in runs]
        saving = saving or self._saving(group)
        hooks: list[Hook] = []
        with ExitStack() as opened, with_others():
            start = saved = keeping = None
            if saving is not None:
                saved = opened.enter_context(closing(Saved(saving, runs, names, programs)))
                start = saved.start
            if runs[0].study.keep != "none" and runs[0].phase == "final" and self._folder:
                kept = Weights(self._folder, runs, names, programs, start)
                keeping = opened.enter_context(closing(kept))
                hooks += kept.hooks()
                if saved is not None:  # What was the best before a checkpoint is written by then.
                    hooks.append(replace(saved.hook, call=lambda _: kept.wait()))
            if runs[0].study.probes and runs[0].phase == "final" and self._folder is not None:
                hooks += probe_hooks(Store(self._folder), runs, names, programs, start)
            if saved is not None:
                hooks.append(saved.hook)
            told = [RecordHook(after)]
            if runs[0].study.log and self._folder is not None and jax.process_index() == 0:
                told.append(opened.enter_context(logging_to(self._folder, runs, names)))
            hooks += told
            for place, curve in enumerate(start.curves if start is not None else []):
                for record in curve:
                    for hook in told:
                        hook.call(place, record)
            outcomes = fit(
                programs,
                [run.seed for run in runs],
                [run.study.optimizer.traced() for run in runs],
                hooks=hooks,
                test=runs[0].phase == "final",
                start=start,
                until=runs[0].until,
            )
            if saved is not None:
                saved.finish()
            if keeping is not None:
                keeping.finish(outcomes)
        if self.seconds_of_step is None:
            steps = max(it.curve[-1].step for it in outcomes)
            self.seconds_of_step = outcomes[0].seconds / steps
        return [
            self._result(run, outcome, programs, weights if run is first else None)
            for run, outcome in zip(runs, outcomes, strict=True)
        ]

    def programs(self, run: Run, width: int) -> Programs:
        """Returns the programs of a run, which are traced once for all runs that can share them.

        Raises:
            StudyError: If a layer does not fit the model or the batch.
        """
        program = (self._program(run), width)
        with self._making:  # Tracing holds Python's lock anyway.
            if program not in self._programs:
                study = run.study
                _, dataset, _ = self._dataset(study)
                integers = dataset.images.dtype == "int32"
                model = study.network(run.arm, dataset.classes, integers=integers)
                train = study.train
                try:
                    self._programs[program] = Programs(
                        network_of(model),
                        _fitted(study.objective, dataset),
                        self._feed(study),
                        study.optimizer,
                        train,
                        width,
                        self._mesh(study),
                    )
                    _refuse_what_is_not_measured(study, self._programs[program])
                except ValueError as error:  # a layer that does not fit the model or the batch
                    raise StudyError(f"variants.{run.arm.title}: {with_place(error)}") from error
            return self._programs[program]

    def _feed(self, study: Study) -> Feed:
        placed, dataset, _ = self._dataset(study)
        how = study.data.batch_size, study.train.augmentation, study.train.precision
        if placed is None:
            return Streamed(dataset, *how, self._mesh(study))
        return Resident(placed, *how)

    def _result(
        self,
        run: Run,
        outcome: Outcome,
        programs: Programs,
        initial_weights: dict[str, list[float]] | None,
    ) -> Result:
        name, identity = self.identify(run)
        weights: dict[str, list[float | None]] | None = None
        if initial_weights is not None:
            weights = {path: [*told] for path, told in initial_weights.items()}
        return Result(
            id=name,
            phase=run.phase,
            variant=run.arm.variant,
            **dict(label(run)),
            seed=run.seed,
            values=dict(run.values),
            status="diverged" if outcome.diverged else "finished",
            steps_per_epoch=programs.feed.steps_per_epoch,
            curve=_curve(outcome.curve, programs.steps.objective),
            test=None if outcome.test is None else {**outcome.test},
            seconds=outcome.seconds,
            until=run.until,
            git_revision=self._git_revision,
            identity=identity,
            initial_weights=weights,
        )

    def _fitting(self, runs: Sequence[Run]) -> int:
        """How many of some runs of one program fit into the device's memory at a time."""
        statistics = jax.local_devices()[0].memory_stats()
        if jax.default_backend() == "cpu" or not statistics:
            return 1
        placed, *_ = self._dataset(runs[0].study)
        there = placed.data if placed is not None else None
        data = sum(array.nbytes for array in jax.tree.leaves(there))
        free = MEMORY_SHARE * statistics["bytes_limit"] - data
        try:
            needed = self.programs(runs[0], 1).memory_of_a_run()
        except StudyError:
            raise
        except (Exception, SystemExit):  # As in `trace`.
            return 1
        return max(1, min(len(runs), int(free // needed)))

    def _program(self, run: Run) -> Any:
        """What runs must share to share compiled programs."""
        study = run.study
        arm = study.variants[run.arm.variant].model_dump_json(exclude_unset=True)
        optimizer = study.optimizer.untraced()
        objective = study.objective.model_dump_json()
        return (study.data, study.model, objective, optimizer, study.train, arm)

    def _dataset(self, study: Study) -> tuple[Placed | None, Dataset, str]:
        """Returns a data set, whole on the device unless it is streamed, and its fingerprint."""
        key = spec, targets = study.data, study.objective.targets
        with self._making:
            if key not in self._data:
                dataset = load(spec, targets)
                placed = None
                if not spec.stream:
                    placed = place(dataset, spec.batch_size, self._mesh(study))
                self._data[key] = placed, dataset, _fingerprint(dataset)
            return self._data[key]

    def _mesh(self, study: Study) -> Mesh | None:
        try:
            return study.mesh.devices() if self._spread else None
        except ValueError as error:
            raise StudyError(str(error)) from error


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def label(run: Run) -> Label:
    """Where a run stands in its study."""
    return Label(arm=run.arm.name, levels=run.arm.levels, task=run.arm.task)


def _fitted(objective: Objective, dataset: Dataset) -> Objective:
    """Returns an objective as it is for a data set."""
    labels = dataset.labels
    fitted: Any = objective.fitted(None if labels is None else labels[dataset.train])
    if not isinstance(fitted, Objective):
        raise ValueError(
            f"{type(objective).__name__}.fitted returns a {type(fitted).__name__}; expected the "
            "objective, itself or a copy, as self.model_copy() is."
        )
    return fitted


def _refuse_what_is_not_measured(study: Study, programs: Programs) -> None:
    """Refuses a metric that an objective knows and does not measure on this data.

    Raises:
        StudyError: That says what it measures.
    """
    told = study.metric
    measured = programs.measured()
    for path, it in (("metric", told), ("metric.select_by", told.select_by)):
        if it is not None and it.name not in measured:
            raise StudyError(
                f"{path}.name={it.name} is not measured by objective.name="
                f"{study.objective.name} on these data; expected one of {', '.join(measured)}"
            )


def _curve(records: Sequence[Record], objective: Objective) -> Curve:
    """The points of a curve by metric: the loss, and the others as the objective has them."""
    measured = {name: None for record in records for name in record.train}
    names = dict.fromkeys(["loss", *objective.all_metrics(), *measured])
    names = [name for name in names if name in measured]

    def of(point: Mapping[str, float] | None, name: str) -> float | None:
        return None if point is None else point.get(name)

    return Curve(
        step=[record.step for record in records],
        train={name: [of(it.train, name) for it in records] for name in names},
        validation={name: [of(it.validation, name) for it in records] for name in names},
    )


def _fingerprint(dataset: Dataset) -> str:
    """Hashes all of a data set that a run depends on."""
    content = hashlib.blake2b(digest_size=16)
    names = ("images", "labels", "train", "validation", "test", "mean", "deviation")
    arrays = [getattr(dataset, name) for name in names]
    for array in arrays:
        if array is None:  # Images that stay as they are have no moments.
            content.update(b"None")
            continue
        content.update(f"{array.dtype} {array.shape}".encode())
        if isinstance(array, np.ndarray):
            content.update(array.tobytes())
            continue
        for block in blocks(array):
            content.update(block.tobytes())
    return content.hexdigest()
