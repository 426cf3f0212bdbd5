"""What a study reports and selects by: the part of its configuration, and what it means."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from ..inference.measure import Measure
from ..spec import Spec

# What studies reported before they could say it.
FORMER = Measure("accuracy", share=True)


class MetricSpec(Spec):
    """A metric of the objective and what it means.

    Attributes:
        name: Its name, as the objective has it.
        higher_is_better: Whether the larger of two values is the better one; as the objective says
            unless given.
        share: Whether it lies between 0 and 1 and is told in percent; likewise.
        title: What to call it; likewise.
        unit: What it is measured in, where it has a unit and is no share; likewise.
    """

    name: str
    higher_is_better: bool
    share: bool = False
    title: Annotated[str, Field(max_length=60)] = ""
    unit: Annotated[str, Field(max_length=20)] = ""


class ReportedSpec(MetricSpec):
    """The metric that a study reports.

    Attributes:
        select_by: The metric on the validation split that tuning selects by; None for the same.
    """

    select_by: MetricSpec | None = None


def completed(given: Any, known: Mapping[str, Any]) -> Any:
    """Returns what a study says of its metric, with what the objective knows of it.

    Args:
        given: Name of the metric; or fields by name; or nothing, for the first one.
        known: Name -> meaning, with the fields of `MetricSpec` but for the name.
    """
    if given is None:
        given = {}
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping):
        return given
    given = dict(given)
    name = given.setdefault("name", next(iter(known)))
    if isinstance(name, str) and name in known:
        told = known[name].model_dump(include={*MetricSpec.model_fields})
        given = {**told, **given}
    elif isinstance(name, str):
        # What it means does not matter: the study is refused, since nobody measures it.
        given.setdefault("higher_is_better", True)
    if given.get("select_by") is not None:
        given["select_by"] = completed(given["select_by"], known)
    return given


def measures_of(config: Mapping[str, Any]) -> tuple[Measure, Measure]:
    """Returns what a stored configuration reports, and what it selects by."""
    given = config.get("metric")
    if given is None:
        return FORMER, FORMER
    reported = _measure(given)
    return reported, _measure(given["select_by"]) if given.get("select_by") else reported


def _measure(given: Mapping[str, Any]) -> Measure:
    return Measure(**{key: given[key] for key in MetricSpec.model_fields if key in given})


def margin_of(config: Mapping[str, Any]) -> float | None:
    """Returns the margin of a stored configuration, of a share as a share; None for no margin.

    Of shares it is written in points of a percentage, and was once written as a share.
    """
    if (points := config.get("margin_points")) is not None:
        return points / 100
    return config.get("margin")


def target_of(config: Mapping[str, Any]) -> float | None:
    """Returns the target of a stored configuration, which was once one of accuracy alone."""
    return config.get("target", config.get("target_accuracy"))
