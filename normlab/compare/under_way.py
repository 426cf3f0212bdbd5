"""Curves of runs while these are trained, from their files alone: nothing is locked or written."""

import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..checksum import unsealed
from ..errors import first_of, refused
from ..length import length_of
from .store import StoreError

_RECORD = "run.json"
_CURVE = "*/record/metadata"


@dataclass(frozen=True)
class Course:
    """How far a run has come.

    Attributes:
        run: Its name.
        step: Steps done at each point of its curve.
        metrics: Split and metric, as "train_loss" -> its value at each point.
        age: Seconds since the last point was written.
    """

    run: str
    step: list[int]
    metrics: dict[str, list[float | None]]
    age: float


@dataclass(frozen=True)
class SavedRuns:
    """Where runs stand that are saved in a folder of their own.

    Attributes:
        config: The configuration of their study.
        courses: Of each of them.
        steps: How long they are; None before the first point of a curve.
    """

    config: Mapping[str, Any]
    courses: list[Course]
    steps: int | None

    @property
    def is_finished(self) -> bool:
        """Whether they have been saved after their last step."""
        return self.steps is not None and all(it.step[-1:] == [self.steps] for it in self.courses)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Train(_Strict):
    epochs: int | None = None
    steps: int | None = None
    validate_every: int = Field(1, ge=1)
    evaluate_every: int | None = Field(None, ge=1)


class _Study(_Strict):
    model_config = ConfigDict(extra="allow")

    study: str
    train: _Train
    metric: dict[str, Any]


class _Record(_Strict):
    runs: list[str] = Field(min_length=1)
    study: _Study


class _Point(_Strict):
    step: int
    train: dict[str, float]
    validation: dict[str, float] | None = None


class _Standing(_Strict):
    step: int
    curves: list[list[_Point]]


def is_saved(folder: Path) -> bool:
    """Whether a folder is one that `normlab train` was given as `--save`."""
    return (folder / _RECORD).is_file()


def last_course(folder: Path, runs: Iterable[str]) -> Course | None:
    """Returns the curve of a study that was written to last.

    Args:
        folder: The study's.
        runs: The runs to choose from.
    """
    written = {}
    for run in runs:
        path = folder / "runs" / f"{run}.jsonl"
        try:
            written[path] = path.stat().st_mtime
        except OSError:  # It has not begun.
            continue
    if not written:
        return None
    path = max(written, key=lambda it: written[it])
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # It has just been taken away, or is not for whoever watches.
        return None
    points = []
    for line in content.splitlines():
        try:
            points.append(json.loads(line))
        except (ValueError, RecursionError):  # The last line is just being written, or is damaged.
            break
    points = [it for it in points if isinstance(it, dict) and isinstance(it.get("step"), int)]
    names = [it for it in (points[-1] if points else {}) if it not in ("step", "epoch")]
    metrics = {name: [_number(point.get(name)) for point in points] for name in names}
    age = max(0.0, time.time() - written[path])
    return Course(path.stem, [it["step"] for it in points], metrics, age)


def read_saved(folder: Path) -> SavedRuns:
    """Reads where runs stand whose checkpoints lie in a folder.

    Raises:
        StoreError: The record of the runs is damaged.
    """
    path = folder / _RECORD
    try:
        record = _Record.model_validate_json(unsealed(path.read_bytes())[0])
    except OSError as error:
        raise StoreError(refused("read", path, error, "give another folder")) from error
    except ValueError as error:
        what = first_of(error) if isinstance(error, ValidationError) else error
        raise StoreError(f"{path} is damaged ({what}); give another folder") from error
    config = record.study.model_dump()
    found = _newest(folder)
    if found is None:
        return SavedRuns(config, [Course(it, [], {}, 0.0) for it in record.runs], None)
    standing, age = found
    courses = [
        _course(name, standing.step, curve, age)
        for name, curve in zip(record.runs, standing.curves, strict=False)
    ]
    first = next((curve[0].step for curve in standing.curves if curve), None)
    train = record.study.train
    steps = train.steps
    if steps is None and first is not None:  # An epoch is as long as the first point says.
        steps = length_of(first, **train.model_dump()).steps
    return SavedRuns(config, courses, steps)


def _newest(folder: Path) -> tuple[_Standing, float] | None:
    """What the last checkpoint that can be read says, and its age."""
    for path in sorted(folder.glob(_CURVE), reverse=True):
        try:
            standing = _Standing.model_validate_json(path.read_bytes())
            return standing, max(0.0, time.time() - path.stat().st_mtime)
        except (OSError, ValueError):  # It is being written or removed.
            continue
    return None


def _course(name: str, step: int, curve: list[_Point], age: float) -> Course:
    names = {f"train_{it}": ("train", it) for point in curve for it in point.train}
    names |= {
        f"validation_{it}": ("validation", it) for point in curve for it in point.validation or {}
    }
    metrics = {
        flat: [_number((getattr(point, split) or {}).get(it)) for point in curve]
        for flat, (split, it) in names.items()
    }
    steps = [point.step for point in curve]
    # The point that is due where it was saved comes after it.
    return Course(name, [*steps, step] if step not in steps else steps, metrics, age)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= sys.float_info.max else None
