"""The charts of what probes found inside of networks: by layer, over training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from ..compare.store import Probed
from ..inference.estimates import estimate
from .figure import (
    HEIGHT,
    MOST_BANDS,
    Figure,
    band,
    lines,
    round_numbers,
    rounded,
    slug,
    spans_a_decade,
    together,
)
from .view import View
from .words import confidence

MOST_PANELS = 6  # beside each other, so that a line of each can be followed
MOST_POINTS = 60  # of a line in a panel
WIDTH = 0.9  # of a panel, the rest is the gap to the next one

# Probe, quantity -> title, and how to read it.
SHOWN = {
    ("activations", "deviation"): (
        "Deviation of outputs",
        "How far the outputs of each normalization layer spread, over all of its values",
    ),
    ("activations", "effective_rank"): (
        "Effective rank of outputs",
        "How many directions the examples of a batch take up in a layer's outputs",
    ),
    ("activations", "dead"): (
        "Dead features",
        "Share of the features of a layer that are above 0 for no example",
    ),
    ("activations", "gap_of_mean"): (
        "Gap between training and evaluation",
        "How far the running mean is from that of the batch, in running deviations",
    ),
    ("gradients", "to_input"): (
        "Gradients by depth",
        "Norm of the gradient of the loss to the input of each normalization layer",
    ),
    ("gradients", "noise_scale"): (
        "Noise scale of gradients",
        "The batch size at which a gradient's noise is as large as the gradient",
    ),
    ("gradients", "cosine_of_steps"): (
        "Cosine of successive steps",
        "1 where the loss goes on as it began, -1 where steps go back and forth",
    ),
    ("shift", "cosine"): (
        "Internal covariate shift",
        "Cosine between a layer's gradient before and after the step of the layers before it; "
        "1 where nothing shifts",
    ),
    ("landscape", "smoothness"): (
        "Smoothness along the gradient",
        "How much the gradient changes along a step, over the length of the step; the lower, the "
        "smoother",
    ),
    ("landscape", "sharpness"): (
        "Sharpness",
        "The largest eigenvalue of the Hessian of the loss",
    ),
    ("landscape", "interaction"): (
        "Interaction of layers",
        "What a step of all layers does to the loss beyond the steps of each alone, as a share",
    ),
    ("weights", "undone"): (
        "Distance from undoing",
        "How far each layer's scale is from the deviation of its input, which undoes the layer; 0 "
        "where the scale does",
    ),
}
_PERCENTILES = ("percentile_15", "percentile_50", "percentile_85")
_OF_PANELS = ". Each panel goes from the first step to the last one; all have one vertical scale"

# Panel -> arm -> step -> a value for each run.
Panels = Mapping[str, Mapping[str, Mapping[int, list[float]]]]


def inside(view: View) -> list[Figure]:
    """A figure for each quantity that probes found, with a panel for each layer."""
    if not view.inside:
        return []
    figures = []
    for (probe, quantity), (title, reading) in SHOWN.items():
        panels = _chosen(_by_layer(view, probe, quantity))
        more = ", from the input of the network to its output" * (len(panels) > 1)
        figures.append(_figure(view, f"{probe}-{quantity}", title, f"{reading}{more}", panels))
    percentiles = {
        f"{name.rpartition('_')[2]}%": layers[[*layers][-1]]
        for name in _PERCENTILES
        if (layers := _by_layer(view, "activations", name))
    }
    reading = (
        "Percentiles of all outputs of the last normalization layer, as in figure 1 of Ioffe and "
        "Szegedy, 2015"
    )
    title = "Percentiles of the last layer"
    figures.append(_figure(view, "activations-percentiles", title, reading, percentiles))
    return [it for it in figures if it is not None]


def _by_layer(view: View, probe: str, quantity: str) -> Panels:
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for arm in view.arms:
        for run in view.runs(arm.name):
            for it in _of(view.inside.get(run.id, ()), probe):
                for layer, value in it.values.get(quantity, {}).items():
                    if value is not None:
                        steps = found.setdefault(layer, {}).setdefault(arm.name, {})
                        steps.setdefault(it.step, []).append(value)
    # An arm without norms has fewer layers, and the others' would stand after them.
    of_runs = (
        [*it.values[quantity]]
        for lines in view.inside.values()
        for it in _of(lines, probe)[:1]
        if quantity in it.values
    )
    order = max(of_runs, key=len, default=[])
    return {layer: found[layer] for layer in dict.fromkeys([*order, *found]) if layer in found}


def _of(lines: Sequence[Probed], probe: str) -> list[Probed]:
    mine = [it for it in lines if it.probe == probe]
    every = math.ceil(len(mine) / MOST_POINTS) or 1
    return mine[::-every][::-1]  # the last one is always among them


def _chosen(panels: Panels) -> Panels:
    """The first, the last and some layers between them."""
    names = [*panels]
    if len(names) <= MOST_PANELS:
        return panels
    places = [round(it * (len(names) - 1) / (MOST_PANELS - 1)) for it in range(MOST_PANELS)]
    return {names[place]: panels[names[place]] for place in places}


def _figure(view: View, name: str, title: str, reading: str, panels: Panels) -> Figure | None:
    if not panels:
        return None
    last = max(step for arms in panels.values() for steps in arms.values() for step in steps) or 1
    rows: list[dict[str, Any]] = []
    for place, (panel, arms) in enumerate(panels.items()):
        for arm, steps in arms.items():
            for step, values in sorted(steps.items()):
                mean = estimate([values], confidence=1 - view.summary.significance)
                low, high = mean.interval or (mean.value, mean.value)
                rows.append(
                    {
                        "arm": arm,
                        "panel": panel,
                        "step": step,
                        "at": rounded(place + WIDTH * step / last),
                        "value": rounded(mean.value),
                        "low": rounded(low),
                        "high": rounded(high),
                    }
                )
    every = [row["value"] for row in rows]
    scale, axis = alt.Scale(zero=False), alt.Axis(grid=True)
    if min(every) > 0 and spans_a_decade(every):
        scale = alt.Scale(type="log", nice=False)
        ticks = round_numbers(min(every), max(every))
        axis = alt.Axis(grid=True, values=ticks, tickCount=len(ticks), format="~g")
        for row in rows:  # An interval of so few may end below 0, where this axis has no place.
            row["low"] = max(row["low"], min(every))
    value = alt.Y("value:Q", title=title.lower(), scale=scale, axis=axis)
    count = len(panels)
    across = alt.X(
        "at:Q",
        title=f"steps, 0 to {last:,}{' in each panel' * (count > 1)}",
        scale=alt.Scale(domain=[0, count], nice=False, zero=False),
        axis=alt.Axis(labels=False, ticks=False, grid=False, values=[*range(count)]),
    )
    dataset = slug(name)
    datasets: dict[str, Any] = {
        dataset: rows,
        f"{dataset}-panels": [
            {"at": place, "text": panel * (count > 1)} for place, panel in enumerate(panels)
        ],
    }
    frame = alt.Chart(alt.NamedData(f"{dataset}-panels"))
    rules = frame.mark_rule(strokeDash=[2, 3], opacity=0.6).encode(across)
    heads = frame.mark_text(align="left", dx=4, dy=-6, fontSize=11, limit=90).encode(
        across, y=alt.value(0), text="text:N"
    )
    drawn = lines(view, dataset).encode(
        across,
        value,
        alt.Detail("panel:N"),
        tooltip=["arm:N", "panel:N", "step:Q", "value:Q"],
    )
    layers = [rules, heads, drawn]
    if len({row["arm"] for row in rows}) <= MOST_BANDS:
        area = band(view, dataset).encode(across, alt.Y("low:Q", title=""), alt.Y2("high:Q"))
        layers.insert(1, area.encode(alt.Detail("panel:N")))
    caption = f"{reading}{_OF_PANELS * (count > 1)}. Mean over seeds"
    if len(layers) > 3:
        caption += f" with {confidence(view.summary)} intervals"
    chart = together(datasets, *layers, height=HEIGHT)
    return Figure(name, title, f"{caption}.", {"": chart}, datasets, wide=count > 3)
