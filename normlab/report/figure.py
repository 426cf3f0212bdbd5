"""What all charts of a page are made of: arms in their looks, which buttons hide."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt

from ..compare.arm import in_words
from .view import View

# What Altair says that a layered chart with parameters is.
Layers = alt.LayerChart | alt.FacetChart
Rows = Sequence[Mapping[str, Any]]

HEIGHT = 260
MOST_LABELS = 12  # that fit beside each other's lines
MOST_BANDS = 3  # that can be told apart where they overlap
LINE = 14  # pixels between two labels
# Round ends would move the lines apart from where their names were put.
MEASURED = alt.Scale(zero=False, nice=False, padding=6)


@dataclass(frozen=True)
class Figure:
    """A chart with its words.

    Attributes:
        name: Name of its file and of its place in the page.
        title: What it shows.
        caption: How to read it.
        charts: What a reader chooses from, as an axis -> the chart, without data, width and title;
            a single one under the empty name. Their parameter `hidden` names the arms left out.
        datasets: Name in the charts -> its rows.
        floors: Arm -> where the vertical axis may begin as far as this arm goes. The charts'
            parameter `floor` is the smallest of these; empty when they have none.
        wide: Whether it takes the width of the page.
    """

    name: str
    title: str
    caption: str
    charts: Mapping[str, Layers]
    datasets: Mapping[str, Rows]
    floors: Mapping[str, float] = field(default_factory=dict)
    wide: bool = False

    def specifications(self, **properties: Any) -> dict[str, dict[str, Any]]:
        """The charts as Vega-Lite has them, with a width or whatever else is set from outside."""
        # Altair would check and copy each row as if it were part of the chart, for seconds; and the
        # chart itself for one, the same one every time.
        return {
            choice: chart.to_dict(validate=False) | properties
            for choice, chart in self.charts.items()
        }


def layer(view: View, dataset: str) -> alt.Chart:
    """Rows of a data set with an `arm`, in the arm's colour."""
    color = looks_scale(view, [it.color for it in view.looks.values()])
    return (
        alt.Chart(alt.NamedData(dataset))
        .transform_filter("indexof(hidden, datum.arm) < 0")
        .encode(color=alt.Color("arm:N", title=None, scale=color))
    )


def lines(view: View, dataset: str, *, with_dots: bool = False, **mark: Any) -> alt.Chart:
    """Lines through rows of a data set with an `arm`, in the arm's colour and dash.

    Args:
        view: Has the looks.
        dataset: Name of the rows.
        with_dots: Whether dots are drawn as well, which are what the legend shows then.
        mark: Properties of the lines.
    """
    legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=2, symbolSize=300)
    if with_dots:
        legend = alt.Legend(symbolStrokeWidth=0)
    colored = layer(view, dataset).mark_line(strokeWidth=2, **mark)
    colored.encoding.color.legend = legend
    # Vega has no empty dash.
    dashes = [list(it.dash) or [1, 0] for it in view.looks.values()]
    scale = looks_scale(view, dashes)
    return colored.encode(
        strokeDash=alt.StrokeDash("arm:N", title=None, scale=scale, legend=legend)
    )


def band(view: View, dataset: str, **mark: Any) -> alt.Chart:
    """Bands between rows of a data set with an `arm`; of many one sees none but the one meant.

    The chart's parameter `hovered` names the arm that the pointer is at; null shows all bands.
    """
    opacity = alt.ExprRef("hovered === null ? 0.15 : datum.arm === hovered ? 0.3 : 0")
    hovered = alt.param(name="hovered", value=None)
    return layer(view, dataset).mark_area(opacity=opacity, **mark).add_params(hovered)


def looks_scale(view: View, looks: Sequence[Any]) -> alt.Scale:
    """The scale that gives each arm its colour, dash or shape."""
    # Altair copies lists, but no tuples, each time that charts are put together.
    return alt.Scale(domain=tuple(view.looks), range=tuple(looks))


def shape(view: View) -> alt.Shape:
    """The shapes of dots, for `mark_point`."""
    scale = looks_scale(view, [it.shape for it in view.looks.values()])
    return alt.Shape("arm:N", title=None, scale=scale)


def labels(
    view: View,
    ends: Mapping[str, tuple[Mapping[str, Any], float]],
    low: float,
    high: float,
    texts: Mapping[str, str] | None = None,
) -> Rows:
    """Rows for `named`: one an arm that ends somewhere, moved so that no two names overlap.

    Args:
        view: Has the arms.
        ends: Arm -> fields of its row, and its height on the vertical axis.
        low: The lower end of that axis.
        high: Its upper end.
        texts: Arm -> what to write, if it is not its variant and its levels.
    """
    if len(ends) > MOST_LABELS:
        return []
    span = (high - low) or 1.0
    heights = {arm: HEIGHT * float(high - height) / span for arm, (_, height) in ends.items()}
    order = sorted(heights, key=lambda arm: heights[arm])
    moved = dict(zip(order, _apart([heights[arm] for arm in order]), strict=True))
    texts = texts or {arm: _in_short(view, arm) for arm in ends}
    return [
        {
            **fields,
            "arm": arm,
            "text": texts[arm],
            "shift": round(moved[arm] - heights[arm]),
        }
        for arm, (fields, _) in ends.items()
    ]


def _in_short(view: View, arm: str) -> str:
    """A variant and its levels, without the names of the factors."""
    summary = view.summary[arm]
    return ", ".join([summary.variant, *map(in_words, summary.levels.values())])


def _apart(heights: Sequence[float]) -> list[float]:
    """Moves rising heights as little as it takes, from above and then from below."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + LINE) if moved else height)
    lowest = HEIGHT + LINE / 2
    for place in range(len(moved) - 1, -1, -1):
        moved[place] = min(moved[place], lowest)
        lowest = moved[place] - LINE
    return moved


def named(view: View, dataset: str) -> alt.Chart:
    """Names of arms where their lines end, for rows of `labels`."""
    return (
        layer(view, dataset)
        .mark_text(align="left", dx=7, dy=alt.ExprRef("datum.shift"), limit=96, fontSize=11)
        .encode(text="text:N")
    )


def together(datasets: Mapping[str, Rows], *layers: alt.Chart, height: int = HEIGHT) -> Layers:
    """The layers that have rows, one above the other."""
    # A layer without rows has no extent, of which Vega complains.
    drawn = [it for it in layers if datasets[it.data.name]]
    hidden = alt.param(name="hidden", value=[])
    return alt.layer(*drawn).add_params(hidden).properties(height=height)


def round_numbers(low: float, high: float) -> list[float]:
    """The powers of ten in a range, with 2 and 5 between when there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    digits = (1, 2, 5) if len(exponents) <= 3 else (1,)
    numbers = [float(f"{digit}e{exponent}") for exponent in exponents for digit in digits]
    return [it for it in numbers if low <= it <= high]


def spans_a_decade(values: Sequence[float | int]) -> bool:
    """Whether values are better shown on a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)


def number_scale(values: Sequence[float | int]) -> alt.Scale:
    """A horizontal scale for numbers that were tried or set."""
    if spans_a_decade(values):
        return alt.Scale(type="log", nice=False, padding=14)
    return alt.Scale(zero=False, nice=False, padding=14)


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether all values are numbers; true and false are none."""
    return all(isinstance(it, int | float) and not isinstance(it, bool) for it in values)


def apart(names: Iterable[str]) -> list[str]:
    """Makes names of files differ from each other, also where letters large and small are one."""
    made: list[str] = []
    for plain in names:
        name, number = plain, 1
        while name.casefold() in map(str.casefold, made):
            number += 1
            name = f"{plain}-{number}"
        made.append(name)
    return made


def slug(words: str) -> str:
    """Words as part of the name of a file: "test-top-5-accuracy"."""
    return re.sub(r"\W+", "-", words.lower())


def rounded(value: float) -> float:
    """Five digits are finer than a pixel, and short to write down."""
    return float(f"{value:.5g}")
