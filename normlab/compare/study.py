"""What a study is: the specs of the floors below, the arms, what is tuned and how often."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    ConfigDict,
    Field,
    PositiveInt,
    create_model,
    field_validator,
    model_validator,
)

from ..data import DataSpec
from ..errors import UserError
from ..models import ModelSpec
from ..spec import Spec
from ..train import OptimizerSpec, SGDSpec, TrainSpec
from ..variants import VariantSpec, variant_spec_type
from .paths import flatten

Value = bool | int | float | str
# Parts of a study that tuning may vary: the same for all arms.
TUNABLE = ("data", "model", "optimizer", "train")


class StudyError(UserError):
    """A study cannot be run as it is configured; the message says where and why."""


class TuneSpec(Spec):
    """The search that every arm gets: a grid over dotted paths, and its number of seeds.

    A configuration writes `tune: {optimizer.learning_rate: [0.01, 0.1], seeds: 2}`. Each arm trains
    at every point of the grid with every seed, and keeps the point that does best on the validation
    split.

    Attributes:
        seeds: Runs at each point.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]]  # pyright: ignore[reportIncompatibleVariableOverride]

    seeds: PositiveInt = 1

    @property
    def grid(self) -> dict[str, tuple[Value, ...]]:
        """The values to try, by dotted path."""
        return dict(self.__pydantic_extra__)

    @model_validator(mode="before")
    @classmethod
    def _dotted(cls, given: Any) -> Any:
        # The override `tune.optimizer.learning_rate=[1]` arrives as a nested record.
        return flatten(given) if isinstance(given, Mapping) else given


class Study(Spec):
    """A comparison of normalization variants, whole.

    Attributes:
        study: Its name, and the folder of its results below `runs`.
        modules: Python modules or files that register variants of the user's own.
        data: The data set.
        model: The model, the same for all arms.
        optimizer: The optimizer, the same for all arms but for what is tuned.
        train: How long and how to train.
        variants: The arms, by the names they have in the report.
        tune: What is tuned for each arm; None for nothing.
        seeds: Runs of each arm with its tuned values, on fresh seeds.
        baseline: The arm that the others are compared with; the first one if not given.
        target_accuracy: Validation accuracy to count the steps to; if not given, 95% of the best
            arm's.
    """

    study: str = Field(pattern=r"^\w[\w.-]*$")
    modules: tuple[str, ...] = ()
    data: DataSpec = DataSpec()
    model: ModelSpec
    optimizer: OptimizerSpec = SGDSpec()
    train: TrainSpec = TrainSpec()
    variants: dict[str, VariantSpec] = Field(min_length=1)
    tune: TuneSpec | None = None
    seeds: PositiveInt = 5
    baseline: str = ""
    target_accuracy: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _first_is_baseline(cls, given: Any) -> Any:
        variants = given.get("variants") if isinstance(given, dict) else None
        if isinstance(variants, Mapping) and variants and not given.get("baseline"):
            return {**given, "baseline": str(next(iter(variants)))}
        return given

    @field_validator("baseline")
    @classmethod
    def _baseline_is_an_arm(cls, given: str, info: Any) -> str:
        variants = info.data.get("variants", {given: None})  # absent if they have problems
        if given not in variants:
            raise ValueError(f"{given!r} is none of the variants {', '.join(variants)}")
        return given


def study_type() -> type[Study]:
    """Returns the type that validates studies over the variants registered by now."""
    arms: Any = dict[str, variant_spec_type()]  # pyright: ignore[reportInvalidTypeForm]
    return create_model("Study", __base__=Study, variants=(arms, ...))
