"""The look of all charts: one colour a variant, one style by day and by night."""

from typing import Any

from .study import Study

# The baseline is grey. The next six are Okabe and Ito's without their yellow and black, which are
# lost on white and on dark pages; the rest was chosen to stay apart from these, on both kinds of
# page, under simulated protanopia and deuteranopia.
BASELINE_COLOR = "#666666"
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#774400", "#4422FF", "#AABB99", "#5588FF"),
)


def colors(study: Study) -> dict[str, str]:
    """Variant -> the colour it has everywhere."""
    others = [it.name for it in study.summary.arms if it.name != study.summary.baseline]
    chosen = {name: COLORS[place % len(COLORS)] for place, name in enumerate(others)}
    return {it.name: chosen.get(it.name, BASELINE_COLOR) for it in study.summary.arms}


def style(ink: str, quiet: str, grid: str, background: str) -> dict[str, Any]:
    """Vega-Lite's configuration for all charts, with four colours that CSS understands."""
    small = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    return {
        "background": background,
        "font": "system-ui, 'Helvetica Neue', Helvetica, Arial, sans-serif",
        "view": {"stroke": None},
        "title": {"color": ink, "subtitleColor": quiet, "fontSize": 15, "anchor": "start"},
        "axis": {
            **small,
            "labelColor": quiet,
            "titleColor": quiet,
            "gridColor": grid,
            "domainColor": quiet,
            "tickColor": quiet,
        },
        "axisX": {"labelOverlap": "greedy", "labelSeparation": 6, "tickCount": 6},
        "axisY": {"domain": False, "ticks": False, "labelPadding": 6, "tickCount": 6},
        "legend": {
            **small,
            "labelColor": ink,
            "symbolType": "circle",
            "symbolOpacity": 1,
            "orient": "bottom",
        },
        "rule": {"color": quiet},
        "text": {"color": ink, "fontSize": 12},
    }
