"""The charts of a view, and one picture of a study."""

from typing import Any

import altair as alt

from . import curves, final, tuning
from .figure import Figure
from .view import View
from .words import conclude, confidence


def figures(view: View) -> list[Figure]:
    """All charts that the runs so far allow, the most telling first.

    Curves against steps and values are those of one task; over several there are ranks and
    profiles instead.
    """
    made: list[Figure | None] = []
    if view.finals:
        made += [final.accuracy_on_test(view), final.differences(view)]
        made += [final.by_level(view, path) for path in view.factors]
    if not view.is_one_task:
        made += [final.profiles(view), final.ranks(view)]
        return [figure for figure in made if figure]
    if view.finals:
        made += [curves.validation_accuracy(view), curves.training_loss(view)]
        made += [curves.time_to_target(view)]
    if any(arm.trials for arm in view.arms):
        made += [*(tuning.tuning(view, path) for path in view.tuned), tuning.budget(view)]
    return [figure for figure in made if figure]


def overview(view: View, name: str, setting: str) -> dict[str, Any]:
    """One picture of a study with final runs, as Vega-Lite has it: curves beside final results."""
    made = (
        (curves.validation_accuracy(view) if view.is_one_task else None, 320),
        (final.accuracy_on_test(view), 240),
        (final.differences(view), 240),
    )
    charts = [
        next(iter(it.charts.values())).properties(width=width, height=260, title=it.title)
        for it, width in made
        if it
    ]
    title = f"{name}: {conclude(view.summary).headline}"
    intervals = f"{confidence(view.summary)} intervals"
    subtitle = f"{setting}. Mean over seeds with {intervals}; small dots are seeds."
    together = alt.hconcat(*charts, spacing=36).properties(
        title=alt.Title(title, subtitle=subtitle, fontSize=18, subtitleFontSize=13, offset=20)
    )
    datasets = {name: rows for it, _ in made if it for name, rows in it.datasets.items()}
    return together.to_dict(validate=False) | {"datasets": datasets}
