"""The charts of a training's course: learning curves and the time to a target."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from ..compare.store import Result, epochs_of
from ..inference.estimates import estimate
from ..inference.measure import LOSS, Measure
from .figure import (
    MOST_BANDS,
    Figure,
    Rows,
    band,
    labels,
    layer,
    lines,
    named,
    round_numbers,
    rounded,
    slug,
    spans_a_decade,
    together,
)
from .view import View
from .words import confidence, reaches, target_short, told_of

# Curves longer than this are thinned: more points than pixels only make the page heavy.
MOST_POINTS = 150

# Float32 resolves nothing below this, and a logarithmic axis has no place for 0.
LEAST = 1e-8

AXES = ("epoch", "step", "seconds")


def on_validation(view: View) -> Figure | None:
    """What was measured on validation against epochs, steps or seconds."""
    measure = view.summary.measure
    name, title = f"validation-{slug(measure.words)}", f"Validation {measure.words}"
    if not measure.higher_is_better:
        # What falls from high values would be flat beside them, but for a logarithmic axis.
        heading = measure.heading("validation")
        return _falling(view, "validation", measure, name, title, heading, "measured")
    rows = _curve_rows(view, "validation", measure, back=lambda it: measure.factor * it)
    if not rows:
        return None
    by_arm: dict[str, list[float]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], []).append(row["value"])
    floors = {name: min(values[len(values) // 4 :]) for name, values in by_arm.items()}
    floor = min(floors.values())
    caption = (
        f"Mean over seeds{_with_intervals(view)}. The first quarter may begin below the frame. "
        + _of_diverged(view)
    )
    highest = max(row["high"] for row in rows)
    datasets: dict[str, Any] = {"measured": rows, "target": []}
    datasets["measured-ends"] = _ends(view, rows, floor, highest)
    target = view.summary.target
    if target is not None and measure.factor * target > floor:
        datasets["target"] = [{"value": measure.factor * target}]
        caption += f"Dashed grey: the target, {told_of(measure)(target)}. "
    scale = alt.Scale(zero=False, nice=False, domainMin=alt.ExprRef("floor"))
    heading = measure.heading("validation")
    value = alt.Y("value:Q", title=heading, scale=scale, axis=alt.Axis(grid=True))
    charts = {
        axis: together(
            datasets, _target_line(value), *_curves(view, "measured", rows, axis, value)
        ).add_params(alt.param(name="floor", value=floor))
        for axis in _axes(view)
    }
    return Figure(name, title, caption + _of_seconds(), charts, datasets, floors)


def training_loss(view: View) -> Figure | None:
    """Training loss against epochs, steps or seconds."""
    told = "training-loss", "Training loss", "training loss", "losses"
    return _falling(view, "train", LOSS, *told)


def _falling(
    view: View, split: str, measure: Measure, name: str, title: str, heading: str, dataset: str
) -> Figure | None:
    """A curve that falls as it gets better, on a logarithmic axis where it falls far."""
    rows = _curve_rows(view, split, measure, back=lambda it: measure.factor * it)
    if not rows:
        return None
    every, height = [row["value"] for row in rows], float
    scale, axis, mean = alt.Scale(zero=False), alt.Axis(grid=True), "Mean"
    if min(every) >= 0 and spans_a_decade([max(it, LEAST) for it in every]):
        # On this axis intervals of the logarithm are the symmetric ones, and never reach 0.
        rows = _curve_rows(
            view,
            split,
            measure,
            into=lambda it: math.log(max(measure.factor * it, LEAST)),
            back=math.exp,
        )
        every = [row["value"] for row in rows]
        scale, mean = alt.Scale(type="log", nice=False), "Geometric mean"
        ticks = round_numbers(min(every), max(every))
        # Of more values than its count, Vega leaves out every other one.
        axis = alt.Axis(grid=True, values=ticks, tickCount=len(ticks), format="~g")
        height = math.log
    value = alt.Y("value:Q", title=heading, scale=scale, axis=axis)
    lowest, highest = min(row["low"] for row in rows), max(row["high"] for row in rows)
    ends = _ends(view, rows, height(lowest), height(highest), height)
    datasets: dict[str, Any] = {dataset: rows, f"{dataset}-ends": ends, "target": []}
    caption = f"{mean} over seeds{_with_intervals(view)}. " + _of_diverged(view)
    target = view.summary.target
    if split == "validation" and target is not None and lowest < measure.factor * target < highest:
        datasets["target"] = [{"value": measure.factor * target}]
        caption += f"Dashed grey: the target, {told_of(measure)(target)}. "
    charts = {
        it: together(datasets, _target_line(value), *_curves(view, dataset, rows, it, value))
        for it in _axes(view)
    }
    return Figure(name, title, caption + _of_seconds(), charts, datasets)


def _target_line(value: alt.Y) -> alt.Chart:
    line = alt.Chart(alt.NamedData("target")).mark_rule(strokeDash=[4, 3], clip=True)
    return line.encode(value)


def _axes(view: View) -> Sequence[str]:
    """What curves are drawn against, first what runs were counted in: epochs, or steps."""
    # A run of so many steps has points between the ends of epochs.
    in_epochs = all(it.curve.step[0] % it.steps_per_epoch == 0 for it in view.finals if it.steps)
    return AXES if in_epochs else ("step", "epoch", "seconds")


def _ends(
    view: View,
    rows: Rows,
    low: float,
    high: float,
    height: Callable[[float], float] = float,
) -> Rows:
    """Where the names of the arms stand beside rows of `_curve_rows`."""
    last = {row["arm"]: row for row in rows}
    fields = ("epoch", "step", "seconds", "value")
    return labels(
        view,
        {
            arm: ({field: row[field] for field in fields}, height(row["value"]))
            for arm, row in last.items()
        },
        low,
        high,
    )


def _with_intervals(view: View) -> str:
    if len(view.arms) <= MOST_BANDS:
        return f" with {confidence(view.summary)} intervals"
    return (
        f"; the pointer shows the {confidence(view.summary)} intervals of the curve that it is at"
    )


def _of_diverged(view: View) -> str:
    if any(run.diverged for run in view.finals):
        return "A run that diverges counts as long as it lasts. "
    return ""


def _of_seconds() -> str:
    return "Seconds are without compilation, beside what else ran on the machine."


def _curve_rows(
    view: View,
    split: str,
    measure: Measure,
    into: Callable[[float], float] = float,
    back: Callable[[float], float] = float,
) -> list[dict[str, Any]]:
    """Mean and interval by arm and step, of what `into` makes of what was measured."""
    rows: list[dict[str, Any]] = []
    for arm in view.arms:
        runs = view.runs(arm.name)
        # A study may validate at some points only.
        curves = [
            {step: it for step, it in zip(run.curve.step, values, strict=True) if it is not None}
            for run in runs
            for values in [
                getattr(run.curve, split).get(measure.name, [None] * len(run.curve.step))
            ]
        ]
        measured = {step for curve in curves for step in curve}
        seconds = _seconds_per_step(runs)
        for step in sorted(measured)[:: -(math.ceil(len(measured) / MOST_POINTS) or 1)]:
            samples = [into(it[step]) for it in curves if step in it]
            if samples:
                mean = estimate([samples], confidence=1 - view.summary.significance)
                if measure.share and split == "validation":
                    mean = mean.of_shares
                low, high = mean.interval or (mean.value, mean.value)
                rows.append(
                    {
                        "arm": arm.name,
                        "epoch": rounded(float(epochs_of(step, runs[0].steps_per_epoch))),
                        "step": step,
                        "seconds": rounded(step * seconds),
                        "value": rounded(back(mean.value)),
                        "low": rounded(back(low)),
                        "high": rounded(back(high)),
                        "seeds": mean.count,
                    }
                )
    return sorted(rows, key=lambda row: row["step"])


def _seconds_per_step(runs: Sequence[Result]) -> float:
    return sum(run.seconds for run in runs) / (sum(run.steps for run in runs) or 1)


def _curves(view: View, dataset: str, rows: Rows, by: str, value: alt.Y) -> list[alt.Chart]:
    """A band, a line and what the pointer finds, for rows of `_curve_rows`."""
    # Of a single point there is no line to be seen.
    opacity = 1 if len({row["step"] for row in rows}) == 1 else 0
    x = alt.X(
        f"{by}:Q",
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(tickMinStep=1, grid=False) if by != "seconds" else alt.Axis(grid=False),
    )
    low = value.copy()
    low.shorthand = "low:Q"
    return [
        band(view, dataset, clip=True).encode(x, low, alt.Y2("high:Q")),
        lines(view, dataset, clip=True).encode(x, value),
        # A line has no tooltip of its own at each point.
        layer(view, dataset)
        .mark_circle(size=90, opacity=opacity, clip=True)
        .encode(
            x,
            value,
            tooltip=[
                "arm:N",
                "epoch:Q",
                "step:Q",
                "seconds:Q",
                alt.Tooltip("value:Q", title="mean"),
                alt.Tooltip("low:Q", title="interval from"),
                alt.Tooltip("high:Q", title="to"),
                "seeds:Q",
            ],
        ),
        named(view, f"{dataset}-ends").encode(x, value),
    ]


def time_to_target(view: View) -> Figure | None:
    """The share of runs that have not reached the target yet, against steps."""
    target, measure = view.summary.target, view.summary.measure
    longest = max((it.steps for it in view.finals), default=0)
    rows: list[dict[str, Any]] = []
    for arm in view.arms:
        if (found := arm.time_to_target) is not None:
            steps = [0.0, *found.times.tolist(), float(longest)]
            shares = [1.0, *found.remaining.tolist()]
            rows += [
                {"arm": arm.name, "step": step, "share": rounded(100 * share)}
                for step, share in zip(steps, [*shares, shares[-1]], strict=True)
            ]
    if not rows or target is None:
        return None
    # Where nothing happens any more there is nothing to see.
    falls = [row["step"] for row in rows if row["share"] < 100 and row["step"] < longest]
    end = min(longest, 1.25 * max(falls, default=longest))
    scale = alt.Scale(domain=[0, end], nice=False)
    x = alt.X("step:Q", title="step", scale=scale, axis=alt.Axis(grid=False))
    y = alt.Y(
        "share:Q",
        title=f"runs still {target_short(measure)} the target, %",
        scale=alt.Scale(domain=[0, 100]),
        axis=alt.Axis(grid=True),
    )
    curve = lines(view, "waiting", interpolate="step-after", clip=True)
    last = {row["arm"]: row["share"] for row in rows}
    # Of those that end together the sooner stand below.
    times = {arm.name: arm.time_to_target for arm in view.arms}
    waited = {name: it.restricted_mean for name, it in times.items() if it is not None}
    sooner = sorted(last, key=lambda arm: -waited[arm])
    ends = {arm: ({"step": end, "share": last[arm]}, last[arm]) for arm in sooner}
    datasets = {"waiting": rows, "waiting-ends": labels(view, ends, 0.0, 100.0)}
    return Figure(
        "time-to-target",
        "Time to the target",
        f"Share of the runs that have not reached {reaches(target, measure)}: the lower and the "
        "sooner, the better. A run that diverges never does.",
        {"": together(datasets, curve.encode(x, y), named(view, "waiting-ends").encode(x, y))},
        datasets,
    )
