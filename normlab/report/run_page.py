"""A page of the curves of runs that are saved while they are trained."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from ..compare.metric import measures_of
from ..compare.under_way import Course, SavedRuns
from ..inference.measure import LOSS, Measure
from ..spec import displayed
from .page import svg, templates


def run_page(runs: SavedRuns) -> str:
    """Returns the page, as HTML."""
    reported, _ = measures_of(runs.config)
    measures = dict.fromkeys([LOSS, reported])
    charts = [
        (it.words, svg(_chart(runs.courses, it).to_dict()))
        for it in measures
        if any(name.endswith(f"_{it.name}") for run in runs.courses for name in run.metrics)
    ]
    step = max((it.step[-1] for it in runs.courses if it.step), default=0)
    return (
        templates()
        .get_template("run.html")
        .render(
            name=displayed(str(runs.config["study"])),
            runs=[displayed(it.run) for it in runs.courses],
            step=step,
            steps=runs.steps,
            charts=charts,
        )
    )


def _chart(courses: Sequence[Course], measure: Measure) -> Any:
    rows = [
        {"step": step, "value": measure.factor * value, "split": split, "run": course.run}
        for course in courses
        for split in ("train", "validation")
        for step, value in zip(
            course.step, course.metrics.get(f"{split}_{measure.name}", []), strict=False
        )
        if value is not None
    ]
    base = alt.Chart(alt.InlineData(values=rows), width=640, height=260).encode(
        x=alt.X("step:Q", title="step"),
        y=alt.Y("value:Q", title=measure.heading(), scale=alt.Scale(zero=False)),
        color=alt.Color("split:N", title=None),
        detail="run:N",
    )
    return alt.layer(base.mark_line(), base.mark_point(size=12, filled=True))
