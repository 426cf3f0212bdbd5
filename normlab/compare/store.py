"""The folder of a study: its configuration, its environment and the files of each run."""

import errno
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from os.path import lexists
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from yaml import YAMLError

from ..checksum import checksum, sealed, unsealed
from ..errors import UserError, first_of, refused
from ..spec import displayed
from .arm import combinations
from .bounds import (
    Extensions,
    Margin,
    MarginPoints,
    Seeds,
    Significance,
    SomeValues,
    Trials,
    refuse_too_many,
)
from .search import Range
from .sound import refuse_what_cannot_be
from .yaml_text import escaped, from_yaml, to_yaml, unescaped


class StoreError(UserError):
    """The results of a study cannot be used."""


class WriteError(StoreError, OSError):
    """Results cannot be written where they are wanted."""


class NoStudyError(StoreError, FileNotFoundError):
    """A folder holds no study."""


# What is larger has overflowed as well: not even its square is a number.
_LARGEST = 1e150


def _finite_or_none(value: float | None) -> float | None:
    # JSON has no infinity and no NaN. Dropping them here, not at writing, makes a result in memory
    # equal to the same result read back.
    return value if value is not None and abs(value) < _LARGEST else None


def _each_finite_or_none(values: list[float | None]) -> list[float | None]:
    # As a rule all are, which takes a tenth of the time to find out; NaN is in no order.
    if values and None not in values:
        numbers: list[Any] = values
        if max(numbers) < _LARGEST and min(numbers) > -_LARGEST and not math.isnan(sum(numbers)):
            return values
    return [*map(_finite_or_none, values)]


Metric = Annotated[float | None, AfterValidator(_finite_or_none)]
Metrics = Annotated[list[float | None], AfterValidator(_each_finite_or_none)]
Curves = dict[str, Metrics]


_ELSEWHERE = (
    "give a place elsewhere, as with --out, --to or --save; what was saved before stays, and the "
    "same command, given again, goes on from there"
)
_READABLE = "give another folder"
MOST_TOLD = 5  # files that are left aside
_TEMPORARY = re.compile(r"\.(.+\.)?[0-9a-f]{32}\.tmp")
_CHECKSUM = "# checksum: "  # begins a configuration
_SURELY_DEAD = 24 * 3600.0  # seconds since a temporary file was written, where there are no locks
_REPAIR = "Run the study again with the same folder: finished runs are kept."

# What a folder says of one study, beside the runs, which every study in the folder shares.
_OF_ONE_STUDY = (
    "config.yaml",
    "environment.json",
    "plan.json",
    "summary.json",
    "metrics.parquet",
    "report.html",
    "charts",
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Curve(_Record):
    """Metrics as training went on.

    Attributes:
        step: Steps done at each point, rising.
        train: Metric -> its value at each point, over the steps since the one before; None where it
            was not finite.
        validation: Likewise on the validation split, and None where there was no evaluation.
    """

    step: list[int]
    train: Curves
    validation: Curves

    @model_validator(mode="after")
    def _all_of_one_length(self) -> "Curve":
        count = len(self.step)
        if any(len(it) != count for it in (*self.train.values(), *self.validation.values())):
            lengths = {"step": count} | {it: len(curve) for it, curve in self.flat().items()}
            raise ValueError(f"curves need one entry for each point, but have {lengths}")
        if self.step != sorted({*self.step}) or (self.step and self.step[0] < 1):
            raise ValueError(f"steps of a curve rise from 1 on, but are {self.step[:10]}")
        return self

    def flat(self) -> dict[str, list[float | None]]:
        """Returns all curves by name, as "train_loss"."""
        return {f"train_{name}": it for name, it in self.train.items()} | {
            f"validation_{name}": it for name, it in self.validation.items()
        }

    def last(self) -> "Curve":
        """Returns the last point alone."""
        return Curve.model_construct(
            step=self.step[-1:],
            train={name: it[-1:] for name, it in self.train.items()},
            validation={name: it[-1:] for name, it in self.validation.items()},
        )


def _is_former(result: Any) -> bool:
    """Whether a result, as JSON has it, is of the former format, which may lack a checksum."""
    curve = result.get("curve") if isinstance(result, Mapping) else None
    return isinstance(curve, Mapping) and "train_loss" in curve


def _from_former(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a result of the former format, whose curves are by epoch and of four names."""
    splits: dict[str, Any] = {"train": {}, "validation": {}}
    for name, values in result["curve"].items():
        split, _, metric = name.partition("_")
        splits.setdefault(split, {})[metric] = values
    losses, each = result["curve"]["train_loss"], result.get("steps_per_epoch")
    if isinstance(losses, list) and isinstance(each, int):
        splits["step"] = [(epoch + 1) * each for epoch in range(len(losses))]
    return {**result, "curve": splits}


class Label(_Record):
    """Where a run stands in a study; a run may stand elsewhere in a study that has changed since.

    Attributes:
        arm: The arm's name: the variant, and its levels if the study has factors.
        levels: Dotted path -> value of each factor.
        task: The task's name; empty in a study without tasks.
    """

    arm: str
    levels: dict[str, JsonValue] = Field(default_factory=dict)
    task: str = ""


class Failure(Label):
    """One run that came to no end, since something raised an error or its process died.

    Attributes:
        id: Name of the run in its study, also of its file.
        phase: As of a result.
        seed: Likewise.
        values: Likewise.
        message: What went wrong.
        place: The last frame in the user's own code, as in `my_layers.py:12 in __call__`; empty if
            there is none.
        traceback: From the user's own code on, as Python prints it; likewise.
    """

    id: str = Field(pattern=r"^\w[\w.-]*$")
    phase: Literal["tune", "final"]
    seed: int = Field(ge=0)
    values: dict[str, JsonValue]
    message: str
    place: str = ""
    traceback: str = ""


class Result(Label):
    """One run that came to its end, be it finished or diverged.

    Attributes:
        id: Name of the run in its study, also of its file.
        phase: "tune" for a run that helps choose the tuned values, "final" for a reported one.
        variant: The variant's name in the study.
        arm: The arm's name in the study.
        levels: Dotted path -> value of each factor.
        task: The task's name; empty in a study without tasks.
        seed: Runs of one phase with the same seed are paired across arms.
        values: Dotted path in the configuration -> tuned value of this run.
        status: "diverged" when the run was stopped because its loss was no longer finite.
        steps_per_epoch: Optimizer steps in one epoch.
        curve: Metrics as training went on.
        test: Metric -> its value on the test split, for final runs that finished.
        seconds: Wall time of the run without compilation; of runs that were trained at a time, of
            all of them.
        until: Points of its curve after which a tuning run was stopped early, as the study says;
            None for a whole run.
        git_revision: Commit of the working folder that the run was started in.
        identity: All that determined the run.
        initial_weights: Path -> root mean square, first value, last value and shape of what was
            drawn outside of the norm layers, for the final run of the first seed.
    """

    id: str = Field(pattern=r"^\w[\w.-]*$")
    phase: Literal["tune", "final"]
    variant: str
    seed: int = Field(ge=0)
    values: dict[str, JsonValue]
    status: Literal["finished", "diverged"]
    steps_per_epoch: int = Field(ge=1)
    curve: Curve
    test: dict[str, Metric] | None
    seconds: float = Field(ge=0, allow_inf_nan=False)
    until: Annotated[int, Field(ge=1)] | None = None
    git_revision: str | None = None
    identity: dict[str, JsonValue]
    initial_weights: dict[str, Metrics] | None = None

    @model_validator(mode="after")
    def _has_what_its_status_promises(self) -> "Result":
        if (self.test is not None) != (self.phase == "final" and self.status == "finished"):
            raise ValueError("`test` belongs to final runs that finished, to all and only to them")
        if self.status == "finished" and not (self.curve.step and self.curve.validation):
            raise ValueError("a finished run needs at least one point in its curve")
        return self

    @property
    def steps(self) -> int:
        """Steps done."""
        return self.curve.step[-1] if self.curve.step else 0

    @property
    def epochs(self) -> int | float:
        """Epochs done, a whole number of them as such."""
        return epochs_of(self.steps, self.steps_per_epoch)

    def labelled(self, label: Label) -> "Result":
        """Returns the same result as that of the run that stands at this place of a study."""
        return self.model_copy(update=dict(label))

    def without_identity(self) -> "Result":
        """Returns the same result without `identity`, which takes more memory than all the rest."""
        return self.model_copy(update={"identity": {}})

    def in_brief(self) -> "Result":
        """Returns the same result with the last point alone of its curve and without `identity`."""
        changes = {"identity": {}, "initial_weights": None, "curve": self.curve.last()}
        return self.model_copy(update=changes)

    @property
    def diverged(self) -> bool:
        """Whether the run was stopped because its loss was no longer finite."""
        return self.status == "diverged"


class Probed(_Record):
    """What a probe found of a run at a step of its training.

    Attributes:
        step: Steps done.
        probe: Its name.
        seconds: What all probes took at this step, which are not among those of the run; of runs
            that are trained at a time, of all of them.
        values: Quantity -> layer, parameter or step -> value; None where it was not finite.
    """

    step: int = Field(ge=0)
    probe: str
    seconds: float = Field(ge=0)
    values: dict[str, dict[str, Metric]]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Named(_Strict):
    name: str


class _Length(_Strict):
    epochs: int | None = None
    steps: int | None = None

    @model_validator(mode="after")
    def _has_one(self) -> "_Length":
        if self.epochs is self.steps is None:
            raise ValueError("neither epochs nor steps are given")
        return self


class _Metric(_Strict):
    name: str
    higher_is_better: bool
    share: bool = False
    title: str = ""
    unit: str = ""
    select_by: "_Metric | None" = None


_Values = Annotated[list[bool | int | float | str], SomeValues]


class _Tune(_Strict):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Values | Range]  # pyright: ignore[reportIncompatibleVariableOverride]

    seeds: Seeds = 1
    trials: Trials | None = None
    extend: Extensions = 0
    stop_early: bool = False

    @property
    def points(self) -> int:
        """How many points the search has at most."""
        lists = [it for it in (self.__pydantic_extra__ or {}).values() if isinstance(it, list)]
        return self.trials or math.prod(map(len, lists))


class _Config(_Strict):
    """What status and report read of a configuration; `Study` cannot check it without JAX."""

    study: str
    data: _Named
    model: _Named
    optimizer: _Named
    train: _Length
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    baseline: str
    seeds: Seeds
    factors: dict[str, list[Any]] | list[dict[str, Any]] | None = None
    tasks: dict[str, dict[str, Any]] | None = None
    tune: _Tune | None = None
    metric: _Metric | None = None
    target: float | None = None
    margin_points: MarginPoints | None = None
    margin: Margin | None = None
    # What studies had before.
    target_accuracy: float | None = None
    significance: Significance = 0.05

    @model_validator(mode="after")
    def _baseline_is_a_variant(self) -> "_Config":
        if self.baseline not in self.variants:
            raise ValueError(f"the baseline {self.baseline!r} is none of the variants")
        return self

    @model_validator(mode="after")
    def _can_be_enumerated(self) -> "_Config":
        points, seeds = (self.tune.points, self.tune.seeds) if self.tune else (0, 0)
        crossed, tasks = combinations(self.factors or {}), len(self.tasks or {})
        refuse_too_many(len(self.variants), crossed, tasks, self.seeds, points, seeds)
        return self


class _Environment(_Strict):
    """What a page reads of the environment, beside words."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | None]  # pyright: ignore[reportIncompatibleVariableOverride]

    packages: dict[str, str]


_PLAN = TypeAdapter(dict[str, Label])


class Store:
    """Reads and writes the folder of one study.

    Every file appears complete or not at all, so a study may be stopped at any moment and its
    folder read while it runs.

    Args:
        folder: Where the study lies. Writing creates it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._runs = self.folder / "runs"
        self._failed = self.folder / "failed"
        self._claims = self.folder / "claims"
        self.left_aside: dict[Path, str] = {}
        """Files of runs that were read and cannot be used -> why, in a sentence."""

    def refuse_unwritable(self) -> None:
        """Finds out before any work is done that its results could not be written.

        Raises:
            WriteError: Something else stands where the folder is meant to be, or the system grants
                no permission.
        """
        with writing(self.folder):
            there = next(it for it in (self.folder, *self.folder.absolute().parents) if lexists(it))
            if not there.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            # By doing it, since some file systems allow it and then refuse, as /proc does.
            probe = there / f".{uuid.uuid4().hex}.tmp"
            probe.mkdir()
            probe.rmdir()

    def sweep(self) -> None:
        """Removes what processes that were killed had begun to write."""
        places = (
            ".",
            "runs",
            "failed",
            "former",
            "charts",
            "charts/*",
            "checkpoints/*",
            "weights/*",
        )
        for path in (it for place in places for it in self.folder.glob(f"{place}/.*.tmp")):
            if _TEMPORARY.fullmatch(path.name):
                with suppress(OSError):  # It is in nobody's way, or another sweeps it as well.
                    _sweep(path)

    def write(self, result: Result) -> None:
        """Writes `runs/<id>.json`, after `runs/<id>.jsonl`; not finite numbers become null."""
        curve = result.curve.flat().items()
        lines = [
            _line(step, result.steps_per_epoch, {name: it[place] for name, it in curve})
            for place, step in enumerate(result.curve.step)
        ]
        write_whole(self._curve(result.id), "".join(lines))
        write_whole(self._path(result.id), sealed(result.model_dump(mode="json")))
        failed = self._failed / f"{result.id}.json"
        with writing(failed):
            failed.unlink(missing_ok=True)

    def write_point(
        self,
        run: str,
        step: int,
        steps_per_epoch: int,
        metrics: Mapping[str, float | None],
        *,
        first: bool,
    ) -> None:
        """Adds a line to `runs/<id>.jsonl` of a run under way, or begins it with the first point.

        Args:
            run: The run's id.
            step: Steps done.
            steps_per_epoch: Steps of an epoch.
            metrics: Of the point, by the names of `Curve.flat`.
            first: Whether it is the first point of the curve.
        """
        if self._path(run).exists():
            return
        path = self._curve(run)
        with writing(path):
            self._runs.mkdir(parents=True, exist_ok=True)
            with path.open("w" if first else "a", encoding="utf-8") as file:
                file.write(_line(step, steps_per_epoch, metrics))

    def begin_probes(self, run: str, step: int | None) -> None:
        """Begins `probes/<id>.jsonl` of a run, or keeps of it what was found up to a step."""
        path = self._probes(run)
        kept = [] if step is None else [it for it in self.probes(run) if it.step <= step]
        with writing(path):
            path.unlink(missing_ok=True)
        for probed in kept:
            self.write_probed(run, probed)

    def write_probed(self, run: str, probed: Probed) -> None:
        """Adds a line to `probes/<id>.jsonl`."""
        path = self._probes(run)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{probed.model_dump_json()}\n")

    def probes(self, run: str) -> list[Probed]:
        """What probes found of a run so far, in the order of its steps.

        Raises:
            StoreError: The file is damaged.
        """
        path = self._probes(run)
        if not _is_there(path):
            return []
        # What has no end of a line is being written, or was when its process was killed.
        *lines, _ = _content(path).split(b"\n")
        try:
            return [Probed.model_validate_json(line) for line in lines]
        except ValidationError as error:
            raise StoreError(
                f"{path} is damaged ({first_of(error)}). To have it made again, delete it and "
                f"{self._path(run)}, and run the study again."
            ) from error

    def result(self, run: str) -> Result | None:
        """The result of one run; None if there is none yet, or none that can be used."""
        path = self._path(run)
        return self._usable(path) if path.exists() else None

    def write_failure(self, failure: Failure) -> None:
        """Writes `failed/<id>.json`, which the result takes the place of once there is one."""
        path = self._failed / f"{failure.id}.json"
        write_whole(path, sealed(failure.model_dump(mode="json"), indent=2))

    def failures(self) -> list[Failure]:
        """The runs of the study that failed and have no result since, in the order of their ids.

        Files that cannot be used are put into `left_aside`.
        """
        paths = sorted(self._failed.glob("*.json"))
        plan = self.plan()
        paths = [it for it in paths if plan is None or it.stem in plan]
        left = [path for path in paths if not self._path(path.stem).exists()]
        return [it for path in left if (it := self._usable_failure(path)) is not None]

    def claim(self, runs: Iterable[str]) -> list[FileLock] | None:
        """Claims runs for this process until it releases them or ends, however it ends.

        Returns:
            A lock for each run, or None if another process has claimed one of them.
        """
        held: list[FileLock] = []
        with writing(self._claims):
            self._claims.mkdir(parents=True, exist_ok=True)
            for run in runs:
                lock = FileLock(self._claims / f"{run}.lock")
                try:
                    lock.acquire(blocking=False)
                except Timeout:
                    for other in held:
                        other.release()
                    return None
                held.append(lock)
        return held

    def running(self) -> set[str]:
        """The ids of the runs that some process has claimed now."""
        return {it.stem for it in self._claims.glob("*.lock") if _is_held(it)}

    def finished(self) -> set[str]:
        """The ids of the runs that have a result that can be used; for the others see `each`."""
        # One reading decides what a study need not make again and what its page can show.
        return {it.id for it in self.each()}

    def results(self) -> list[Result]:
        """All results that can be used, as `each` has them."""
        return list(self.each())

    def each(self) -> Iterator[Result]:
        """The results one after the other, in the order of their ids, so that none need be kept.

        Files that are damaged, or no results at all, are put into `left_aside`.
        """
        names = sorted(os.listdir(self._runs)) if self._runs.is_dir() else []
        paths = (self._runs / name for name in names if name.endswith(".json"))
        return (it for path in paths if (it := self._usable(path)) is not None)

    def _usable(self, path: Path) -> Result | None:
        try:
            return _read(path)
        except StoreError as error:
            self.left_aside[path] = str(error)
            return None

    def _usable_failure(self, path: Path) -> Failure | None:
        try:
            return _read_failure(path)
        except StoreError as error:
            self.left_aside[path] = str(error)
            return None

    def keep_former(self) -> Path:
        """Copies what the folder says of its study, but for the runs, before another takes over.

        Returns:
            The folder of the copy, `former/1` or the next number.
        """
        former = self.folder / "former"
        temporary = former / f".{uuid.uuid4().hex}.tmp"
        with writing(former):
            temporary.mkdir(parents=True)
            opened = os.open(temporary, os.O_RDONLY) if os.name == "posix" else None
            try:
                if opened is not None:
                    _lock(opened)
                for path in (self.folder / name for name in _OF_ONE_STUDY):
                    if path.is_dir():
                        shutil.copytree(path, temporary / path.name)
                    elif path.exists():
                        shutil.copy2(path, temporary / path.name)
                number = 1
                while (kept := former / str(number)).exists():
                    number += 1
                return temporary.rename(kept)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
                if opened is not None:
                    os.close(opened)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes the resolved configuration of the study to `config.yaml`.

        Its first line is a comment with the checksum of what the others say.
        """
        text = to_yaml(escaped(config))
        sealed_by = f"{_CHECKSUM}{checksum(from_yaml(text))}\n"
        write_whole(self.folder / "config.yaml", sealed_by + text)

    def config(self) -> dict[str, Any]:
        """The resolved configuration of the study.

        Raises:
            NoStudyError: The folder holds no study.
            StoreError: The file is damaged, or was changed since it was written.
        """
        path = self._existing("config.yaml")
        try:
            text = _content(path).decode()
            written = from_yaml(text)
            config = unescaped(written)
        except (YAMLError, ValueError, RecursionError) as error:
            raise StoreError(f"{path} is damaged ({error}). {_REPAIR}") from error
        try:
            _Config.model_validate(config)
        except ValidationError as error:
            what = first_of(error)
            raise StoreError(f"{path} does not describe a study ({what}). {_REPAIR}") from error
        first = text.partition("\n")[0]
        # Those that were written before there were checksums have none.
        if first.startswith(_CHECKSUM) and first.strip() != _CHECKSUM + checksum(written):
            again = shlex.join(["normlab", "compare", str(path), "--out", str(self.folder)])
            raise StoreError(
                f"{path} was changed since it was written, since its checksum is another. Put it "
                f"back as it was, or have the study as it is written now by\n  {again}\nwhich "
                "keeps finished runs."
            )
        return dict(config)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Writes versions, device, git revision and command to `environment.json`."""
        write_whole(self.folder / "environment.json", sealed(environment, indent=2))

    def environment(self) -> dict[str, Any]:
        """Versions, device, git revision and command of the study.

        Raises:
            NoStudyError: The folder holds no study.
            StoreError: The file is damaged.
        """
        path = self._existing("environment.json")
        try:
            environment = json.loads(unsealed(_content(path))[0])
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}). {_REPAIR}") from error
        try:
            _Environment.model_validate(environment)
        except ValidationError as error:
            raise StoreError(
                f"{path} does not describe an environment ({first_of(error)}). {_REPAIR}"
            ) from error
        return environment

    def write_plan(self, runs: Mapping[str, Label]) -> None:
        """Writes to `plan.json` the runs that make up the study now: id -> where it stands."""
        content = {run: label.model_dump(mode="json") for run, label in runs.items()}
        write_whole(self.folder / "plan.json", sealed(content, indent=0))

    def plan(self) -> dict[str, Label] | None:
        """The runs that make up the study, by id; None where all results of the folder do.

        A study that is changed and run again leaves runs behind that no longer count.

        Raises:
            StoreError: The file is damaged.
        """
        path = self.folder / "plan.json"
        if not _is_there(path):
            return None
        try:
            return _PLAN.validate_json(unsealed(_content(path))[0], strict=True)
        except ValidationError as error:
            raise StoreError(f"{path} is damaged ({first_of(error)}). {_REPAIR}") from error
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}). {_REPAIR}") from error

    def _path(self, run: str) -> Path:
        return self._runs / f"{run}.json"

    def _curve(self, run: str) -> Path:
        return self._runs / f"{run}.jsonl"

    def _probes(self, run: str) -> Path:
        return self.folder / "probes" / f"{run}.jsonl"

    def _existing(self, name: str) -> Path:
        path = self.folder / name
        if not _is_there(path):
            if there := studies_in(self.folder):
                raise NoStudyError(
                    f"{self.folder} holds no study, but the folders of {len(there)}: "
                    f"{', '.join(map(str, there[:5]))}{', ...' * (len(there) > 5)}. Give one of "
                    f"them; `normlab report {self.folder}` lists all."
                )
            raise NoStudyError(
                f"{self.folder} holds no study: {name} is missing. Give the folder that "
                "`normlab compare` writes; a study that has just begun writes it once all of its "
                "programs are traced."
            )
        return path


def left_aside_in_words(left_aside: Mapping[Path, str]) -> list[str]:
    """Tells which files were left aside and why, in a line each."""
    if not left_aside:
        return []
    told = [displayed(line) for line in left_aside.values()]
    more = len(told) - MOST_TOLD
    return [
        "1 file of a run cannot be used and is left aside:"
        if len(told) == 1
        else f"{len(told)} files of runs cannot be used and are left aside:",
        *(f"  {line}" for line in told[:MOST_TOLD]),
        *([f"  and {more} more"] if more > 0 else []),
        "The study, started again, makes those anew that are results of its runs; delete others.",
    ]


def is_study(folder: str | Path) -> bool:
    """Whether a folder is that of a study."""
    return _is_there(Path(folder) / "config.yaml")


def studies_in(folder: str | Path) -> list[Path]:
    """Returns the folders of the studies that lie directly in a folder, by name."""
    return sorted(path.parent for path in Path(folder).glob("*/config.yaml"))


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8, so that nobody ever sees a part of it.

    Raises:
        WriteError: The system refused, as where there is no space or no permission.
    """
    # A reader looks for whole names only, and a rename within one folder is atomic. The name is
    # unique, so two writers on one folder never share a temporary file.
    temporary = None
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            while True:
                temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
                with temporary.open("wb") as file:
                    if not _lock(file.fileno()):  # It was just swept.
                        continue
                    file.write(content.encode() if isinstance(content, str) else content)
                    file.flush()
                    os.fsync(file.fileno())
                    if os.name == "posix":  # Elsewhere a file that is open cannot be moved.
                        os.replace(temporary, path)
                if os.name != "posix":
                    os.replace(temporary, path)
                break
            _sync(path.parent)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tells what the system refuses while a file or folder is written.

    Raises:
        WriteError: The system refused.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(refused("written", path, error, _ELSEWHERE)) from error


def _is_held(lock: Path) -> bool:
    """Whether some process has claimed a run; writes nothing, where the system allows that."""
    if os.name != "posix":
        probe = FileLock(lock)
        try:
            probe.acquire(blocking=False)
        except Timeout:
            return True
        probe.release()
        return False
    import fcntl

    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, IsADirectoryError):  # It has just been removed, or is no claim.
        return False
    except OSError as error:
        raise StoreError(refused("read", lock, error, _READABLE)) from error
    return False


def _lock(opened: int, *, wait: bool = True) -> bool:
    """Locks a file or folder that is open until it is closed; whether it is still there."""
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:  # Another has it, or the file system has no locks.
            return wait
    return os.fstat(opened).st_nlink > 0


def _sweep(path: Path) -> None:
    """Removes a temporary file or folder unless somebody is writing it."""
    if os.name != "posix":
        if path.is_file() and time.time() - path.stat().st_mtime > _SURELY_DEAD:
            path.unlink()
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        if _lock(opened, wait=False):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(opened)


def _sync(folder: Path) -> None:
    """Makes the names in a folder last through a power failure, where folders can be opened."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def epochs_of(step: int, steps_per_epoch: int) -> int | float:
    """Returns steps in epochs, a whole number of them as such."""
    whole, rest = divmod(step, steps_per_epoch)
    return step / steps_per_epoch if rest else whole


def _line(step: int, steps_per_epoch: int, metrics: Mapping[str, float | None]) -> str:
    finite = {name: _finite_or_none(value) for name, value in metrics.items()}
    where = {"epoch": epochs_of(step, steps_per_epoch), "step": step}
    return json.dumps(where | finite) + "\n"


def _is_there(path: Path) -> bool:
    """Whether a name is there, be it of a file or of what cannot be read."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoreError(refused("read", path, error, _READABLE)) from error
    return True


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(refused("read", path, error, _READABLE)) from error


def _read_failure(path: Path) -> Failure:
    try:
        failure = Failure.model_validate_json(unsealed(_content(path))[0], strict=True)
        if failure.id != path.stem:
            raise ValueError(f"it says that it is the run {failure.id}")
    except ValueError as error:
        what = first_of(error) if isinstance(error, ValidationError) else error
        raise StoreError(f"{path} is not the record of a failed run ({what}).") from error
    return failure


# Path -> hash of what it held, of the results that this process has found sound, since a study
# reads all of its results several times.
_sound: dict[Path, bytes] = {}


def _read(path: Path) -> Result:
    try:
        content = _content(path)
        result = _parsed(content)
        held = hashlib.blake2b(content, digest_size=16).digest()
        if _sound.get(path) != held:
            if result.id != path.stem:
                raise ValueError(f"it says that it is the run {result.id}")
            _refuse_another_identity(result)
            refuse_what_cannot_be(result)
            _sound[path] = held
    except RecursionError as error:
        raise StoreError(f"{path} is not the result of a run (it is too deep).") from error
    except ValueError as error:
        what = first_of(error) if isinstance(error, ValidationError) else error
        raise StoreError(f"{path} is not the result of a run ({what}).") from error
    return result


def _parsed(content: bytes) -> Result:
    rest, checked = unsealed(content)
    if b'"train_loss"' in rest and _is_former(json.loads(rest)):
        rest = json.dumps(_from_former(json.loads(rest))).encode()
    elif not checked:
        raise ValueError("it has no checksum, as every result of today has")
    return Result.model_validate_json(rest, strict=True)


def _refuse_another_identity(result: Result) -> None:
    """Compares a result with its identity, which its name is made of.

    Whoever changes one of the two can have a checksum as well.
    """
    told, variant = result.identity, result.identity.get("variant")
    says = {
        "phase": told.get("phase"),
        "seed": told.get("seed"),
        "values": told.get("values"),
        "until": told.get("until"),
        "variant": variant.get("name") if isinstance(variant, dict) else None,
    }
    for key, value in says.items():
        if getattr(result, key) != value:
            raise ValueError(f"its identity says another {key}")
    if result.id != run_id(result.phase, result.variant, result.seed, told):
        raise ValueError("its identity has another name")


def run_id(phase: str, variant: str, seed: int, identity: Mapping[str, Any]) -> str:
    """Names a run: readable, and different for whatever differs in its identity."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return f"{phase}-{_word(variant)}-{seed}-{digest}"


def _word(name: str) -> str:
    """Keeps of a name what may stand in a file name anywhere."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:40]
