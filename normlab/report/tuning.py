"""The charts of tuning: what each arm made of each value, and of how many trials."""

import math
import re
from typing import Any

import altair as alt

from .figure import (
    HEIGHT,
    MEASURED,
    MOST_LABELS,
    Figure,
    Rows,
    are_numbers,
    labels,
    layer,
    lines,
    named,
    number_scale,
    rounded,
    shape,
    spans_a_decade,
    together,
)
from .view import View
from .words import short, tuned_value, values_in_words, worst_in_words


def tuning(view: View, path: str) -> Figure:
    """What was reached against the values tried on a path, everything else at its best."""
    values, measure = view.tuned[path], view.summary.selected_by
    numeric, drawn = are_numbers(values), path in view.drawn
    tried: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for arm in view.arms:
        seen: set[Any] = set()
        for trial in arm.trials:
            # A field that the arm's layer does not have, or runs shorter than those beside them.
            if path not in trial.values or trial.until is not None:
                continue
            value = trial.values[path]
            # Trials come best first: of several with this value the first has the rest at best.
            if value in seen:
                continue
            seen.add(value)
            row = {
                "arm": arm.name,
                "tried": value if numeric else tuned_value(value),
                "values": values_in_words(trial.values),
                "seeds": trial.reached.count,
            }
            if trial.diverged or not math.isfinite(trial.reached.value):
                stack = sum(it["tried"] == row["tried"] for it in failed)
                failed.append(row | {"diverged": trial.diverged, "stack": stack})
            else:
                chosen = value == arm.values.get(path)
                reached = rounded(measure.factor * trial.reached.value)
                row |= {"reached": reached, "chosen": chosen}
                tried.append(row)
    kind, scale, axis = "O", alt.Scale(), alt.Axis(labelAngle=0, grid=False)
    if numeric:
        kind = "Q"
        axis = alt.Axis(format="~g", grid=False)
        if not drawn:
            axis = alt.Axis(values=sorted(values), format="~g", grid=False)
        scale = number_scale(values)
    x = alt.X(f"tried:{kind}", title=path, scale=scale, axis=axis, sort=None)
    floors = _floors(tried) if measure.higher_is_better else {}
    every = [row["reached"] for row in tried]
    floor = min(floors.values() or every, default=0.0)
    along = alt.Scale(zero=False, nice=False, padding=12)
    if floors:
        along = alt.Scale(zero=False, nice=False, padding=12, domainMin=alt.ExprRef("floor"))
    elif not measure.share and spans_a_decade(every):
        along = alt.Scale(type="log", nice=False, padding=12)
    y = alt.Y("reached:Q", title=measure.heading("validation"), scale=along)
    tooltip = ["arm:N", alt.Tooltip("values:N", title="tried"), "seeds:Q"]
    log = along.to_dict().get("type") == "log"
    datasets = {"tried": tried, "failed": failed, "chosen": _chosen(view, tried, floor, log=log)}
    dots = layer(view, "tried").encode(x, y, shape(view))
    # Draws lie as they fall: a line between two of them would say what nobody tried.
    between = [] if drawn else [lines(view, "tried", with_dots=True, clip=True).encode(x, y)]
    chart = together(
        datasets,
        *between,
        dots.mark_point(size=45, opacity=1, filled=True, clip=True).encode(
            tooltip=[*tooltip, alt.Tooltip("reached:Q", title=measure.heading())]
        ),
        layer(view, "tried")
        .transform_filter("datum.chosen")
        .mark_point(size=230, strokeWidth=2.5, clip=True)
        .encode(x, y),
        named(view, "chosen").encode(x, y),
        layer(view, "failed")
        .mark_point(
            shape="cross", angle=45, filled=True, size=110, yOffset=alt.ExprRef("-12 * datum.stack")
        )
        .encode(x, y=alt.value(HEIGHT - 8), tooltip=[*tooltip, "diverged:Q"]),
    )
    if floors:
        chart = chart.add_params(alt.param(name="floor", value=floor))
    rest = ", everything else tuned at its best" if len(view.tuned) > 1 else ""
    return Figure(
        "tuning-" + re.sub(r"\W+", "-", path),
        f"Tuning: {short(path)}",
        f"Mean validation {measure.words} at the end of training{rest}. Rings with names: the "
        "values chosen for the final runs. "
        + ("The worse half of what an arm tried may lie below the frame. " if floors else "")
        + "Crosses: a run diverged.",
        {"": chart},
        datasets,
        floors,
    )


def _floors(tried: Rows) -> dict[str, float]:
    """Arm -> the least of the better half of what it tried.

    Beside what is far from the best, as after a rate that is too high, the rest would be flat.
    """
    by_arm: dict[str, list[float]] = {}
    for row in tried:
        by_arm.setdefault(row["arm"], []).append(row["reached"])
    return {arm: sorted(reached)[len(reached) // 2] for arm, reached in by_arm.items()}


def _chosen(view: View, tried: Rows, low: float, *, log: bool) -> Rows:
    """The names beside the values chosen, those at one value below each other."""
    height = math.log if log else float
    by_value: dict[Any, dict[str, tuple[dict[str, Any], float]]] = {}
    for row in tried:
        if row["chosen"]:
            fields = {"tried": row["tried"], "reached": row["reached"]}
            by_value.setdefault(row["tried"], {})[row["arm"]] = fields, height(row["reached"])
    if sum(map(len, by_value.values())) > MOST_LABELS:
        return []
    high = max((row["reached"] for row in tried), default=low)
    low, high = height(low), height(high)
    return [row for arms in by_value.values() for row in labels(view, arms, low, high)]


def budget(view: View) -> Figure | None:
    """Expected best on validation against the number of trials."""
    measure = view.summary.selected_by
    rows = [
        {"arm": arm.name, "trials": int(n), "reached": rounded(measure.factor * float(reached))}
        for arm in view.arms
        if arm.budget is not None
        for n, reached in zip(arm.budget.trials, arm.budget.validation, strict=True)
        if math.isfinite(reached)
    ]
    most = max((row["trials"] for row in rows), default=0)
    if most < 2:
        return None
    x = alt.X(
        "trials:Q",
        title="number of trials",
        scale=alt.Scale(nice=False, zero=False, padding=8),
        axis=alt.Axis(tickCount=min(most - 1, 8), tickMinStep=1, format="d", grid=False),
    )
    y = alt.Y("reached:Q", title=measure.heading("best validation"), scale=MEASURED)
    last = {row["arm"]: row for row in rows}
    ends = {
        arm: ({"trials": row["trials"], "reached": row["reached"]}, row["reached"])
        for arm, row in last.items()
    }
    every = [row["reached"] for row in rows]
    datasets = {"budget": rows, "budget-ends": labels(view, ends, min(every), max(every))}
    return Figure(
        "budget",
        "What more tuning brings",
        f"Expected validation {measure.words} of the best of n trials (unbiased estimate of Tang "
        f"et al. 2020); a diverged trial counts as {worst_in_words(measure)}. An arm that still "
        f"{'rises' if measure.higher_is_better else 'falls'} at the right would gain from more "
        "trials.",
        {
            "": together(
                datasets,
                lines(view, "budget", with_dots=True).encode(x, y),
                layer(view, "budget")
                .mark_point(size=45, filled=True, opacity=1)
                .encode(x, y, shape(view), tooltip=["arm:N", "trials:Q", "reached:Q"]),
                named(view, "budget-ends").encode(x, y),
            )
        },
        datasets,
    )
