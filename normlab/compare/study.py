"""What a study is: the specs of the floors below, the arms, what is tuned and how often."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
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
from .paths import flatten, with_values

# The parts of a study that determine its runs, the same for all arms.
PARTS = ("data", "model", "optimizer", "train")


TUNABLE_PATHS = "model.*, optimizer.*, train.* (but no name) and data.batch_size"


def is_tunable(path: str) -> bool:
    """Whether a dotted path can be tuned.

    Arms are compared on one data set and one split of it, and a name would bring other fields.
    """
    head, _, rest = path.partition(".")
    if head == "data":
        return path == "data.batch_size"
    return head in PARTS and bool(rest) and not path.endswith(".name")


def _one_number_or_word(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"expected a number, a word or true or false, but {value!r} was given")
    return value


def _without_repetition(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"each value is tried once, but {list(values)} repeats one")
    return values


Value = Annotated[Any, AfterValidator(_one_number_or_word)]
Values = Annotated[tuple[Value, ...], Field(min_length=1), AfterValidator(_without_repetition)]


VariantName = Annotated[str, Field(min_length=1)]
# Fewer than the distance between the seeds of tuning and those of the reported runs.
Seeds = Annotated[int, Field(ge=1, le=10_000)]


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
    __pydantic_extra__: dict[str, Values]  # pyright: ignore[reportIncompatibleVariableOverride]

    seeds: Seeds = 1

    @property
    def grid(self) -> dict[str, tuple[Any, ...]]:
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
        model: The model of all arms.
        optimizer: The optimizer of all arms.
        train: How long and how to train.
        variants: The arms, by the names they have in the report. An arm may have other fields of
            model and optimizer, as in `{layer: identity, model: {residual: skip_init}}`; what is
            tuned is tuned for all.
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
    variants: dict[VariantName, VariantSpec] = Field(min_length=1)
    tune: TuneSpec | None = None
    seeds: Seeds = 5
    baseline: str = ""
    target_accuracy: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        given = dict(given)
        variants, optimizer = given.get("variants"), given.get("optimizer")
        if isinstance(variants, Mapping) and variants and not given.get("baseline"):
            given["baseline"] = str(next(iter(variants)))
        if isinstance(optimizer, Mapping):
            given["optimizer"] = {"name": "sgd", **optimizer}
        return given

    @field_validator("baseline")
    @classmethod
    def _baseline_is_an_arm(cls, given: str, info: Any) -> str:
        variants = info.data.get("variants", {given: None})  # absent if they have problems
        if given not in variants:
            raise ValueError(f"{given!r} is none of the variants {', '.join(variants)}")
        return given

    @model_validator(mode="after")
    def _tuned_or_overridden(self) -> "Study":
        tuned = self.tune.grid if self.tune else {}
        fixed = [
            f"variants.{name}.{path}"
            for name, variant in self.variants.items()
            for path in variant.overrides()
            if path in tuned
        ]
        if fixed:
            raise ValueError(
                f"{', '.join(fixed)}: given for an arm, but tuned for every arm; leave out one of "
                "the two"
            )
        return self

    def for_arm(self, variant: str) -> "Study":
        """Returns the study as an arm sees it, with what that overrides in its place.

        Raises:
            pydantic.ValidationError: If the model or the optimizer has no such field or value.
        """
        overrides = self.variants[variant].overrides()
        if not overrides:
            return self
        return type(self).model_validate(with_values(self.model_dump(), overrides))


def study_type() -> type[Study]:
    """Returns the type that validates studies over the variants registered by now."""
    arms: Any = dict[VariantName, variant_spec_type()]  # pyright: ignore[reportInvalidTypeForm]
    return create_model("Study", __base__=Study, variants=(arms, Field(min_length=1)))
