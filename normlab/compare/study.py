"""What a study is: the specs of the floors below, the arms, what is tuned and how often."""

import itertools
import json
import math
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    create_model,
    field_validator,
    model_validator,
)

from ..data import LOADERS, DataSpec, data_spec_type
from ..errors import UserError, nearest
from ..inference.power import enough_pairs
from ..models import MODELS, ModelSpec, model_spec_type
from ..objectives import (
    OBJECTIVES,
    Classification,
    Objective,
    ObjectiveSpec,
    objective_spec_type,
)
from ..probes import PROBES
from ..spec import Spec, invisible
from ..train import MeshSpec, OptimizerSpec, SGDSpec, TrainSpec
from ..variants import VARIANTS, VariantSpec, variant_spec_type
from .arm import Arm, Factors, arms, combinations, is_of_layer, paths_of
from .bounds import (
    MOST_ARMS,
    MOST_VALUES,
    Extensions,
    Margin,
    MarginPoints,
    Seeds,
    Significance,
    SomeValues,
    Trials,
    refuse_too_many,
)
from .executors.spec import ExecutorSpec, LocalSpec, ProcessesSpec
from .fingerprint import CHANGES_NO_NUMBER, of_config
from .metric import ReportedSpec, completed
from .paths import flatten, value_at, with_values
from .search import Range, points

# The parts of a study that determine its runs, the same for all arms.
PARTS = ("data", "model", "objective", "optimizer", "train")


TUNABLE_PATHS = (
    "model.*, objective.*, optimizer.*, train.* (but no name, nor how often a run is validated or "
    "saved), data.batch_size, layer.FIELD and variants.NAME.FIELD"
)

_LENGTHS = ("train.epochs", "train.steps")
# How often a run is looked at or saved, which changes nothing of it.
_OF_NO_RUN = ("train.validate_every", "train.evaluate_every", *CHANGES_NO_NUMBER)


def is_tunable(path: str) -> bool:
    """Whether a dotted path can be tuned.

    Arms are compared on one data set and one split of it, and a name would bring other fields.
    """
    head, _, rest = path.partition(".")
    if path in _OF_NO_RUN:
        return False
    if head == "data":
        return path == "data.batch_size"
    if is_of_layer(path):
        return bool(rest)
    return head in PARTS and bool(rest) and not path.endswith(".name")


def _can_be_a_factor(path: str) -> bool:
    head, _, rest = path.partition(".")
    named = head in (*PARTS, "layer") and bool(rest) and path != "data.name"
    return named and path not in _OF_NO_RUN


def _repeats(values: tuple[Any, ...]) -> bool:
    # As a configuration writes them: 1 and true are two.
    return len({json.dumps(value, sort_keys=True) for value in values}) < len(values)


def _without_equal_levels(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if _repeats(values):
        raise ValueError(f"each level makes an arm, but {list(values)} repeats one")
    return values


def _paths_of_factors(factors: Factors) -> list[str]:
    if isinstance(factors, Mapping):
        return list(factors)
    return list(dict.fromkeys(path for combination in factors for path in combination))


def _factor_paths(given: Any) -> Any:
    for path in _paths_of_factors(given):
        if not _can_be_a_factor(path):
            raise ValueError(
                f"{path!r} cannot be a factor; expected a field of {', '.join(PARTS)} or layer, as "
                "in data.batch_size; data sets are tasks, as in tasks: {other: {data.name: NAME}}"
            )
    return given


def _task_paths(given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for task, changes in given.items():
        for path in changes:
            head, _, rest = path.partition(".")
            if head not in PARTS or not rest:
                raise ValueError(
                    f"{task} changes {path!r}; expected fields of {', '.join(PARTS)}, as in "
                    "data.name"
                )
    return given


def _all_visible(value: Any) -> Any:
    """Refuses values that a reader of a table could not see, as `_can_be_shown` does names."""
    if isinstance(value, str) and (found := invisible(value)):
        raise ValueError(f"the text {value!r} has {found}; leave them out")
    inside = value.values() if isinstance(value, Mapping) else value
    if isinstance(inside, Iterable) and not isinstance(inside, str):
        for inner in inside:
            _all_visible(inner)
    return value


def _one_number_or_word(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"expected a number, a word or true or false, but {value!r} was given")
    return _all_visible(value)


def _without_repetition(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if _repeats(values):
        raise ValueError(f"each value is tried once, but {list(values)} repeats one")
    return values


Value = Annotated[Any, AfterValidator(_one_number_or_word)]
Values = Annotated[tuple[Value, ...], SomeValues, AfterValidator(_without_repetition)]

Searched = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Values, Tag("values")],
    Discriminator(lambda given: "range" if isinstance(given, Mapping | Range) else "values"),
]
# What a factor may be set to: whatever a configuration can say of a field.
Levels = Annotated[
    tuple[JsonValue, ...],
    SomeValues,
    AfterValidator(_all_visible),
    AfterValidator(_without_equal_levels),
]
Combinations = Annotated[
    tuple[dict[str, JsonValue], ...],
    Field(max_length=MOST_VALUES),
    AfterValidator(_all_visible),
    AfterValidator(_without_equal_levels),
]
Crossed = Annotated[
    Annotated[dict[str, Levels], Tag("grid")] | Annotated[Combinations, Tag("combinations")],
    Discriminator(lambda given: "combinations" if isinstance(given, list | tuple) else "grid"),
    AfterValidator(_factor_paths),
]

MOST_SIGNS = 100

# What every object of JavaScript has, which programs that charts pass through take for it.
_OF_EVERY_OBJECT = frozenset(
    (
        *("constructor", "hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "__proto__"),
        *("toLocaleString", "toString", "valueOf", "__defineGetter__", "__defineSetter__"),
        *("__lookupGetter__", "__lookupSetter__"),
    )
)


def _can_be_shown(name: str) -> str:
    """Refuses a name that a reader of a table, a page or a file could not see or type."""
    if found := invisible(name):
        raise ValueError(f"the name {name!r} has {found}; leave them out")
    if name != " ".join(name.split()):
        raise ValueError(
            f"the name {name!r} has spaces at an end, several together or of another kind; write "
            f"{' '.join(name.split())!r}"
        )
    if name in _OF_EVERY_OBJECT:
        raise ValueError(f"charts cannot have the name {name!r}; give another, as in {name}_1")
    if not 1 <= len(name) <= MOST_SIGNS:
        raise ValueError(f"a name of {len(name)} signs; expected 1 to {MOST_SIGNS}")
    return name


def _look_different(named: dict[str, Any]) -> dict[str, Any]:
    """Refuses names that are told apart by how Unicode composes their letters alone."""
    seen: dict[str, str] = {}
    for name in named:
        other = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise ValueError(f"{other!a} and {name!a} look the same; rename one of them")
    return named


Name = Annotated[str, AfterValidator(_can_be_shown)]
Tasks = Annotated[
    dict[Name, dict[str, JsonValue]],
    Field(max_length=MOST_ARMS),
    AfterValidator(_task_paths),
    AfterValidator(_look_different),
]


def _enough_seeds(given: Mapping[str, Any]) -> int:
    """The default of `Study.seeds`; parts of the study that have problems are told elsewhere."""
    variants, factors = given.get("variants"), given.get("factors") or {}
    significance = given.get("significance", 0.05)
    places = len(factors) if isinstance(factors, list | tuple) else 1
    if isinstance(factors, Mapping):
        places = math.prod(len(it) for it in flatten(factors).values() if isinstance(it, list))
    pairs = math.comb(len(variants), 2) if isinstance(variants, Mapping) else 1
    try:
        level = float(significance)  # which may be given as text, as all numbers
    except (TypeError, ValueError, OverflowError):
        level = 0.05
    return enough_pairs(level if 0 < level < 1 else 0.05, pairs * places)


def _known_metrics(objective: Any) -> Mapping[str, Any]:
    """The metrics of the objective that a study names; those of classification for none."""
    if isinstance(objective, Objective):
        return objective.all_metrics()
    named = objective.get("name") if isinstance(objective, Mapping) else None
    known = OBJECTIVES.get(named) if isinstance(named, str) else None
    return (known or Classification).all_metrics()


class StudyError(UserError):
    """A study cannot be run as it is configured; the message says where and why."""


class ProbeSpec(Spec):
    """When a probe looks.

    Attributes:
        every: Steps between two looks, one before the first step and one after the last besides;
            None for one at each point of the curve.
    """

    every: Annotated[int, Field(ge=1)] | None = None


class TuneSpec(Spec):
    """The search that every arm gets over dotted paths, and its number of seeds.

    A configuration writes `tune: {optimizer.learning_rate: [0.01, 0.1], seeds: 2}` for a grid, or
    `tune: {optimizer.learning_rate: {low: 1e-4, high: 1}, trials: 20}` for random draws. Each arm
    trains at every point with every seed, and keeps the point that does best on the validation
    split.

    Fields of the layers can be tuned too: `layer.epsilon` for all variants whose layer has one,
    `variants.batch.momentum` for one variant. A variant without the field is tuned over the rest:
    in a grid at fewer points, with `trials` at as many.

    Attributes:
        seeds: Runs at each point.
        trials: Points to draw, the same for every arm; None for the full grid. A path with a list
            of values is drawn from the list; equal points are tried once.
        extend: How often a grid may go on by a value, for all arms alike, on a side where some
            arm's best value lies; not with trials.
        stop_early: Whether to train all points for an eighth of a run, the better half of each
            arm's for a quarter, half of these for a half, and the rest whole: successive halving,
            with the same rule and budget for all arms; not with extend.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Searched]  # pyright: ignore[reportIncompatibleVariableOverride]

    seeds: Seeds = 1
    trials: Trials | None = None
    extend: Extensions = 0
    stop_early: bool = False

    @property
    def space(self) -> dict[str, tuple[Any, ...] | Range]:
        """The values to try or the range to draw from, by dotted path."""
        return dict(self.__pydantic_extra__)

    @model_validator(mode="before")
    @classmethod
    def _dotted(cls, given: Any) -> Any:
        # The override `tune.optimizer.learning_rate=[1]` arrives as a nested record.
        return by_path(given) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _something_is_tuned(self) -> "TuneSpec":
        if not self.space:
            raise ValueError(
                "nothing is tuned; give the values to try of something, as in "
                "optimizer.learning_rate: [0.01, 0.1], or leave out tune"
            )
        return self

    @model_validator(mode="after")
    def _ranges_have_a_budget(self) -> "TuneSpec":
        ranges = [path for path, values in self.space.items() if isinstance(values, Range)]
        if ranges and self.trials is None:
            raise ValueError(f"{', '.join(ranges)}: a range needs trials, as in trials: 20")
        return self

    @model_validator(mode="after")
    def _only_a_grid_goes_on(self) -> "TuneSpec":
        if self.extend and self.trials is not None:
            raise ValueError(
                f"extend={self.extend} continues a grid, but trials={self.trials} draws at random; "
                "leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _only_what_is_of_one_length_stops_early(self) -> "TuneSpec":
        if self.stop_early and self.extend:
            raise ValueError(
                f"extend={self.extend} goes on where all points are known to their end, but with "
                "stop_early few are; leave out one of the two"
            )
        longer = [path for path in self.space if path in _LENGTHS]
        if self.stop_early and longer:
            raise ValueError(
                f"stop_early compares runs of one length, but {', '.join(longer)} are tuned; leave "
                "out one of the two"
            )
        return self


def by_path(tune: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Joins the keys of a search with dots, down to the ranges."""
    flat: dict[str, Any] = {}
    for key, value in tune.items():
        if isinstance(value, Mapping) and not {*value} & {*Range.model_fields}:
            flat.update(by_path(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class Study(Spec):
    """A comparison of normalization variants, whole.

    Each path of the configuration is set in one place beside the parts themselves: in `factors`,
    in `tasks`, in `tune`, or by variants for themselves.

    Attributes:
        study: Its name, and the folder of its results below `runs`.
        modules: Files beside the study that register variants, models or data of the user's own,
            or installed modules; `normlab.modules` says which.
        data: The data set.
        model: The model of all arms.
        objective: What the model learns to predict, and what is measured of it.
        optimizer: The optimizer of all arms.
        train: How long and how to train.
        variants: What is compared, by the names they have in the report. A variant may have other
            fields of model and optimizer, as in `{layer: identity, model: {residual: skip_init}}`;
            what is tuned is tuned for all.
        factors: What the variants are crossed with: dotted path -> levels for the full grid, as in
            `{data.batch_size: [16, 64]}`, or a list of the combinations wanted, as in
            `[{data.batch_size: 16, train.epochs: 5}, ...]`. An arm is a variant at one combination.
            `layer.epsilon` is that field of every variant's layer, and all must have it.
        tasks: Name -> what is other in this task than in the parts above, by dotted path, as in
            `{fashion: {data.name: fashion_mnist}}`. Every arm is tuned and repeated on every task.
            None for the one task that the parts describe.
        tune: What is tuned for each arm; None for nothing.
        baseline: The variant that the others are compared with, at the same levels and on the same
            task; the first one if not given.
        metric: What is reported and tested, of what the objective measures, and what tuning selects
            by: a name, or `{name: rmse, unit: m}`; by default the objective's first one. With
            `select_by`, tuning selects by another one, as in `{name: accuracy, select_by: loss}`.
        target: What to count the steps to, on the validation split, as the metric has it: a share
            between 0 and 1; if not given, a twentieth short of what the best arm ends with.
        margin_points: Differences of a metric that is a share, within plus and minus so many points
            of a percentage, are of no practical importance, and an arm shown to lie within is no
            different; None for no such margin. Of other metrics there is `margin`.
        margin: The same of a metric that is no share, in its own unit; None for no margin.
        significance: Level of the tests over all comparisons, and one minus the confidence of
            the intervals.
        seeds: Runs of each arm with its tuned values, on fresh seeds; if not given, or null, as
            many as show a clear difference among so many arms, see `enough_pairs`.
        executor: Where the runs are made, which is no part of what they are.
        keep: The weights that are kept of each reported run, in `weights/RUN` of the study's
            folder, for `normlab.load`: those it ends with, `"last"`, or those with the best value
            on the validation split of what tuning selects by, `"best"`.
        log: What else is told of each point of a curve, as it is made: `"tensorboard"` writes
            `logs/tensorboard/RUN` in the study's folder, `"wandb"` writes `logs/wandb` for
            `wandb sync`, without a network. Changes no number.
        probes: What is looked at inside of each reported run as it trains, by the names of
            `normlab.probes.PROBES`, as in `{activations: {every: 100}}`; written to `probes/RUN`
            of the study's folder and shown on the page. Changes no number.
        mesh: The devices that each run is spread over, as in `{data: 8}`, on this machine or, with
            `executor: ray`, on a node of the cluster that has so many. Like the executor no part
            of what the runs are, so that one that was begun on some devices may go on on others,
            which round differently.
    """

    study: str = Field(pattern=r"^\w[\w.-]*$", max_length=100)
    modules: tuple[str, ...] = ()
    data: DataSpec = DataSpec()
    model: ModelSpec
    objective: ObjectiveSpec = Classification()
    optimizer: OptimizerSpec = SGDSpec()
    train: TrainSpec = TrainSpec()
    variants: dict[Name, VariantSpec] = Field(min_length=1, max_length=MOST_ARMS)
    factors: Crossed = Field(default_factory=dict)
    tasks: Tasks = Field(default_factory=dict)
    tune: TuneSpec | None = None
    baseline: str = ""
    metric: ReportedSpec = ReportedSpec(name="accuracy", higher_is_better=True, share=True)
    target: float | None = None
    margin_points: MarginPoints | None = 0.5
    margin: Margin | None = None
    significance: Significance = 0.05
    seeds: Seeds
    executor: ExecutorSpec = LocalSpec()
    keep: Literal["last", "best", "none"] = "none"
    log: Annotated[
        tuple[Literal["tensorboard", "wandb"], ...], AfterValidator(_without_repetition)
    ] = ()
    probes: dict[str, ProbeSpec] = Field(default_factory=dict)
    mesh: MeshSpec = MeshSpec()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        given = dict(given)
        variants, optimizer = given.get("variants"), given.get("optimizer")
        if given.get("tune") == {}:
            given["tune"] = None
        executor = given.get("executor")
        # `baseline: off` is false to YAML, and no baseline that is not given.
        left_out = given.get("baseline") in (None, "")
        if isinstance(variants, Mapping) and variants and left_out:
            given["baseline"] = str(next(iter(variants)))
        if given.get("seeds") is None:
            given["seeds"] = _enough_seeds(given)
        if isinstance(optimizer, Mapping):
            given["optimizer"] = {"name": "sgd", **optimizer}
        if isinstance(objective := given.get("objective"), Mapping):
            given["objective"] = {"name": "classification", **objective}
        given["metric"] = completed(given.get("metric"), _known_metrics(given.get("objective")))
        if isinstance(metric := given["metric"], Mapping) and metric.get("share") is False:
            given.setdefault("margin_points", None)
        if isinstance(executor, str):
            given["executor"] = {"name": executor}
        elif isinstance(executor, Mapping):
            given["executor"] = {"name": "local", **executor}
        return given

    @field_validator("factors", mode="before")
    @classmethod
    def _dotted_factors(cls, given: Any) -> Any:
        # The override `factors.data.batch_size=[16]` arrives as a nested record.
        if isinstance(given, list | tuple):
            return [flatten(it) if isinstance(it, Mapping) else it for it in given]
        return flatten(given) if isinstance(given, Mapping) else given

    @field_validator("tasks", mode="before")
    @classmethod
    def _dotted_tasks(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {name: flatten(it) if isinstance(it, Mapping) else it for name, it in given.items()}

    @field_validator("baseline")
    @classmethod
    def _baseline_is_an_arm(cls, given: str, info: Any) -> str:
        variants = info.data.get("variants", {given: None})  # absent if they have problems
        if given not in variants:
            raise ValueError(f"{given!r} is none of the variants {', '.join(variants)}")
        return given

    @field_validator("probes")
    @classmethod
    def _probes_are_known(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            if name not in PROBES:
                raise ValueError(f"there is no probe {name!r}{nearest(name, PROBES)}")
        return given

    @field_validator("variants")
    @classmethod
    def _variants_look_different(cls, given: dict[str, Any]) -> dict[str, Any]:
        return _look_different(given)

    @model_validator(mode="after")
    def _can_be_enumerated(self) -> "Study":
        points = seeds = 0
        if self.tune is not None:
            grid = [it for it in self.tune.space.values() if isinstance(it, tuple)]
            points, seeds = self.tune.trials or math.prod(map(len, grid)), self.tune.seeds
        crossed = combinations(self.factors)
        refuse_too_many(len(self.variants), crossed, len(self.tasks), self.seeds, points, seeds)
        return self

    @model_validator(mode="after")
    def _metric_is_measured(self) -> "Study":
        known = self.objective.all_metrics()
        for place, it in (("metric", self.metric), ("metric.select_by", self.metric.select_by)):
            if it is None:
                continue
            if it.name not in known:
                raise ValueError(
                    f"{place}.name={it.name} is not measured by objective.name="
                    f"{self.objective.name}; expected one of {', '.join(known)}"
                )
            meant = known[it.name]
            for field in ("higher_is_better", "share"):
                if (is_meant := getattr(meant, field)) != getattr(it, field):
                    raise ValueError(
                        f"{place}.{field}={str(not is_meant).lower()}, but of {it.name} it is "
                        f"{str(is_meant).lower()}; leave it out"
                    )
        return self

    @model_validator(mode="after")
    def _target_and_margin_are_of_the_metric(self) -> "Study":
        name, share = self.metric.name, self.metric.share
        if share and self.target is not None and not 0 < self.target <= 1:
            raise ValueError(
                f"target={self.target:g}, but metric.name={name} is a share, above 0 and at most 1"
                + f"; {self.target:g}% as a share is {self.target / 100:g}" * (self.target > 1)
            )
        known = self.objective.all_metrics().get(name)
        least, most = (None, None) if share or known is None else known.bounds
        if self.target is not None and least is not None and self.target < least:
            raise ValueError(
                f"target={self.target:g}, but metric.name={name} is at least {least:g}"
            )
        if self.target is not None and most is not None and self.target > most:
            raise ValueError(f"target={self.target:g}, but metric.name={name} is at most {most:g}")
        if share and self.margin is not None:
            points = 100 * self.margin if self.margin < 0.1 else self.margin
            raise ValueError(
                f"margin={self.margin:g}, but metric.name={name} is a share, whose margin is given "
                f"in points of a percentage: margin_points={points:g}"
            )
        if not share and self.margin_points is not None:
            raise ValueError(
                f"margin_points={self.margin_points:g}, but metric.name={name} is no share; give "
                "margin, in its own unit, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _targets_move_with_the_images(self) -> "Study":
        if self.objective.targets == "positions" and self.train.augment != "none":
            raise ValueError(
                f"train.augment={self.train.augment} moves images, but not the classes of their "
                f"positions, which objective.name={self.objective.name} compares with; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _labels_can_be_mixed(self) -> "Study":
        if self.train.mixup is not None and not self.objective.takes_shares:
            raise ValueError(
                f"train.mixup={self.train.mixup:g} mixes classes, of which objective.name="
                f"{self.objective.name} takes no shares; leave it out, or classify"
            )
        return self

    @model_validator(mode="after")
    def _warms_up_within_the_run(self) -> "Study":
        warmup, epochs = self.optimizer.warmup_epochs, self.train.epochs
        if epochs is not None and warmup > epochs:
            raise ValueError(
                f"optimizer.warmup_epochs={warmup:g} are more than train.epochs={epochs}, so that "
                f"the rate would never be reached; expected at most {epochs}"
            )
        return self

    @model_validator(mode="after")
    def _each_path_in_one_place(self) -> "Study":
        factors = _paths_of_factors(self.factors)
        places: dict[str, dict[str, list[str]]] = {
            "given for an arm": {},
            "given for a task": {},
            "a factor of every arm": {path: [f"factors.{path}"] for path in factors},
            "tuned for every arm": {path: [] for path in (self.tune.space if self.tune else {})},
        }
        for name, variant in self.variants.items():
            for path in variant.overrides():
                places["given for an arm"].setdefault(path, []).append(f"variants.{name}.{path}")
        for name, changes in self.tasks.items():
            for path in changes:
                places["given for a task"].setdefault(path, []).append(f"tasks.{name}.{path}")
        told = []
        for (one, ours), (other, theirs) in itertools.combinations(places.items(), 2):
            both = [it for path in ours if path in theirs for it in (*ours[path], *theirs[path])]
            if both:
                told.append(f"{', '.join(both)}: {one}, but {other}; leave out one of the two")
        if told:
            raise ValueError("; ".join(told))
        return self

    @model_validator(mode="after")
    def _mesh_is_of_one_process(self) -> "Study":
        if self.mesh != MeshSpec() and isinstance(self.executor, ProcessesSpec):
            raise ValueError(
                f"mesh spreads each run over {self.mesh.size} devices of one process, but "
                "executor=processes gives each of its processes one; set executor=local, or ray, "
                "or leave out mesh"
            )
        return self

    @model_validator(mode="after")
    def _batches_can_be_cut(self) -> "Study":
        # Where arms differ in one of the two, each is checked with its own.
        varied = {*_paths_of_factors(self.factors)}.union(*self.tasks.values())
        if not varied & {"data.batch_size", "train.accumulate"}:
            self.train.refuse_uneven(self.data.batch_size)
        return self

    @property
    def hash(self) -> str:
        """What the study asks for, in 16 signs.

        The same for a study from YAML and from Python, in whatever order its keys stand, whether
        defaults are written out or not, whatever it is called and wherever it runs. Data, layers
        and models count with their names and fields; what these stand for is part of each run.
        """
        return of_config(self.model_dump(mode="json"))

    @property
    def comparisons(self) -> int:
        """How many pairs of arms are compared: all at each combination of levels."""
        return math.comb(len(self.variants), 2) * combinations(self.factors)

    def arms(self) -> list[Arm]:
        """Returns the arms: every variant at every combination of levels, on every task."""
        return arms(self.variants, self.factors, self.tasks)

    def space_of(self, arm: Arm) -> dict[str, tuple[Any, ...] | Range]:
        """Returns what is tuned for an arm: of the fields of layers, those that its layer has."""
        space = self.tune.space if self.tune else {}
        fields = type(self.variants[arm.variant]).model_fields.keys() - VariantSpec.model_fields
        return {path: space[path] for path in paths_of(space, arm.variant, fields)}

    def points(self, arm: Arm) -> list[dict[str, Any]]:
        """Returns the points of an arm's search: dotted path -> value."""
        return points(self.space_of(arm), self.tune.trials if self.tune else None)

    def network(self, arm: Arm, classes: int, *, integers: bool) -> Any:
        """Returns the model of an arm, whose overrides are in the study.

        Args:
            arm: The arm.
            classes: How many outputs it has.
            integers: Whether its inputs are integers, as the numbers of tokens.

        Raises:
            StudyError: If the model does not compute with inputs of that kind.
        """
        if integers and self.model.takes == "values":
            raise StudyError(
                f"model.name={self.model.name} computes with real values, but the data "
                f"{self.data.name} are integers, which arrive as they are. Give them as uint8 or "
                "floating, as with .astype(numpy.float32), take model.name=gpt, or register a "
                "model that takes integers, as through flax.linen.Embed."
            )
        if not integers and self.model.takes == "tokens":
            raise StudyError(
                f"model.name={self.model.name} computes with the numbers of tokens, but the data "
                f"{self.data.name} are real values or pixels. Take data.name=text, or integers of "
                "another type than uint8, as with .astype(numpy.int32)."
            )
        norm = self.variants[arm.variant].constructor()
        return self.model.build(norm, classes, self.train.precision)

    def for_arm(self, arm: Arm) -> "Study":
        """Returns the study as an arm sees it: its variant and values, no factors, tasks or search.

        A task or level that names another model or optimizer starts from the defaults of that one.

        Raises:
            pydantic.ValidationError: If the study has no such field or value.
        """
        return type(self).model_validate(self.with_arm(arm))

    def with_arm(self, arm: Arm) -> dict[str, Any]:
        """Returns what `for_arm` validates."""
        variant = self.variants[arm.variant]
        changes = {**self.tasks.get(arm.task, {}), **arm.levels, **variant.overrides()}
        # Nothing that grows with the study: each arm is checked with each value that is tuned.
        shared = self.model_dump(exclude={"variants", "baseline", "factors", "tasks", "tune"})
        own = {"variants": {arm.variant: variant.model_dump()}, "baseline": arm.variant}
        return with_changes(shared | own, changes, arm.variant)


def with_changes(
    study: Mapping[str, Any], changes: Mapping[str, Any], variant: str = ""
) -> dict[str, Any]:
    """Returns a study, as nested records, with changes by dotted path in their places.

    Another name of model, objective or optimizer starts from the defaults of that one, since the
    fields that were set are those of the former.

    Args:
        study: The study.
        changes: By dotted path.
        variant: The variant whose layer has the fields of layers among them.
    """
    given = dict(study)
    for part in ("model", "objective", "optimizer"):
        there, name = given.get(part), changes.get(f"{part}.name")
        if name is not None and isinstance(there, Mapping) and there.get("name") != name:
            given[part] = {"name": name}
    shared = {path: value for path, value in changes.items() if not is_of_layer(path)}
    fields = {
        path.rpartition(".")[2]: value for path, value in changes.items() if path not in shared
    }
    if fields:
        variants = given["variants"]
        given["variants"] = {**variants, variant: {**variants[variant], **fields}}
    return of_one_length(with_values(given, shared), shared)


# What a change of a run's length leaves no room for.
_OTHER_LENGTH = {
    "train.steps": ("epochs", "validate_every"),
    "train.epochs": ("steps", "evaluate_every"),
}


def of_one_length(study: Mapping[str, Any], changed: Collection[str]) -> dict[str, Any]:
    """Returns a study, as nested records, without the length of its runs that was changed away.

    Args:
        study: The study, with its changes in their places.
        changed: The dotted paths of these.
    """
    given = dict(study)
    for path, others in _OTHER_LENGTH.items():
        train = given.get("train")
        if path in changed and isinstance(train, Mapping):
            left = {it for it in others if f"train.{it}" not in changed}
            given["train"] = {key: value for key, value in train.items() if key not in left}
    return given


def value_in(study: Mapping[str, Any], path: str, variant: str) -> Any:
    """Returns what a study, as nested records, has at a path of a search or factor.

    Args:
        study: The study.
        path: The path.
        variant: The variant whose layer a field of layers is read of.
    """
    if is_of_layer(path):
        return study["variants"][variant][path.rpartition(".")[2]]
    return value_at(study, path)


def as_understood(study: Study) -> dict[str, Any]:
    """Returns a study with tuned values, levels and what tasks change as their fields have them.

    So "1e-2" and 0.01 are one point of a search, and 1 and 1.0 one level, or two as the field has
    it. What does not fit in its place stays as it is.
    """
    whole = study.model_dump(exclude_unset=True)

    def understood(changes: Mapping[str, Any], arm: Arm | None = None) -> dict[str, Any]:
        variant = arm.variant if arm else next(iter(study.variants))
        base = study.with_arm(arm) if arm else whole
        try:
            changed = type(study).model_validate(with_changes(base, changes, variant))
        except ValueError:
            return dict(changes)
        dumped = changed.model_dump(mode="json")
        return {path: value_in(dumped, path, variant) for path in changes}

    for path, values in (study.tune.space if study.tune else {}).items():
        arm = next((arm for arm in study.arms() if path in study.space_of(arm)), None)
        if isinstance(values, tuple) and arm is not None:
            whole["tune"][path] = [understood({path: value}, arm)[path] for value in values]
    if isinstance(study.factors, Mapping):
        for path, values in study.factors.items():
            whole["factors"][path] = [understood({path: value})[path] for value in values]
    else:
        whole["factors"] = [understood(combination) for combination in study.factors]
    for task, changes in study.tasks.items():
        whole["tasks"][task] = understood(changes)
    return whole


def study_type() -> type[Study]:
    """Returns the type that validates studies over what is registered by now.

    The same one as long as this is the same, so that equal studies are of one type.
    """
    return _study_type(
        tuple(VARIANTS.values()),
        tuple(MODELS.values()),
        tuple(OBJECTIVES.values()),
        tuple(LOADERS.items()),
    )


@lru_cache(maxsize=8)
def _study_type(
    variants: tuple[Any, ...],
    models: tuple[Any, ...],
    objectives: tuple[Any, ...],
    loaders: tuple[Any, ...],
) -> type[Study]:
    data = data_spec_type()
    arms: Any = dict[Name, variant_spec_type()]  # pyright: ignore[reportInvalidTypeForm]
    return create_model(
        "Study",
        __base__=Study,
        data=(data, data()),
        model=(model_spec_type(), ...),
        objective=(objective_spec_type(), Classification()),
        variants=(arms, Field(min_length=1, max_length=MOST_ARMS)),
    )
