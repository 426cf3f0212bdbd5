"""The charts of a training's course: learning curves and the time to a target."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from ..compare.store import Result
from ..inference.estimates import estimate
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
    spans_a_decade,
    together,
)
from .view import View
from .words import confidence, percent

# Curves longer than this are thinned: more points than pixels only make the page heavy.
MOST_POINTS = 150

# Float32 resolves nothing below this, and a logarithmic axis has no place for 0.
LEAST_LOSS = 1e-8

AXES = ("epoch", "step", "seconds")


def validation_accuracy(view: View) -> Figure | None:
    """Validation accuracy against epochs, steps or seconds."""
    rows = _curve_rows(view, "validation_accuracy", back=lambda it: 100 * it)
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
    datasets: dict[str, Any] = {"accuracies": rows, "target": []}
    datasets["accuracies-ends"] = _ends(view, rows, floor, highest)
    target = view.summary.target_accuracy
    line = alt.Chart(alt.NamedData("target")).mark_rule(strokeDash=[4, 3], clip=True)
    if target is not None and 100 * target > floor:
        datasets["target"] = [{"value": 100 * target}]
        caption += f"Dashed grey: the target, {percent(target)}. "
    scale = alt.Scale(zero=False, nice=False, domainMin=alt.ExprRef("floor"))
    value = alt.Y("value:Q", title="validation accuracy, %", scale=scale, axis=alt.Axis(grid=True))
    charts = {
        axis: together(
            datasets, line.encode(value), *_curves(view, "accuracies", rows, axis, value)
        ).add_params(alt.param(name="floor", value=floor))
        for axis in AXES
    }
    title = "Validation accuracy"
    return Figure("validation-accuracy", title, caption + _of_seconds(), charts, datasets, floors)


def training_loss(view: View) -> Figure | None:
    """Training loss against epochs, steps or seconds."""
    rows = _curve_rows(view, "train_loss", into=lambda it: max(it, LEAST_LOSS))
    if not rows:
        return None
    losses, height = [row["value"] for row in rows], float
    scale, axis, mean = alt.Scale(zero=False), alt.Axis(grid=True), "Mean"
    if spans_a_decade(losses):
        # On this axis intervals of the logarithm are the symmetric ones, and never reach 0.
        rows = _curve_rows(
            view, "train_loss", into=lambda it: math.log(max(it, LEAST_LOSS)), back=math.exp
        )
        scale, mean = alt.Scale(type="log", nice=False), "Geometric mean"
        ticks = round_numbers(min(losses), max(losses))
        # Of more values than its count, Vega leaves out every other one.
        axis = alt.Axis(grid=True, values=ticks, tickCount=len(ticks), format="~g")
        height = math.log
    value = alt.Y("value:Q", title="training loss", scale=scale, axis=axis)
    low, high = height(min(row["low"] for row in rows)), height(max(row["high"] for row in rows))
    datasets = {"losses": rows, "losses-ends": _ends(view, rows, low, high, height)}
    charts = {it: together(datasets, *_curves(view, "losses", rows, it, value)) for it in AXES}
    caption = f"{mean} over seeds{_with_intervals(view)}. " + _of_diverged(view) + _of_seconds()
    return Figure("training-loss", "Training loss", caption, charts, datasets)


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
    metric: str,
    into: Callable[[float], float] = float,
    back: Callable[[float], float] = float,
) -> list[dict[str, Any]]:
    """Mean and interval by arm and epoch, of what `into` makes of the metric."""
    rows: list[dict[str, Any]] = []
    for arm in view.arms:
        runs = view.runs(arm.name)
        curves = [getattr(run.curve, metric) for run in runs]
        # A study may validate in some epochs only.
        measured = {
            epoch
            for curve in curves
            for epoch, value in enumerate(curve, start=1)
            if value is not None
        }
        seconds = _seconds_per_epoch(runs)
        for epoch in sorted(measured)[:: -(math.ceil(len(measured) / MOST_POINTS) or 1)]:
            samples = [it[epoch - 1] for it in curves if len(it) >= epoch]
            samples = [into(it) for it in samples if it is not None]
            if samples:
                mean = estimate([samples], confidence=1 - view.summary.significance)
                if metric == "validation_accuracy":
                    mean = mean.of_shares
                low, high = mean.interval or (mean.value, mean.value)
                rows.append(
                    {
                        "arm": arm.name,
                        "epoch": epoch,
                        "step": epoch * runs[0].steps_per_epoch,
                        "seconds": rounded(epoch * seconds),
                        "value": rounded(back(mean.value)),
                        "low": rounded(back(low)),
                        "high": rounded(back(high)),
                        "seeds": mean.count,
                    }
                )
    return sorted(rows, key=lambda row: row["epoch"])


def _seconds_per_epoch(runs: Sequence[Result]) -> float:
    seconds = sum(run.seconds for run in runs)
    return seconds / (sum(len(run.curve.train_loss) for run in runs) or 1)


def _curves(view: View, dataset: str, rows: Rows, by: str, value: alt.Y) -> list[alt.Chart]:
    """A band, a line and what the pointer finds, for rows of `_curve_rows`."""
    # Of a single epoch there is no line to be seen.
    opacity = 1 if len({row["epoch"] for row in rows}) == 1 else 0
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
        # A line has no tooltip of its own at each epoch.
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
    target = view.summary.target_accuracy
    longest = max((len(it.curve.train_loss) * it.steps_per_epoch for it in view.finals), default=0)
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
        title="runs still below the target, %",
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
        f"Share of the runs that have not reached {percent(target)} validation accuracy: the lower "
        "and the sooner, the better. A run that diverges never does.",
        {"": together(datasets, curve.encode(x, y), named(view, "waiting-ends").encode(x, y))},
        datasets,
    )
