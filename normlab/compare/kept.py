"""What is kept of runs on disk beside their results: checkpoints to go on from, and weights."""

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from ..checksum import sealed, unsealed
from ..errors import UserError, first_of, refused
from ..models import Network, network_of
from ..modules import import_modules
from ..train import Moment, Outcome, Programs, Record, RecordHook, StateHook
from ..train.checkpoint import LAST, MOST_TOLD, CheckpointError, Checkpoints, newest_whole, steps_in
from ..train.processes import is_first
from ..user_code import with_place
from .arm import Arm
from .grid import Run
from .store import write_whole, writing
from .study import Study, study_type

_RECORD = "run.json"


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Arm(_Strict):
    variant: str
    levels: dict[str, JsonValue]
    task: str
    name: str
    place: str


class _Inputs(_Strict):
    shape: list[Annotated[int, Field(ge=0)]]
    dtype: str


class _Saved(_Strict):
    """What `run.json` says."""

    runs: list[str] = Field(min_length=1)
    study: dict[str, JsonValue]
    arm: _Arm
    seed: int
    outputs: int = Field(ge=1)
    integers: bool
    inputs: _Inputs
    keep: str | None = None


Told = Callable[[str], object]


@dataclass(frozen=True)
class Saving:
    """Where and when runs that are trained at a time are saved, to go on from there.

    Attributes:
        folder: Of their checkpoints.
        every: Steps between two; None for one at each point of the curve.
        asked: Whether to save at once and stop.
        keep_best: Whether the best checkpoint is kept beside the last ones.
        tell: Is told in a line of what is damaged.
    """

    folder: Path
    every: int | None
    asked: Callable[[], bool]
    tell: Told
    keep_best: bool = False


class Saved:
    """The checkpoints of runs that are trained at a time, under way.

    Args:
        saving: Where and when.
        runs: The runs.
        names: Their names.
        programs: Of them.
    """

    def __init__(
        self, saving: Saving, runs: Sequence[Run], names: Sequence[str], programs: Programs
    ):
        record = _described(runs[0], names, programs)
        _refuse_another(saving.folder, record)
        self._names, self._programs = names, programs
        self._checkpoints = Checkpoints(saving.folder, LAST, saving.tell)
        score = score_of(runs[0].study) if saving.keep_best else lambda _: None
        every = saving.every or programs.length.record_every
        self.hook = self._checkpoints.hook(names, every, saving.asked, score)
        self.start: Moment | None = self._checkpoints.newest(programs, names)
        if is_first():
            write_whole(saving.folder / _RECORD, sealed(record))

    def finish(self) -> None:
        """Waits until all is written."""
        self._checkpoints.wait()

    def close(self) -> None:
        """Ends the threads that write."""
        self._checkpoints.close()


class Weights:
    """The weights that a study keeps of runs that are trained at a time.

    Args:
        folder: The study's.
        runs: The runs.
        names: Their names.
        programs: Of them.
        start: Where they go on from.
    """

    def __init__(
        self,
        folder: Path,
        runs: Sequence[Run],
        names: Sequence[str],
        programs: Programs,
        start: Moment | None,
    ):
        self._programs = programs
        self._best = runs[0].study.keep == "best"
        self._score = score_of(runs[0].study)
        self._held: tuple[int, Any] | None = None
        self._writers: list[Checkpoints] = []
        self._highest: list[float | None] = []
        for place, (run, name) in enumerate(zip(runs, names, strict=True)):
            own = weights_folder(folder, name)
            record = {**_described(run, [name], programs), "keep": run.study.keep}
            if is_first():
                if not _of_the_same_weights(_read_record(own), record):
                    with writing(own):
                        shutil.rmtree(own, ignore_errors=True)
                write_whole(own / _RECORD, sealed(record))
            self._writers.append(Checkpoints(own, 1, lambda _: None))
            self._highest.append(None)
            for point in start.curves[place] if start is not None else []:
                self._is_best(place, point)

    def hooks(self) -> list[StateHook | RecordHook]:
        """Returns what keeps the best weights, as training goes."""
        if not self._best:
            return []
        return [
            StateHook(self._programs.length.evaluate_every, self._hold),
            RecordHook(self._keep_best),
        ]

    def wait(self) -> None:
        """Waits until all is written."""
        for writer in self._writers:
            writer.wait()

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Keeps what the runs ended with, if that is wanted, and waits until all is written."""
        if not self._best:
            for place, outcome in enumerate(outcomes):
                if outcome.state is not None:
                    variables = (outcome.state.params, outcome.state.batch_stats)
                    self._write(place, outcome.curve[-1], variables)
        self.wait()

    def close(self) -> None:
        """Ends the threads that write."""
        for writer in self._writers:
            writer.close()

    def _hold(self, moment: Moment) -> None:
        # How good they are is known once the next steps, which use the state up, are under way.
        variables = (moment.state.params, moment.state.batch_stats)
        self._held = moment.step, jax.tree.map(jnp.copy, variables)

    def _keep_best(self, place: int, point: Record) -> None:
        if self._is_best(place, point):
            assert self._held is not None
            assert self._held[0] == point.step
            self._write(place, point, self._programs.of_run(self._held[1], place))

    def _is_best(self, place: int, point: Record) -> bool:
        score, highest = self._score(point), self._highest[place]
        if score is None or (highest is not None and score <= highest):
            return False
        self._highest[place] = score
        return True

    def _write(self, place: int, point: Record, variables: tuple[Any, Any]) -> None:
        params, batch_stats = variables
        tree = {"params": params, "batch_stats": batch_stats}
        self._writers[place].write(point.step, tree, asdict(point))


def load(folder: str | Path) -> tuple[Any, Any]:
    """Returns the model of a run and its variables, as they were kept.

    Usage::

        model, variables = normlab.load("runs/quickstart/weights/final-batch-0-0123456789ab")
        logits = model.apply(variables, images, train=False)

    Args:
        folder: `weights/RUN` in the folder of a study that says `keep: last` or `best`; or the
            folder that `normlab train` was given as `--save`, for its last checkpoint.

    Returns:
        The model with its norm layers, and `{"params": ..., "batch_stats": ...}`. A Flax NNX module
        holds them itself.

    Raises:
        UserError: The folder has no weights, or they are damaged.
    """
    folder = Path(folder)
    record = _read_record(folder)
    if record is None:
        raise UserError(f"{folder} holds no weights{_where_there_are(folder)}")
    if len(record.runs) > 1:
        raise UserError(
            f"{folder} holds {len(record.runs)} runs that are trained together; load the "
            "weights of one of them, which a study keeps that says keep: last or best"
        )
    model = _model_of(record, folder / _RECORD)
    network = network_of(model)
    params, batch_stats = _variables_of(network, record.inputs, folder / _RECORD)
    told: list[str] = []
    step = newest_whole(folder, told.append, remove_damaged=False)
    if step is None or (record.keep is not None and told):
        why = f": {told[0]}" if told else ", since the run has not come so far, or diverged"
        raise UserError(f"{folder} holds no weights that can be used{why}")
    checkpoints = Checkpoints(folder, LAST, told.append)
    try:
        variables, _ = checkpoints.read(
            step, {"params": params, "batch_stats": batch_stats}, some=True
        )
    finally:
        checkpoints.close()
    return network.holding(variables["params"], variables["batch_stats"]), variables


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Refuses to have two runs saved in one folder; of several processes of one the first asks.

    Raises:
        CheckpointError: Another one does.
    """
    if not is_first():
        yield
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise CheckpointError(
                f"another process saves a run in {folder} now; wait for it, or give another folder"
            ) from error
    try:
        yield
    finally:
        lock.release()


def checkpoint_folder(study: Path, names: Sequence[str]) -> Path:
    """Returns where the checkpoints of runs lie that are trained at a time."""
    if len(names) == 1:
        return study / "checkpoints" / names[0]
    together = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    return study / "checkpoints" / f"{names[0]}+{together}"


def weights_folder(study: Path, name: str) -> Path:
    """Returns where the weights of a run lie."""
    return study / "weights" / name


def saves(study: Study) -> bool:
    """Whether runs of a study, or of one of its tasks, write more than results and curves."""
    at_tasks = any(changes.get("train.checkpoint_every") for changes in study.tasks.values())
    saved = bool(study.train.checkpoint_every) or at_tasks or study.keep != "none"
    return saved or bool(study.log) or bool(study.probes)


def look_through(study: Path, names: Sequence[str], tell: Told) -> None:
    """Tells which checkpoints of runs are damaged, and removes them.

    Args:
        study: The study's folder.
        names: Runs that are trained at a time, and that no process is at.
        tell: Is told in a line of each.
    """
    newest_whole(checkpoint_folder(study, names), tell)


def sweep_checkpoints(study: Path, names: Sequence[str]) -> None:
    """Removes the checkpoints of runs that are done, and are trained at a time."""
    folder = checkpoint_folder(study, names)
    with writing(folder):
        if folder.is_dir():
            shutil.rmtree(folder)


def has_weights(study: Path, name: str) -> bool:
    """Whether weights of a run are kept."""
    return bool(steps_in(weights_folder(study, name)))


def score_of(study: Study) -> Callable[[Record], float | None]:
    """Returns how good a point of a curve is, by what tuning selects by, higher for better.

    None without an evaluation, or with one whose loss is not finite. A metric that is no number
    otherwise, as R² of targets that are all the same, is the worst.
    """
    metric = study.metric.select_by or study.metric

    def score(record: Record) -> float | None:
        if record.validation is None or not math.isfinite(record.validation["loss"]):
            return None
        value = record.validation[metric.name]
        if math.isnan(value):
            return -math.inf
        return value if metric.higher_is_better else -value

    return score


def _described(run: Run, names: Sequence[str], programs: Programs) -> dict[str, Any]:
    """All that it takes to make the model of a run again, and to know the run."""
    objective = programs.steps.objective
    inputs, *_ = jax.eval_shape(lambda: objective.prepared(*programs.feed.example()))
    return {
        "runs": [*names],
        "study": {**run.study.model_dump(mode="json"), "executor": {"name": "local"}, "mesh": {}},
        "arm": asdict(run.arm),
        "seed": run.seed,
        "outputs": programs.feed.outputs,
        "integers": bool(jnp.issubdtype(inputs.dtype, jnp.integer)),
        "inputs": {"shape": [*inputs.shape], "dtype": str(inputs.dtype)},
    }


def _model_of(record: _Saved, path: Path) -> Any:
    """Returns the model that a record describes."""
    modules = record.study.get("modules", [])
    names = [it for it in modules if isinstance(it, str)] if isinstance(modules, list) else []
    _, errors = import_modules(names, Path())
    for name, error in errors.items():
        raise UserError(f"the model needs the module {name}, which cannot be imported") from error
    try:
        study = study_type().model_validate(record.study)
    except ValidationError as error:
        raise _unusable(path, first_of(error)) from error
    if record.arm.variant not in study.variants:
        raise _unusable(path, f"its arm {record.arm.variant!r} is none of its variants")
    arm = Arm(**record.arm.model_dump())
    return study.network(arm, record.outputs, integers=record.integers)


def _variables_of(network: Network, inputs: _Inputs, path: Path) -> Any:
    """Returns the shapes of what a network has, where it fits the inputs."""
    try:
        example = jax.ShapeDtypeStruct(tuple(inputs.shape), inputs.dtype)
        return jax.eval_shape(network.init, jax.random.key(0), example)
    except (TypeError, ValueError, OverflowError) as error:
        raise _unusable(path, f"{with_place(error)[:MOST_TOLD]}") from error


def _unusable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is not what normlab wrote ({why}); give another folder")


def _read_record(folder: Path) -> _Saved | None:
    path = folder / _RECORD
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(refused("read", path, error, "give another folder")) from error
    try:
        return _Saved.model_validate_json(unsealed(content)[0])
    except ValidationError as error:
        raise _unusable(path, first_of(error)) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); give another folder") from error


def _visible(folder: Path) -> list[str]:
    """The names in a folder, but for locks and what was begun and never had its name."""
    return [path.name for path in folder.glob("[!.]*")]


def _of_the_same_weights(there: _Saved | None, record: dict[str, Any]) -> bool:
    """Whether weights that are kept are those that would be kept now, however the study changed."""
    if there is None or (there.runs, there.keep) != (record["runs"], record["keep"]):
        return False
    return there.study.get("metric") == record["study"]["metric"]


def _refuse_another(folder: Path, record: dict[str, Any]) -> None:
    there = _read_record(folder)
    if there is None and (others := sorted(_visible(folder))):
        raise CheckpointError(
            f"{folder} holds other things, as {others[0]}; give an empty folder or a new one, "
            "since checkpoints that are not used any more are removed there"
        )
    if there is not None and there.runs != record["runs"]:
        raise CheckpointError(
            f"{folder} holds checkpoints of the run {', '.join(there.runs)}, not of "
            f"{', '.join(record['runs'])}, whose study, seed, code, packages or device are others; "
            "give another folder, or delete it"
        )


def _where_there_are(folder: Path) -> str:
    """The end of a sentence that says where there are weights, or how to have them kept."""
    weights = folder if folder.name == "weights" else folder / "weights"
    if there := sorted(weights.glob(f"*/{_RECORD}")):
        names = ", ".join(str(path.parent) for path in there[:5])
        runs = "1 run" if len(there) == 1 else f"{len(there)} runs"
        return f", but those of {runs}: {names}{', ...' * (len(there) > 5)}; give one"
    return (
        "; give weights/RUN in the folder of a study that says keep: last or best, or the folder "
        "that `normlab train` was given as --save"
    )
