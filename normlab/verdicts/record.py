"""What is kept of an experiment's runs, from which its verdict is computed: a small JSON file."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from ..compare.store import write_whole
from ..errors import UserError, first_of
from .measures import Curves, Scores


class Record(BaseModel):
    """What was measured, and of what.

    Attributes:
        rule: SHA-256 of the file of the rule, as it was when the runs were judged.
        study: Hash of the study, as `Study.hash`.
        command: What made it.
        environment: Versions, device and git revision.
        runs: How many were made, for tuning and reported.
        seconds: Of training, over all of them, compilation excluded.
        tuned: Arm -> dotted path -> value that its reported runs have.
        edges: Arms whose tuned value lies at the edge of what was tried.
        scores: Measure -> arm -> seed -> number; None for what is not finite.
        curves: Quantity -> arm -> step -> mean over the reported runs, likewise; what is drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rule: str
    study: str
    command: str
    environment: dict[str, JsonValue]
    runs: dict[str, int]
    seconds: Annotated[float, Field(ge=0)]
    tuned: dict[str, dict[str, JsonValue]]
    edges: list[str]
    scores: dict[str, dict[str, dict[int, float | None]]]
    curves: dict[str, dict[str, dict[int, float | None]]] = Field(default_factory=dict)

    @property
    def measured(self) -> Scores:
        """The scores, with NaN for what is not finite."""
        return _converted(self.scores, _number)

    @property
    def drawn(self) -> Curves:
        """The curves, likewise."""
        return _converted(self.curves, _number)


def read_record(path: Path) -> Record:
    """Reads a record.

    Raises:
        UserError: The file is damaged or of another format.
    """
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} is no record of an experiment: {first_of(error)}") from error


def write_record(record: Record, path: Path) -> None:
    """Writes a record, numbers with six digits, which tell apart what a verdict depends on."""
    plain = record.model_dump(mode="json")
    plain["seconds"] = round(plain["seconds"], 1)
    plain["scores"] = _converted(plain["scores"], lambda it: it and float(f"{it:.6g}"))
    plain["curves"] = _converted(plain["curves"], lambda it: it and float(f"{it:.4g}"))
    if not plain["curves"]:
        del plain["curves"]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(plain, indent=1) + "\n")


def finite(scores: Scores | Curves) -> dict[str, dict[str, dict[int, float | None]]]:
    """Scores as a record has them."""
    return _converted(scores, lambda it: it if math.isfinite(it) else None)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _converted(
    scores: Mapping[str, Mapping[str, Mapping[Any, Any]]], convert: Callable[[Any], Any]
) -> dict[str, dict[str, dict[Any, Any]]]:
    return {
        measure: {
            arm: {seed: convert(it) for seed, it in seeds.items()} for arm, seeds in by_arm.items()
        }
        for measure, by_arm in scores.items()
    }
