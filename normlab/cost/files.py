"""What a cost estimate leaves behind: its figures as JSON and their chart."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import altair as alt

from ..compare.store import write_whole
from ..compare.study import Study
from .step import StepCost

PACKAGES = ("normlab", "jax", "jaxlib", "flax", "optax", "libtpu")


def write_costs(
    costs: Sequence[StepCost],
    study: Study,
    examples_per_chip: int | None,
    folder: Path,
    palette: Sequence[str],
    style: Mapping[str, Any],
) -> None:
    """Writes `cost.json`, the same to the bit for the same study and packages, and `cost.svg`.

    Args:
        costs: What was compiled.
        study: The study.
        examples_per_chip: Each device's part of a batch, if it is not the study's batch.
        folder: Where to write.
        palette: A colour for the baseline, then those of the other arms.
        style: Vega-Lite's configuration.
    """
    content = {
        "study": study.study,
        "baseline": study.baseline,
        "examples_per_chip": examples_per_chip or study.data.batch_size,
        "packages": _versions(),
        "costs": [_record(cost) for cost in costs],
    }
    write_whole(folder / "cost.json", json.dumps(content, indent=1) + "\n")
    others = [arm for arm in dict.fromkeys(cost.arm for cost in costs) if arm != study.baseline]
    colors = {study.baseline: palette[0]}
    colors |= {arm: palette[1:][at % (len(palette) - 1)] for at, arm in enumerate(others)}
    svg = io.StringIO()
    chart(costs, colors).properties(config=dict(style)).save(svg, format="svg")
    write_whole(folder / "cost.svg", svg.getvalue())


def chart(costs: Sequence[StepCost], colors: Mapping[str, str]) -> alt.FacetChart:
    """Draws the memory traffic of each arm, one panel a target, with the number of exchanges."""
    rows = [
        {
            "arm": cost.arm,
            "target": f"{cost.target}, {cost.chips} {'chip' if cost.chips == 1 else 'chips'}",
            "traffic": cost.program.traffic,
            "words": _words(cost),
        }
        for cost in costs
    ]
    scale = alt.Scale(domain=list(colors), range=list(colors.values()))
    axis = alt.Axis(format="~s")
    # Room for the words behind the longest bar.
    room = alt.Scale(domain=[0, 1.8 * max(row["traffic"] for row in rows)])
    bars = alt.Chart().encode(
        x=alt.X("traffic:Q", title="memory traffic of a step, bytes a chip", axis=axis, scale=room),
        y=alt.Y("arm:N", title=None, sort=None, axis=alt.Axis(labelLimit=160)),
        color=alt.Color("arm:N", scale=scale, legend=None),
    )
    words = bars.mark_text(align="left", dx=5).encode(text="words:N", color=alt.value("#1c2330"))
    panels = alt.layer(bars.mark_bar(), words, data=alt.Data(values=rows))
    panels = panels.properties(width=420, height=26 * len({cost.arm for cost in costs}))
    header = alt.Header(title=None, labelFontSize=14, labelAnchor="start", labelOrient="top")
    order = list(dict.fromkeys(row["target"] for row in rows))
    return panels.facet(row=alt.Row("target:N", sort=order, header=header))


def _record(cost: StepCost) -> dict[str, Any]:
    return {
        "target": cost.target,
        "chips": cost.chips,
        "arm": cost.arm,
        "normalized": cost.normalized,
        "passes": cost.passes,
        **asdict(cost.program),
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # libtpu is an extra
            continue
    return found


def _words(cost: StepCost) -> str:
    parts = [] if cost.passes is None else [f"{cost.passes:.1f} passes"]
    if cost.chips > 1:
        count = cost.program.exchanges.count
        parts.append(f"{count} {'exchange' if count == 1 else 'exchanges'}")
    return ", ".join(parts)
