"""Whether a result is one that its run can have: whole in its curve, within what can be measured.

A checksum tells that a file is as it was written, not that what wrote it had made the run.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..length import Length, length_of
from ..metrics import METRICS, ROUNDING, Metric

if TYPE_CHECKING:
    from .store import Result

Values = Sequence[float | None]


def refuse_what_cannot_be(result: "Result") -> None:
    """Compares what a result says with what its identity says of the run.

    Raises:
        ValueError: No such run has such a result.
    """
    told = result.identity.get("train")
    if not isinstance(told, Mapping):  # Of no study.
        return
    length = _length(told, result.steps_per_epoch)
    if result.until is not None:
        length = length.cut(result.until)
    _refuse_another_length(result, length)
    objective = result.identity.get("objective")
    name = objective.get("name") if isinstance(objective, Mapping) else "classification"
    # Only the module of a user's own objective knows what that measures.
    if isinstance(name, str) and name in METRICS:
        _refuse_other_metrics(result, METRICS[name])


def _length(told: Mapping[str, Any], steps_per_epoch: int) -> Length:
    """How long the run is by its identity, which may say anything."""
    fields = ("epochs", "steps", "validate_every", "evaluate_every")
    given = {key: told[key] for key in fields if told.get(key) is not None}
    if not given.keys() & {"epochs", "steps"} or not all(
        isinstance(it, int) and it >= 1 for it in given.values()
    ):
        raise ValueError(f"its identity has no length of a run, but {given}")
    return length_of(steps_per_epoch, **{"epochs": None, "steps": None, **given})


def _refuse_another_length(result: "Result", length: Length) -> None:
    """Refuses a curve that ends too early or late, or was recorded or evaluated elsewhere."""
    steps, finished = result.curve.step, result.status == "finished"
    if result.diverged and not steps and "objective" not in result.identity:
        return  # A run of former studies that diverged in its first epoch.
    if not steps or steps != length.first(len(steps)) or (finished and steps[-1] != length.steps):
        raise ValueError(
            f"a {result.status} run of {length.steps} steps has {result.steps} in its curve, in "
            f"{len(steps)} points, but {length.points} in a whole one"
        )
    train, validation = (it.get("loss") for it in (result.curve.train, result.curve.validation))
    if train is None or validation is None:
        raise ValueError("it has no loss")
    evaluated = [length.is_evaluated(step) for step in steps]
    if not all(evaluated):
        for name, values in result.curve.validation.items():
            if any(it is not None for it, at in zip(values, evaluated, strict=True) if not at):
                raise ValueError(f"validation {name} has values where there was no evaluation")
    # A run is stopped at the first loss that is not finite.
    lost = [
        place
        for place in range(len(steps))
        if train[place] is None or (evaluated[place] and validation[place] is None)
    ]
    if lost != ([] if finished else [len(steps) - 1]):
        raise ValueError(f"its losses are not those of a {result.status} run")


def _refuse_other_metrics(result: "Result", known: Mapping[str, Metric]) -> None:
    measured = {"train": result.curve.train, "validation": result.curve.validation}
    splits: dict[str, Mapping[str, Values]] = dict(measured)
    if result.test is not None:
        splits["test"] = {name: [value] for name, value in result.test.items()}
    names = result.curve.train.keys()
    for split, metrics in splits.items():
        if metrics.keys() != names:
            raise ValueError(f"{split} has {', '.join(metrics)}, but train has {', '.join(names)}")
        for name, values in metrics.items():
            _refuse_beyond(f"{split}_{name}", values, known)
    if lacking := {next(iter(known)), "loss"} - names:
        raise ValueError(f"it lacks {', '.join(lacking)}, which every such run has")


def _refuse_beyond(name: str, values: Sequence[Any], known: Mapping[str, Metric]) -> None:
    """Refuses values that a metric cannot have, and metrics that there are none of.

    Raises:
        ValueError: That says which.
    """
    split, _, metric = name.partition("_")
    if metric not in known:
        raise ValueError(f"{name} is none of the metrics {', '.join(known)}")
    least, most = known[metric].bounds
    there = [value for value in values if value is not None] if None in values else values
    if not there:
        return
    if least is not None and not min(there) >= least - ROUNDING:
        raise ValueError(f"{split} {metric} is at least {least:g}, but is {min(there):g}")
    if most is not None and not max(there) <= most + ROUNDING:
        raise ValueError(f"{split} {metric} is at most {most:g}, but is {max(there):g}")
