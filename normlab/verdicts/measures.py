"""What the rule of an experiment measures, read off the folder of its study."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from ..compare.arm import Arm, arms, title
from ..compare.metric import FORMER, measures_of
from ..compare.outcome import on_test, on_validation, steps_to
from ..compare.store import Result, Store
from ..errors import UserError, nearest
from ..inference.measure import LOSS, Measure
from ..report import Study
from .rule import AnyMeasure, CurvesSpec, EndSpec, OwnSpec, ProbeSpec, ReachedSpec, Rule

Scores = dict[str, dict[str, dict[int, float]]]
"""Measure -> arm -> seed -> number."""
Curves = dict[str, dict[str, dict[int, float]]]
"""Quantity -> arm -> step -> number."""
Own = Mapping[str, Mapping[str, Mapping[int, float]]]


def measured(rule: Rule, study: Study, own: Own | None = None) -> Scores:
    """Returns what a rule measures of a finished study.

    Args:
        rule: The rule.
        study: The study.
        own: What the experiment's `measure.py` returned: name -> arm -> seed -> number.

    Raises:
        UserError: The rule asks for what the study has not.
    """
    return {name: _one(name, spec, study, own or {}) for name, spec in rule.measures.items()}


def _one(name: str, spec: AnyMeasure, study: Study, own: Own) -> dict[str, dict[int, float]]:
    by_arm: dict[tuple[str, str, str], dict[int, float]] = {}
    of_arm = {(arm.name, arm.task): arm for arm in study.arms}
    if isinstance(spec, OwnSpec):
        if spec.name not in own:
            raise UserError(f"{name}: measure.py returns no {spec.name!r}{nearest(spec.name, own)}")
        by_title = {arm.title: arm for arm in study.arms}
        for arm, seeds in own[spec.name].items():
            if arm not in by_title:
                raise UserError(
                    f"{name}: measure.py tells of an arm {arm!r}{nearest(arm, by_title)}"
                )
            by_arm[by_title[arm].key] = {seed: spec.times * it for seed, it in seeds.items()}
    else:
        read = _reader(name, spec, study)
        for run in study.results:
            if run.phase == "final":
                arm = of_arm[run.arm, run.task]
                by_arm.setdefault(arm.key, {})[run.seed] = spec.times * read(run)
    if spec.over is None:
        return {arm.title: by_arm[arm.key] for arm in study.arms if arm.key in by_arm}
    return _reduced(name, spec, study, by_arm)


def _reader(name: str, spec: Any, study: Study) -> Callable[[Result], float]:
    """Returns what reads a number off a run."""
    if isinstance(spec, ProbeSpec):
        return _probe_reader(name, spec, Store(study.folder))
    measure = _measure(name, spec.metric, study)
    if isinstance(spec, ReachedSpec):

        def reached(run: Result) -> float:
            steps = steps_to(run, spec.target, measure)
            if not math.isfinite(steps):
                steps = _length(run, study.results)
            return steps if spec.read == "steps_to" else steps * run.seconds / max(1, run.steps)

        return reached
    assert isinstance(spec, EndSpec)

    def trained(run: Result) -> float:
        last = next(reversed(run.curve.train.get(measure.name, [])), None)
        return measure.worst if last is None or run.diverged else last

    readers: dict[str, Callable[[Result], float]] = {
        "test": lambda run: on_test(run, measure),
        "validation": lambda run: on_validation(run, measure),
        "train": trained,
        "gap": lambda run: measure.score(trained(run)) - measure.score(on_test(run, measure)),
    }
    return readers[spec.read]


def _length(run: Result, results: Sequence[Result]) -> float:
    """Steps of a whole run, also of one that diverged before; NaN where all of its arm diverged."""
    of_arm = [it for it in results if (it.arm, it.task) == (run.arm, run.task)]
    return max((float(it.steps) for it in of_arm if not it.diverged), default=math.nan)


def _measure(name: str, metric: str, study: Study) -> Measure:
    known = {it.name: it for it in (FORMER, LOSS, *measures_of(study.config))}
    there = {it for run in study.results for it in run.curve.validation}
    if metric not in known or metric not in there:
        raise UserError(f"{name}: the study measures no {metric!r}{nearest(metric, there)}")
    return known[metric]


def curves(spec: CurvesSpec, study: Study) -> Curves:
    """Returns what a probe found over training: means over the reported runs.

    Raises:
        UserError: The study has no such probe, quantity or layer.
    """
    store = Store(study.folder)
    found: Curves = {}
    for arm in study.arms:
        runs = [
            it
            for it in study.results
            if it.phase == "final" and (it.arm, it.task) == (arm.name, arm.task)
        ]
        for quantity in spec.quantities:
            points: dict[int, list[float]] = {}
            for run in runs:
                for step, value in _probed("curves", spec, quantity, store, run):
                    points.setdefault(step, []).append(value)
            of_arm = found.setdefault(quantity, {})
            of_arm[arm.title] = {
                step: fmean(values) for step, values in points.items() if len(values) == len(runs)
            }
    return found


def _probed(
    name: str, spec: ProbeSpec | CurvesSpec, quantity: str, store: Store, run: Result
) -> list[tuple[int, float]]:
    """Returns step and value of all that a probe found in a run."""

    def value(told: Mapping[str, float | None]) -> float:
        # What is not finite has no place in JSON.
        found = {of: math.nan if it is None else it for of, it in told.items()}
        if not found:
            raise UserError(
                f"{name}: the run {run.id} has no layer of which {quantity} could be told"
            )
        values = list(found.values())
        if spec.of == "mean":
            return fmean(values)
        if spec.of == "spread":
            low, high = min(values), max(values)
            finite = all(map(math.isfinite, values))
            return math.log10(high / low) if finite and low > 0 else math.nan
        if spec.of in ("first", "last"):
            return values[0 if spec.of == "first" else -1]
        if spec.of not in found:
            raise UserError(f"{name}: {quantity} has no {spec.of!r}{nearest(spec.of, found)}")
        return found[spec.of]

    lines = [it for it in store.probes(run.id) if it.probe == spec.probe]
    if not lines:
        raise UserError(f"{name}: the run {run.id} has no probe {spec.probe!r}")
    values = []
    for it in lines:
        if quantity not in it.values:
            told = nearest(quantity, it.values)
            raise UserError(f"{name}: {spec.probe} has no {quantity!r}{told}")
        values.append((it.step, value(it.values[quantity])))
    return values


def _probe_reader(name: str, spec: ProbeSpec, store: Store) -> Callable[[Result], float]:
    def read(run: Result) -> float:
        values = [value for _, value in _probed(name, spec, spec.quantity, store, run)]
        if spec.at == "mean":
            return fmean(values)
        if spec.at == "deviation":
            return pstdev(values)
        return values[0 if spec.at == "first" else -1]

    return read


def _reduced(
    name: str, spec: Any, study: Study, by_arm: Mapping[tuple[str, str, str], Mapping[int, float]]
) -> dict[str, dict[int, float]]:
    factors = study.config.get("factors") or {}
    if not isinstance(factors, Mapping) or spec.over not in factors:
        raise UserError(f"{name}: over: {spec.over!r} is no factor of the study")
    left = {path: values for path, values in factors.items() if path != spec.over}
    reduced = {
        (it.variant, json.dumps(it.levels, sort_keys=True), it.task): it
        for it in arms(study.config["variants"], left, study.config.get("tasks") or {})
    }
    found: dict[str, dict[int, list[tuple[Any, float]]]] = {}
    for arm in study.arms:
        levels = {path: it for path, it in arm.levels.items() if path != spec.over}
        key = arm.variant, json.dumps(levels, sort_keys=True), arm.task
        for seed, value in by_arm.get(arm.key, {}).items():
            level = arm.levels[spec.over]
            if spec.by == "largest" and not isinstance(level, int | float):
                raise UserError(
                    f"{name}: by: largest is of numbers, but {spec.over} has the level {level!r}"
                )
            of_arm = found.setdefault(_title(reduced[key]), {})
            of_arm.setdefault(seed, []).append((level, value))
    return {
        arm: {seed: _single(spec, levels) for seed, levels in seeds.items()}
        for arm, seeds in found.items()
    }


def _title(arm: Arm) -> str:
    return title(arm.name, arm.task)


def _single(spec: Any, levels: list[tuple[Any, float]]) -> float:
    values = [value for _, value in levels]
    if any(map(math.isnan, values)):  # which Python's min and max pass over
        return math.nan
    if spec.by == "largest":
        enough = [at for at, it in levels if it >= spec.times * spec.at_least]
        return float(max(enough, default=min(at for at, _ in levels)))
    by: dict[str, Callable[[list[float]], float]] = {
        "range": lambda them: max(them) - min(them),
        "mean": fmean,
        "least": min,
        "most": max,
    }
    return by[spec.by](values)
