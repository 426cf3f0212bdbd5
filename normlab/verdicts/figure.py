"""The figure of an experiment: what was measured of each arm, a dot a seed."""

import math
from typing import Any

import altair as alt

from ..report.figure import Layers
from ..report.style import COLORS
from .measures import Scores
from .rule import Rule, kind
from .words import brief

WIDTH, ROW = 420, 22  # pixels
LONGEST = 30  # arms that a reader can tell apart in one panel


def figure(rule: Rule, scores: Scores) -> dict[str, Any]:
    """Returns a panel for each measure that a prediction is about, as Vega-Lite has it."""
    panels = []
    for name in dict.fromkeys(it.measure for it in rule.predictions):
        about = [it for it in rule.predictions if it.measure == name]
        panels.append(_panel(rule, name, scores[name], logarithmic=any(it.log for it in about)))
    chart = alt.vconcat(*panels, spacing=30)
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
