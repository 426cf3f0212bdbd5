"""Running a study: tuning each arm, repeating its best values, leaving each result in the store."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from typing import Any

import jax

from ..data import Dataset, DataSpec, load
from ..train import EpochMetrics, Outcome, Placed, Trainer, place
from .arm import Arm
from .grid import Run, extended, final_runs, identifier, tuning_runs
from .selection import best_values
from .store import Curve, Evaluation, Label, NoStudyError, Result, Store
from .study import Study, StudyError

# Tracing holds Python's lock and compiling does not, so that two at a time keep two cores busy.
COMPILING_THREADS = 2

# A step that takes less, in seconds, keeps one core busy. Then as many runs as there are cores go
# at a time; what each comes to does not depend on it.
SHORT_STEP = 0.002


class _StoppedError(Exception):
    """A run was given up because the study stops."""


class Workbench:
    """Data sets and compiled programs, each made once and kept for all runs that share it.

    Args:
        environment: Versions and device, part of the identity of every run.
    """

    def __init__(self, environment: dict[str, Any]):
        self._versions = {key: environment[key] for key in ("packages", "device")}
        self._git_revision = environment["git_revision"]
        self._data: dict[DataSpec, tuple[Placed, Dataset, str]] = {}
        self._trainers: dict[Any, Trainer] = {}
        self._seconds_of_step: float | None = None

    def identify(self, run: Run) -> tuple[str, dict[str, Any]]:
        """Returns the name of a run and all that determines its result."""
        *_, fingerprint = self._dataset(run.study.data)
        identity = run.identity({**self._versions, "data_fingerprint": fingerprint})
        return identifier(run, identity), identity

    def trace(self, runs: list[Run]) -> list[Trainer]:
        """Returns the trainers of some runs, each once, with their programs traced."""
        distinct = {self._program(run): run for run in runs}
        return [self._trainer(run) for run in distinct.values()]

    def execute_all(self, runs: Iterable[Run]) -> Iterator[Result]:
        """Trains some runs of one arm, and returns each result as soon as it is there."""
        left = list(runs)
        self.trace(left)  # Here and not by two threads at a time.
        if left and self._seconds_of_step is None:
            first = self.execute(left.pop(0))
            steps = first.steps_per_epoch * len(first.curve.train_loss)
            self._seconds_of_step = first.seconds / steps
            yield first
        idle = jax.default_backend() == "cpu" and (self._seconds_of_step or 0) < SHORT_STEP
        stopping = threading.Event()

        def give_up(*_: Any) -> None:
            if stopping.is_set():
                raise _StoppedError

        with ThreadPoolExecutor((os.cpu_count() or 1) if idle else 1) as pool:
            futures = [pool.submit(self.execute, run, give_up) for run in left]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def execute(
        self, run: Run, after_epoch: Callable[[int, EpochMetrics], None] | None = None
    ) -> Result:
        """Trains one run and returns its result."""
        trainer = self._trainer(run)
        values = run.study.optimizer.traced()
        outcome = trainer.run(run.seed, values, test=run.phase == "final", after_epoch=after_epoch)
        return self._result(run, trainer, outcome)

    def _result(self, run: Run, trainer: Trainer, outcome: Outcome) -> Result:
        name, identity = self.identify(run)
        epochs = [asdict(epoch) for epoch in outcome.epochs]
        test = None
        if outcome.test_loss is not None:
            test = Evaluation(loss=outcome.test_loss, accuracy=outcome.test_accuracy)
        return Result(
            id=name,
            phase=run.phase,
            variant=run.arm.variant,
            **dict(label(run)),
            seed=run.seed,
            values=dict(run.values),
            status="diverged" if outcome.diverged else "finished",
            steps_per_epoch=trainer.steps_per_epoch,
            curve=Curve(**{key: [epoch[key] for epoch in epochs] for key in Curve.model_fields}),
            test=test,
            seconds=outcome.seconds,
            git_revision=self._git_revision,
            identity=identity,
        )

    def _program(self, run: Run) -> Any:
        """What runs must share to share compiled programs."""
        study = run.study
        arm = study.variants[run.arm.variant].model_dump_json(exclude_unset=True)
        return (study.data, study.model, study.optimizer.untraced(), study.train, arm)

    def _trainer(self, run: Run) -> Trainer:
        program = self._program(run)
        if program not in self._trainers:
            study = run.study
            placed, dataset, _ = self._dataset(study.data)
            norm = study.variants[run.arm.variant].constructor()
            model = study.model.build(norm, dataset.classes, study.train.precision)
            try:
                self._trainers[program] = Trainer(
                    model, placed, study.optimizer, study.train, study.data.batch_size
                )
            except ValueError as error:  # a layer that does not fit the model or the batch
                raise StudyError(f"variants.{run.arm.title}: {error}") from error
        return self._trainers[program]

    def _dataset(self, spec: DataSpec) -> tuple[Placed, Dataset, str]:
        if spec not in self._data:
            dataset = load(spec)
            placed = place(dataset, spec.batch_size)
            self._data[spec] = placed, dataset, _fingerprint(dataset)
        return self._data[spec]


def run_study(
    study: Study,
    store: Store,
    environment: dict[str, Any],
    advance: Callable[[str, int], None],
) -> None:
    """Runs what is not in the store yet: for each arm the tuning, then the reported runs.

    Args:
        study: What to compare.
        store: Takes each result as soon as it is there, so that a study can be stopped at any time
            and goes on where it stood.
        environment: Versions and device; runs made under others are not taken over.
        advance: Called with what is going on and how many more runs are done.

    Raises:
        StudyError: If the folder is another study's, or a layer does not fit model or batch.
        DataError: If the data set is not there or damaged.
    """
    _refuse_another_study(store, study)
    bench = Workbench(environment)
    finished = {result.id: result for result in store.results()}
    advance("reading data", 0)

    def missing(runs: list[Run]) -> list[Run]:
        return [run for run in runs if bench.identify(run)[0] not in finished]

    def complete(runs: list[Run], what: str) -> None:
        absent = missing(runs)
        advance(what, len(runs) - len(absent))
        for result in bench.execute_all(absent):
            finished[result.id] = result
            store.write(result)
            advance(what, 1)

    tuning = [(arm, tuning_runs(study, arm)) for arm in study.arms()]
    plan = {bench.identify(run)[0]: label(run) for _, runs in tuning for run in runs}

    def best(arm: Arm, runs: list[Run]) -> dict[str, Any]:
        """The best values of an arm whose tuning is done."""
        tuned = [finished[bench.identify(run)[0]].labelled(label(run)) for run in runs]
        return best_values(tuned, arm.name)

    def chosen(arm: Arm, runs: list[Run]) -> list[Run]:
        """The reported runs of an arm whose tuning is done."""
        return final_runs(study, arm, best(arm, runs))

    advance("tracing", 0)
    pending = [(arm, runs, missing(runs)) for arm, runs in tuning]
    trainers = bench.trace(
        [run for arm, runs, left in pending for run in left or missing(chosen(arm, runs))]
    )
    # Not before every program is traced: a study that cannot run leaves the folder as it was.
    store.write_config(study.model_dump(mode="json"))
    store.write_environment(environment)
    store.write_plan(plan)
    compiling = ThreadPoolExecutor(COMPILING_THREADS)
    try:
        # The first arm trains while those that follow it compile.
        for trainer in trainers:
            compiling.submit(trainer.compile)
        for arm, runs in tuning:
            complete(runs, f"tuning {arm.title}")
        searched = study
        for _ in range(study.tune.extend if study.tune else 0):
            searched = extended(searched, [best(arm, runs) for arm, runs in tuning])
            if searched is None:
                break
            for arm, runs in tuning:
                planned = {bench.identify(run)[0] for run in runs}
                further = [
                    run
                    for run in tuning_runs(searched, arm)
                    if bench.identify(run)[0] not in planned
                ]
                runs += further
                plan |= {bench.identify(run)[0]: label(run) for run in further}
            store.write_plan(plan)
            for arm, runs in tuning:
                complete(missing(runs), f"tuning {arm.title} beyond its grid")
        for arm, runs in tuning:
            final = chosen(arm, runs)
            plan |= {bench.identify(run)[0]: label(run) for run in final}
            store.write_plan(plan)
            complete(final, f"repeating {arm.title}")
    finally:
        compiling.shutdown(wait=False, cancel_futures=True)


def label(run: Run) -> Label:
    """Where a run stands in its study."""
    return Label(arm=run.arm.name, levels=run.arm.levels, task=run.arm.task)


def _refuse_another_study(store: Store, study: Study) -> None:
    try:
        there = store.config().get("study")
    except NoStudyError:
        return
    if there != study.study:
        raise StudyError(
            f"{store.folder} holds the study {there!r}, not {study.study!r}; give another folder."
        )


def _fingerprint(dataset: Dataset) -> str:
    """Hashes all of a data set that a run depends on."""
    content = hashlib.blake2b(digest_size=16)
    names = ("images", "labels", "train", "validation", "test", "mean", "deviation")
    for array in (getattr(dataset, name) for name in names):
        content.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return content.hexdigest()
