"""The look of all charts: one colour, dash and shape an arm, one style by day and by night."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..compare.arm import Arm
from ..compare.summary import ArmSummary

# The baseline is grey. The next six are Okabe and Ito's without their yellow and black, which are
# lost on white and on dark pages; the rest was chosen to stay apart from these, on both kinds of
# page, under simulated protanopia and deuteranopia.
BASELINE_COLOR = "#666666"
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#774400", "#4422FF", "#AABB99", "#5588FF"),
)
OKABE_ITO = 6

# Lines and dots that need not be told apart by colour alone.
DASHES = ((), (7, 3), (2, 2), (9, 3, 2, 3), (14, 4))
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, everywhere.

    Attributes:
        color: Of all that is drawn of it.
        dash: Lengths of dashes and gaps of its lines; empty for a solid one.
        shape: Of its dots, as Vega names it.
    """

    color: str
    dash: tuple[int, ...]
    shape: str


def looks(arms: Sequence[Arm | ArmSummary], baseline: str) -> dict[str, Look]:
    """Arm's name -> its look: the colour is its variant's, dash and shape are its levels'.

    Variants from the seventh on have other dashes and shapes too, since their colours are closer.
    """
    others = list(dict.fromkeys(arm.variant for arm in arms if arm.variant != baseline))
    combinations: list[dict[str, Any]] = []
    rounds = 1 + (max(len(others) - 1, 0) + len(COLORS) - OKABE_ITO) // len(COLORS)
    chosen: dict[str, Look] = {}
    for arm in arms:
        if arm.levels not in combinations:
            combinations.append(arm.levels)
        place = others.index(arm.variant) if arm.variant != baseline else 0
        color = BASELINE_COLOR if arm.variant == baseline else COLORS[place % len(COLORS)]
        kind = rounds * combinations.index(arm.levels)
        kind += (place + len(COLORS) - OKABE_ITO) // len(COLORS)
        chosen[arm.name] = Look(color, DASHES[kind % len(DASHES)], SHAPES[kind % len(SHAPES)])
    return chosen


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
            "titleColor": quiet,
            "symbolType": "circle",
            "symbolOpacity": 1,
            "columns": 4,
            "orient": "bottom",
        },
        "rule": {"color": quiet},
        "text": {"color": ink, "fontSize": 12},
    }
