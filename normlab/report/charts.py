"""The charts of a study, one Altair chart each."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt

from ..compare.selection import final_runs
from ..compare.summary import ArmSummary
from ..inference.estimates import Estimate, estimate
from .study import Study
from .style import colors
from .words import (
    conclude,
    interval,
    percent,
    points,
    short,
    tuned_value,
    values_in_words,
)

# Curves longer than this are thinned: more points than pixels only make the page heavy.
MOST_POINTS = 200

# Float32 resolves nothing below this, and a logarithmic axis has no place for 0.
LEAST_LOSS = 1e-8


# What Altair says that a layered chart with parameters is.
Layers = alt.LayerChart | alt.FacetChart
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A chart with its words.

    Attributes:
        name: Name of its file and of its place in the page.
        title: What it shows.
        caption: How to read it.
        chart: Without data, width and title. Its parameter `hidden` names the variants left out.
        datasets: Name in the chart -> its rows.
        floors: Variant -> where the vertical axis may begin as far as this variant goes. The
            chart's parameter `floor` is the smallest of these; empty when it has none.
    """

    name: str
    title: str
    caption: str
    chart: Layers
    datasets: Mapping[str, Rows]
    floors: Mapping[str, float] = field(default_factory=dict)

    def specification(self, **properties: Any) -> dict[str, Any]:
        """The chart as Vega-Lite has it, with a width or whatever else is set from outside."""
        # Altair would check and copy each row as if it were part of the chart, for seconds; and the
        # chart itself for one, the same one every time.
        chart = self.chart.properties(**properties).to_dict(validate=False)
        return chart | {"datasets": dict(self.datasets)}


def figures(study: Study) -> list[Figure]:
    """All charts that the runs so far allow."""
    made: list[Figure | None] = []
    if study.done("final"):
        made += [_test_accuracy(study), _differences(study)]
        made += [_validation_accuracy(study), _training_loss(study)]
    if any(arm.trials for arm in study.summary.arms):
        made += [_tuning(study, path) for path in study.tuned]
    return [figure for figure in made if figure]


def overview(study: Study) -> dict[str, Any]:
    """One picture of a study with final runs, as Vega-Lite has it: curves beside final results."""
    made = (
        (_validation_accuracy(study), 320),
        (_test_accuracy(study), 240),
        (_differences(study), 240),
    )
    charts = [
        it.chart.properties(width=width, height=260, title=it.title) for it, width in made if it
    ]
    title = f"{study.name}: {conclude(study.summary).headline}"
    subtitle = f"{study.setting}. Mean over seeds with 95% intervals; dots are seeds."
    together = alt.hconcat(*charts, spacing=36).properties(
        title=alt.Title(title, subtitle=subtitle, fontSize=18, subtitleFontSize=13, offset=20)
    )
    datasets = {name: rows for it, _ in made if it for name, rows in it.datasets.items()}
    return together.to_dict(validate=False) | {"datasets": datasets}


def _layer(study: Study, dataset: str) -> alt.Chart:
    chosen = colors(study)
    scale = alt.Scale(domain=list(chosen), range=list(chosen.values()))
    return (
        alt.Chart(alt.NamedData(dataset))
        .transform_filter("indexof(hidden, datum.variant) < 0")
        .encode(color=alt.Color("variant:N", title=None, scale=scale))
    )


def _together(datasets: Mapping[str, Rows], *layers: alt.Chart, height: int = 260) -> Layers:
    # A layer without rows has no extent, of which Vega complains.
    drawn = [layer for layer in layers if datasets[layer.data.name]]
    hidden = alt.param(name="hidden", value=[])
    return alt.layer(*drawn).add_params(hidden).properties(height=height)


def _test_accuracy(study: Study) -> Figure:
    samples = {it.name: _of_finished(it) for it in study.summary.arms}
    estimates = {it.name: it.accuracy for it in study.summary.arms if it.accuracy}
    datasets = _by_row_data(study, "accuracy", estimates, samples, percent)
    return Figure(
        "test-accuracy",
        "Test accuracy",
        "Dots: one run each, with seeds in the same order in every row. "
        "Bars: mean and its 95% interval.",
        _by_row(study, "accuracy", datasets, estimates, "test accuracy, %"),
        datasets,
    )


def _differences(study: Study) -> Figure | None:
    baseline = study.summary.baseline
    estimates = {it.name: it.comparison.difference for it in study.summary.arms if it.comparison}
    if not estimates:
        return None
    samples: dict[str, dict[int, float]] = {}
    for it in study.summary.arms:
        theirs = study.summary[study.summary.baselines[it.name]].by_seed
        samples[it.name] = {
            seed: accuracy - theirs[seed]
            for seed, accuracy in _of_finished(it).items()
            if seed in theirs
        }
    datasets = _by_row_data(study, "difference", estimates, samples, points)
    datasets["zero"] = [{}]
    zero = alt.Chart(alt.NamedData("zero")).mark_rule(strokeDash=[4, 3]).encode(x=alt.datum(0))
    title = "percentage points of test accuracy"
    return Figure(
        "differences",
        f"Difference to {baseline}, the baseline",
        "Dots: one seed each, against the same seed of the baseline. Bars: mean and its 95% "
        "interval. A bar that crosses 0 shows no difference.",
        _by_row(study, "difference", datasets, estimates, title, zero),
        datasets,
    )


def _of_finished(arm: ArmSummary) -> dict[int, float]:
    """Seed -> accuracy of an arm, for the seeds that diverged on no task."""
    diverged = {seed for _, seed in arm.diverged}
    return {seed: it for seed, it in arm.by_seed.items() if seed not in diverged}


def _by_row_data(
    study: Study,
    prefix: str,
    estimates: Mapping[str, Estimate],
    samples: Mapping[str, Mapping[int, float]],
    words: Callable[[float], str],
) -> dict[str, Rows]:
    """Rows for `_by_row`: samples by seed, means with intervals, and notes on divergence.

    The mean of a variant with diverged runs lies far off and is left to the table, so that the
    others keep their scale.
    """
    diverged = {name: len(study.summary[name].diverged) for name in estimates}
    return {
        f"{prefix}-runs": [
            {"variant": name, "seed": seed, "value": 100 * value, "words": words(value)}
            for name in estimates
            for seed, value in samples[name].items()
        ],
        f"{prefix}-means": [
            {
                "variant": name,
                "value": 100 * it.value,
                "low": 100 * min(it.interval or (it.value,)),
                "high": 100 * max(it.interval or (it.value,)),
                "words": f"{words(it.value)} {interval(it, words)}",
                "seeds": it.count,
            }
            for name, it in estimates.items()
            if not diverged[name]
        ],
        f"{prefix}-notes": [
            {
                "variant": name,
                "words": f"{diverged[name]} of {study.summary[name].runs} diverged",
            }
            for name in estimates
            if diverged[name]
        ],
    }


def _by_row(
    study: Study,
    prefix: str,
    datasets: Mapping[str, Rows],
    estimates: Mapping[str, Estimate],
    title: str,
    *behind: alt.Chart,
) -> Layers:
    """One row a variant, best on top: its samples by seed, their mean and interval."""
    ranked = sorted(estimates, key=lambda name: -estimates[name].value)
    row = alt.Y("variant:N", sort=ranked, title=None, axis=alt.Axis(labelLimit=160))
    by_seed = alt.YOffset("seed:O", scale=alt.Scale(paddingOuter=1))
    axis = alt.X("value:Q", title=title, scale=alt.Scale(zero=False, padding=12))
    words = alt.Tooltip("words:N", title=title)
    means = _layer(study, f"{prefix}-means")
    return _together(
        datasets,
        *behind,
        _layer(study, f"{prefix}-runs")
        .mark_circle(size=26, opacity=0.5)
        .encode(axis, row, by_seed, tooltip=["variant:N", "seed:O", words]),
        means.mark_rule(strokeWidth=3, strokeCap="round").encode(
            alt.X("low:Q", title=title), row, alt.X2("high:Q")
        ),
        means.mark_circle(size=130, opacity=1).encode(
            axis, row, tooltip=["variant:N", words, "seeds:Q"]
        ),
        _layer(study, f"{prefix}-notes")
        .mark_text(align="left", baseline="top", dy=6)
        .encode(row, x=alt.value(4), text="words:N"),
        height=50 + 42 * len(ranked),
    )


def _validation_accuracy(study: Study) -> Figure | None:
    rows = _curve_rows(study, "validation_accuracy", back=lambda it: 100 * it)
    if not rows:
        return None
    by_variant: dict[str, list[float]] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row["value"])
    floors = {name: min(values[len(values) // 4 :]) for name, values in by_variant.items()}
    floor = min(floors.values())
    caption = "Mean over seeds with 95% intervals. The first quarter may begin below the frame."
    datasets: dict[str, Rows] = {"accuracies": rows, "target": []}
    target = study.summary.target_accuracy
    line = alt.Chart(alt.NamedData("target")).mark_rule(strokeDash=[4, 3], clip=True)
    if target is not None and 100 * target > floor:
        datasets["target"] = [{"value": 100 * target}]
        caption += f" Dashed: the target, {percent(target)}."
    scale = alt.Scale(zero=False, nice=False, domainMin=alt.ExprRef("floor"))
    axis = alt.Axis(grid=True)
    value = alt.Y("value:Q", title="validation accuracy, %", scale=scale, axis=axis)
    chart = _together(
        datasets, line.encode(value), *_curves(_layer(study, "accuracies"), value)
    ).add_params(alt.param(name="floor", value=floor))
    title = "Validation accuracy by epoch"
    return Figure("validation-accuracy", title, caption, chart, datasets, floors)


def _training_loss(study: Study) -> Figure | None:
    rows = _curve_rows(study, "train_loss", into=lambda it: max(it, LEAST_LOSS))
    if not rows:
        return None
    losses = [row["value"] for row in rows]
    scale, axis, mean = alt.Scale(zero=False), alt.Axis(grid=True), "Mean"
    if _spans_a_decade(losses):
        # On this axis intervals of the logarithm are the symmetric ones, and never reach 0.
        rows = _curve_rows(
            study, "train_loss", into=lambda it: math.log(max(it, LEAST_LOSS)), back=math.exp
        )
        scale, mean = alt.Scale(type="log", nice=False), "Geometric mean"
        ticks = _round_numbers(min(losses), max(losses))
        # Of more values than its count, Vega leaves out every other one.
        axis = alt.Axis(grid=True, values=ticks, tickCount=len(ticks), format="~g")
    value = alt.Y("value:Q", title="training loss", scale=scale, axis=axis)
    chart = _together({"losses": rows}, *_curves(_layer(study, "losses"), value))
    caption = f"{mean} over seeds with 95% intervals."
    return Figure("training-loss", "Training loss by epoch", caption, chart, {"losses": rows})


def _curve_rows(
    study: Study,
    metric: str,
    into: Callable[[float], float] = float,
    back: Callable[[float], float] = float,
) -> list[dict[str, Any]]:
    """Mean and interval by variant and epoch, of what `into` makes of the metric."""
    rows: list[dict[str, Any]] = []
    for variant in study.summary.arms:
        curves = [getattr(run.curve, metric) for run in final_runs(study.results, variant.name)]
        epochs = max(map(len, curves), default=0)
        step = math.ceil(epochs / MOST_POINTS) or 1
        for epoch in range(epochs, 0, -step):
            samples = [it[epoch - 1] for it in curves if len(it) >= epoch]
            samples = [into(it) for it in samples if it is not None]
            if samples:
                mean = estimate([samples])
                low, high = mean.interval or (mean.value, mean.value)
                rows.append(
                    {
                        "variant": variant.name,
                        "epoch": epoch,
                        "value": _rounded(back(mean.value)),
                        "low": _rounded(back(low)),
                        "high": _rounded(back(high)),
                        "seeds": mean.count,
                    }
                )
    return sorted(rows, key=lambda row: row["epoch"])


def _curves(layer: alt.Chart, value: alt.Y) -> list[alt.Chart]:
    """A band, a line and what the pointer finds, for rows of `_curve_rows`."""
    epoch = alt.X(
        "epoch:Q",
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(tickMinStep=1, grid=False),
    )
    low = value.copy()
    low.shorthand = "low:Q"
    return [
        layer.mark_area(opacity=0.15, clip=True).encode(epoch, low, alt.Y2("high:Q")),
        layer.mark_line(strokeWidth=2, clip=True).encode(epoch, value),
        # A line has no tooltip of its own at each epoch.
        layer.mark_circle(size=90, opacity=0, clip=True).encode(
            epoch,
            value,
            tooltip=[
                "variant:N",
                "epoch:Q",
                alt.Tooltip("value:Q", title="mean"),
                alt.Tooltip("low:Q", title="interval from"),
                alt.Tooltip("high:Q", title="to"),
                "seeds:Q",
            ],
        ),
    ]


def _tuning(study: Study, path: str) -> Figure:
    values = study.tuned[path]
    numeric = all(isinstance(it, int | float) and not isinstance(it, bool) for it in values)
    tried: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for variant in study.summary.arms:
        seen: set[Any] = set()
        for trial in variant.trials:
            value = trial.values[path]
            # Trials come best first: of several with this value the first has the rest at best.
            if value in seen:
                continue
            seen.add(value)
            row = {
                "variant": variant.name,
                "tried": value if numeric else tuned_value(value),
                "values": values_in_words(trial.values),
                "seeds": trial.accuracy.count,
            }
            if trial.diverged:
                stack = sum(it["tried"] == row["tried"] for it in failed)
                failed.append(row | {"diverged": trial.diverged, "stack": stack})
            else:
                chosen = value == variant.values.get(path)
                row |= {"accuracy": _rounded(100 * trial.accuracy.value), "chosen": chosen}
                tried.append(row)
    kind, scale, axis = "O", alt.Scale(), alt.Axis(labelAngle=0, grid=False)
    if numeric:
        kind, axis = "Q", alt.Axis(values=sorted(values), format="~g", grid=False)
        scale = alt.Scale(zero=False, nice=False, padding=14)
        if _spans_a_decade(values):
            scale = alt.Scale(type="log", nice=False, padding=14)
    x = alt.X(f"tried:{kind}", title=path, scale=scale, axis=axis, sort=None)
    y = alt.Y("accuracy:Q", title="validation accuracy, %", scale=alt.Scale(zero=False))
    tooltip = ["variant:N", alt.Tooltip("values:N", title="tried"), "seeds:Q"]
    datasets = {"tried": tried, "failed": failed}
    layer, crosses = _layer(study, "tried"), _layer(study, "failed")
    height = 260
    chart = _together(
        datasets,
        layer.mark_line(strokeWidth=2).encode(x, y),
        layer.mark_circle(size=45, opacity=1).encode(
            x, y, tooltip=[*tooltip, alt.Tooltip("accuracy:Q", title="accuracy, %")]
        ),
        layer.transform_filter("datum.chosen").mark_point(size=230, strokeWidth=2.5).encode(x, y),
        crosses.mark_point(
            shape="cross", angle=45, filled=True, size=110, yOffset=alt.ExprRef("-12 * datum.stack")
        ).encode(x, y=alt.value(height - 8), tooltip=[*tooltip, "diverged:Q"]),
        height=height,
    )
    rest = ", everything else tuned at its best" if len(study.tuned) > 1 else ""
    return Figure(
        "tuning-" + re.sub(r"\W+", "-", path),
        f"Tuning: {short(path)}",
        f"Mean validation accuracy after the last epoch{rest}. Rings: the values chosen for the "
        "final runs. Crosses: a run diverged.",
        chart,
        datasets,
    )


def _round_numbers(low: float, high: float) -> list[float]:
    """The powers of ten in a range, with 2 and 5 between when there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    digits = (1, 2, 5) if len(exponents) <= 3 else (1,)
    numbers = [float(f"{digit}e{exponent}") for exponent in exponents for digit in digits]
    return [it for it in numbers if low <= it <= high]


def _spans_a_decade(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)


def _rounded(value: float) -> float:
    # Five digits are finer than a pixel, and short to write down.
    return float(f"{value:.5g}")
