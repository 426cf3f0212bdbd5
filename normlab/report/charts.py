"""The charts of a view, and one picture of a study."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

from . import curves, final, tuning
from .figure import Figure, apart, slug
from .inside import inside
from .study import Study
from .style import style
from .view import View, views
from .words import conclude, confidence


def figures(view: View) -> list[Figure]:
    """All charts that the runs so far allow, the most telling first.

    Curves against steps and values are those of one task; over several there are ranks and
    profiles instead. Of more arms than a reader can look at they show some, and one all.
    """
    # Altair would check each channel by a schema, for most of the time that a page takes.
    with debug_mode(False):
        made = [figure for figure in _figures(view) if figure]
    # Paths of `a|b` and `a&b` have the same letters.
    names = apart(it.name for it in made)
    return [dataclasses.replace(it, name=name) for it, name in zip(made, names, strict=True)]


def _figures(view: View) -> list[Figure | None]:
    made: list[Figure | None] = []
    if view.left_out_of is not None:
        made += [final.all_arms(view.left_out_of)]
    if view.finals:
        made += [final.on_test(view), final.differences(view)]
        made += [final.by_level(view, path) for path in view.factors]
    if not view.is_one_task:
        return [*made, final.profiles(view), final.ranks(view)]
    if view.finals:
        made += [curves.on_validation(view), curves.training_loss(view)]
        made += [curves.time_to_target(view)]
        made += inside(view)
    if any(arm.trials for arm in view.arms):
        made += [*(tuning.tuning(view, path) for path in view.tuned), tuning.budget(view)]
    return made


def overview(view: View, made: Sequence[Figure], name: str, setting: str) -> dict[str, Any]:
    """One picture of a study with final runs, as Vega-Lite has it: curves beside final results.

    Args:
        view: The whole study.
        made: The figures of this view.
        name: The study's name.
        setting: What it is about.
    """
    metric = slug(view.summary.measure.words)
    widths = {f"validation-{metric}": 320, f"test-{metric}": 240, "differences": 240}
    by_name = {it.name: it for it in made}
    shown = [by_name[name] for name in widths if name in by_name]
    charts = [
        next(iter(it.charts.values())).properties(width=widths[it.name], height=260, title=it.title)
        for it in shown
    ]
    title = f"{name}: {conclude(view.summary).headline}"
    intervals = f"{confidence(view.summary)} intervals"
    dots = any(it.datasets.get("test-runs") for it in shown)
    subtitle = f"{setting}. Mean over seeds with {intervals}"
    subtitle += "; small dots are seeds." if dots else "."
    together = alt.hconcat(*charts, spacing=36).properties(
        title=alt.Title(title, subtitle=subtitle, fontSize=18, subtitleFontSize=13, offset=20)
    )
    datasets = {name: rows for it in shown for name, rows in it.datasets.items()}
    return together.to_dict(validate=False) | {"datasets": datasets}


def overview_chart(study: Study) -> alt.HConcatChart:
    """The overview of a study with final runs, for a notebook."""
    whole = views([study])[0]
    drawn = overview(whole, figures(whole.shown), study.name, study.setting)
    config = style("#1c2330", "#5b6472", "#e6e8ec", "white")
    # Altair would check each row as if it were part of the chart, for seconds.
    return alt.HConcatChart.from_dict(drawn | {"config": config}, validate=False)
