"""The rule of an experiment: a claim, what is measured, and which measurements bear it out."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from ..errors import nearest
from ..spec import Spec

Positive = Annotated[float, Field(gt=0)]
Words = Annotated[str, Field(min_length=1, max_length=300)]


class MeasureSpec(Spec):
    """What is read off each reported run; the subclasses say where.

    Attributes:
        times: What the number is multiplied by, as 100 for percent.
        unit: What the number is counted in, for the axis of a figure and a table.
        over: Dotted path of a factor of the study; the values at its levels become one, and an arm
            is then named without the factor.
        by: How: `range` is the largest less the least; `largest` the largest level whose value is
            at least `at_least`, and the smallest level where there is none.
        at_least: For `largest`.
    """

    times: Positive = 1.0
    unit: str = ""
    over: str | None = None
    by: Literal["range", "mean", "least", "most", "largest"] | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _reduces_a_factor_whole(self) -> "MeasureSpec":
        if (self.over is None) != (self.by is None):
            raise ValueError("over and by belong together: a factor, and how its levels become one")
        if (self.by == "largest") != (self.at_least is not None):
            raise ValueError("at_least belongs to by: largest, to all and only to it")
        return self


class EndSpec(MeasureSpec):
    """A metric at the end of a run.

    Attributes:
        read: Of which split; `train` is of the steps since the point of the curve before, as they
            ran; `gap` is by how much the test split is worse than that.
        metric: The metric.
    """

    read: Literal["test", "train", "validation", "gap"]
    metric: str = "accuracy"


class ReachedSpec(MeasureSpec):
    """What a run takes until its validation metric first reaches a target.

    A run that never does counts with all of its steps or seconds.

    Attributes:
        read: What is counted: steps of the optimizer, or seconds of training.
        metric: The metric.
        target: What it reaches.
    """

    read: Literal["steps_to", "seconds_to"]
    metric: str = "accuracy"
    target: float


class ProbeSpec(MeasureSpec):
    """What a probe of the study found.

    Attributes:
        read: The word `probe`.
        probe: Its name, as the study has it.
        quantity: What it tells.
        of: Of which layer, by its name, or the first or last one; or the mean over the layers; or
            their `spread`, the decimal logarithm of the largest over the least.
        at: At the first or last probed step, or the mean over these, or their `deviation`, which
            says how far the quantity drifts.
    """

    read: Literal["probe"]
    probe: str
    quantity: str
    of: str = "mean"
    at: Literal["first", "last", "mean", "deviation"] = "last"


class OwnSpec(MeasureSpec):
    """What the experiment's own `measure.py` returns.

    Attributes:
        read: The word `own`.
        name: By this name.
    """

    read: Literal["own"]
    name: str


class CurvesSpec(Spec):
    """What a probe of the study found over training, which is drawn and not judged.

    Attributes:
        probe: Its name, as the study has it.
        quantities: What it tells, one panel for all of them.
        of: Of which layer, as `ProbeSpec.of`.
        title: What the panel shows, for its vertical axis.
    """

    probe: str
    quantities: Annotated[tuple[str, ...], Field(min_length=1, max_length=5)]
    of: str = "last"
    title: Words


AnyMeasure = Annotated[
    EndSpec | ReachedSpec | ProbeSpec | OwnSpec,
    Field(discriminator="read"),
]


class Prediction(Spec):
    """What the claim says of a measure.

    Attributes:
        says: In a sentence.
        measure: The name of the measure.
        contrast: Arm -> coefficient: what is judged is the mean over the seeds of the sum over the
            arms, each seed by itself.
        above: Holds where the mean is above this.
        below: Holds where it is below this.
        within: Holds where it is between minus and plus this.
        log: Whether the sum is of natural logarithms, so that a contrast of 1 and -1 is of a
            ratio. The thresholds are ratios then, and `within: 1.2` means from 1/1.2 to 1.2.
        pilot: The standard deviation of the contrast over the seeds that the design reckons with,
            from a pilot or from a study like this one.
    """

    says: Words
    measure: str
    contrast: Annotated[dict[str, float], Field(min_length=1)]
    above: float | None = None
    below: float | None = None
    within: Positive | None = None
    log: bool = False
    pilot: Positive | None = None

    @model_validator(mode="after")
    def _has_one_threshold(self) -> "Prediction":
        given = {"above": self.above, "below": self.below, "within": self.within}
        there = {name: it for name, it in given.items() if it is not None}
        if len(there) != 1:
            raise ValueError(
                f"expected one of above, below and within, but {', '.join(there) or 'none'} given"
            )
        if self.log and next(iter(there.values())) <= 0:
            raise ValueError("with log: true the threshold is a ratio; expected a number above 0")
        if self.log and self.within is not None and self.within <= 1:
            raise ValueError("with log: true within is a ratio; expected a number above 1")
        return self


class Rule(Spec):
    """How an experiment is judged, as data.

    Each prediction has the interval of Student's t over the paired seeds, of the level divided by
    the number of predictions. A prediction is supported where its interval lies wholly where the
    prediction says, refuted where it lies wholly elsewhere, and undecided else. The claim is
    supported if all predictions are; mixed if some are supported and others refuted; refuted if
    some are refuted and none is supported; undecided else.

    Attributes:
        claim: In a sentence.
        source: Who makes it, where.
        smoke: Dotted path -> value: changes to the study that make it one of seconds.
        level: Of all predictions together.
        measures: Name -> what is measured.
        curves: What is drawn beside them.
        predictions: What the claim says of the measures.
    """

    claim: Words
    source: Words
    smoke: dict[str, JsonValue] = Field(default_factory=dict)
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    measures: Annotated[dict[str, AnyMeasure], Field(min_length=1)]
    curves: CurvesSpec | None = None
    predictions: Annotated[tuple[Prediction, ...], Field(min_length=1, max_length=50)]

    @model_validator(mode="after")
    def _predicts_what_is_measured(self) -> "Rule":
        for prediction in self.predictions:
            name = prediction.measure
            if name not in self.measures:
                raise ValueError(f"there is no measure {name!r}{nearest(name, self.measures)}")
        return self


def kind(measure: Any) -> str:
    """What a measure reads, in words, for a table: "test accuracy", "steps to accuracy 0.95"."""
    if isinstance(measure, EndSpec):
        words = f"{measure.read} {measure.metric}"
        if measure.read == "gap":
            words = f"gap of {measure.metric} from train to test"
    elif isinstance(measure, ReachedSpec):
        words = f"{measure.read.removesuffix('_to')} to {measure.metric} {measure.target:g}"
    elif isinstance(measure, ProbeSpec):
        drift = "drift of " if measure.at == "deviation" else ""
        words = f"{drift}{measure.quantity.replace('_', ' ')} ({measure.probe}, {measure.of})"
    else:
        words = measure.name.replace("_", " ")
    if measure.over is None:
        return words
    path = measure.over.rpartition(".")[2].replace("_", " ")
    if measure.at_least is not None:
        return f"largest {path} with {words} of at least {measure.times * measure.at_least:g}"
    return f"{measure.by} of {words} over {path}"
