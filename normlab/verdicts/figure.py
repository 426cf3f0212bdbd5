"""The figure of an experiment: what was measured of each arm, a dot a seed, and its curves."""

import math
from typing import Any

import altair as alt

from ..report.figure import Layers
from ..report.style import COLORS, DASHES
from .measures import Curves, Scores
from .rule import Rule, kind
from .words import brief

WIDTH, ROW, CURVES = 420, 22, 240  # pixels
LONGEST = 30  # arms that a reader can tell apart in one panel


def figure(rule: Rule, scores: Scores, curves: Curves) -> dict[str, Any]:
    """Returns a panel for each measure that a prediction is about, as Vega-Lite has it.

    What is drawn over training is a last panel.
    """
    panels: list[Any] = []
    for name in dict.fromkeys(it.measure for it in rule.predictions):
        about = [it for it in rule.predictions if it.measure == name]
        panels.append(_panel(rule, name, scores[name], logarithmic=any(it.log for it in about)))
    if rule.curves is not None and curves:
        panels.append(_over_training(rule.curves.title, curves))
    chart = alt.vconcat(*panels, spacing=30).resolve_scale(color="independent")
    return chart.to_dict(validate=False)


def _panel(rule: Rule, name: str, scores: Any, *, logarithmic: bool) -> Layers:
    spec = rule.measures[name]
    named = {arm for it in rule.predictions if it.measure == name for arm in it.contrast}
    arms = [arm for arm in scores if arm in named or len(scores) <= LONGEST]
    rows = [
        {"arm": brief(arm), "seed": seed, "value": value}
        for arm in arms
        for seed, value in scores[arm].items()
        if math.isfinite(value) and (value > 0 or not logarithmic)
    ]
    values = [row["value"] for row in rows]
    wide = bool(values) and logarithmic and max(values) > 10 * min(values)
    heading = kind(spec)
    title = f"{heading[0].upper()}{heading[1:]}{', ' * bool(spec.unit)}{spec.unit}"
    x = alt.X(
        "value:Q",
        title=title,
        scale=alt.Scale(type="log") if wide else alt.Scale(zero=False, nice=True),
    )
    y = alt.Y("arm:N", title=None, sort=[*map(brief, arms)], axis=alt.Axis(labelLimit=260))
    # Of a logarithmic axis the mean is that of the logarithms, as the predictions have it.
    data = alt.Data(values=rows)
    base = alt.Chart(data, height=ROW * max(1, len(arms)), width=WIDTH)
    dots = base.mark_circle(size=34, color=COLORS[0], opacity=0.55).encode(x, y)
    if logarithmic:
        base = base.transform_calculate(log="log(datum.value)")
        base = base.transform_aggregate(log="mean(log)", groupby=["arm"])
        base = base.transform_calculate(value="exp(datum.log)")
    else:
        base = base.transform_aggregate(value="mean(value)", groupby=["arm"])
    means = base.mark_tick(thickness=3, size=ROW - 6, color=COLORS[1]).encode(x, y)
    return alt.layer(dots, means)


def _over_training(title: str, curves: Curves) -> Any:
    """A line for each quantity and arm: the arm is its colour, the quantity its dashes."""
    rows = [
        {"quantity": quantity.replace("_", " "), "arm": brief(arm), "step": step, "value": value}
        for quantity, by_arm in curves.items()
        for arm, points in by_arm.items()
        for step, value in points.items()
        if math.isfinite(value)
    ]
    arms, quantities = (list(dict.fromkeys(row[it] for row in rows)) for it in ("arm", "quantity"))
    colors = [COLORS[place % len(COLORS)] for place in range(len(arms))]
    dashes = [[*DASHES[place % len(DASHES)]] or [1, 0] for place in range(len(quantities))]
    legend = alt.Legend(title=None, orient="bottom", symbolType="stroke", labelLimit=260)
    return (
        alt.Chart(alt.Data(values=rows), width=WIDTH, height=CURVES)
        .mark_line(strokeWidth=1.6)
        .encode(
            alt.X("step:Q", title="steps"),
            alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            alt.Color("arm:N", scale=alt.Scale(domain=arms, range=colors), legend=legend),
            alt.StrokeDash(
                "quantity:N", scale=alt.Scale(domain=quantities, range=dashes), legend=legend
            ),
        )
    )
