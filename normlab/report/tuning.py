"""The charts of tuning: what each arm made of each value, and of how many trials."""

import re
from typing import Any

import altair as alt

from .figure import (
    ACCURACY,
    HEIGHT,
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
    together,
)
from .view import View
from .words import short, tuned_value, values_in_words


def tuning(view: View, path: str) -> Figure:
    """Validation accuracy against the values tried on a path, everything else at its best."""
    values = view.tuned[path]
    numeric, drawn = are_numbers(values), path in view.drawn
    tried: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for arm in view.arms:
        seen: set[Any] = set()
        for trial in arm.trials:
            if path not in trial.values:  # a field that the arm's layer does not have
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
                "seeds": trial.accuracy.count,
            }
            if trial.diverged:
                stack = sum(it["tried"] == row["tried"] for it in failed)
                failed.append(row | {"diverged": trial.diverged, "stack": stack})
            else:
                chosen = value == arm.values.get(path)
                row |= {"accuracy": rounded(100 * trial.accuracy.value), "chosen": chosen}
                tried.append(row)
    kind, scale, axis = "O", alt.Scale(), alt.Axis(labelAngle=0, grid=False)
    if numeric:
        kind = "Q"
        axis = alt.Axis(format="~g", grid=False)
        if not drawn:
            axis = alt.Axis(values=sorted(values), format="~g", grid=False)
        scale = number_scale(values)
    x = alt.X(f"tried:{kind}", title=path, scale=scale, axis=axis, sort=None)
    floors = _floors(tried)
    floor = min(floors.values(), default=0.0)
    reached = alt.Scale(zero=False, nice=False, padding=12, domainMin=alt.ExprRef("floor"))
    y = alt.Y("accuracy:Q", title="validation accuracy, %", scale=reached)
    tooltip = ["arm:N", alt.Tooltip("values:N", title="tried"), "seeds:Q"]
    datasets = {"tried": tried, "failed": failed, "chosen": _chosen(view, tried, floor)}
    dots = layer(view, "tried").encode(x, y, shape(view))
    # Draws lie as they fall: a line between two of them would say what nobody tried.
    between = [] if drawn else [lines(view, "tried", with_dots=True, clip=True).encode(x, y)]
    chart = together(
        datasets,
        *between,
        dots.mark_point(size=45, opacity=1, filled=True, clip=True).encode(
            tooltip=[*tooltip, alt.Tooltip("accuracy:Q", title="accuracy, %")]
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
    ).add_params(alt.param(name="floor", value=floor))
    rest = ", everything else tuned at its best" if len(view.tuned) > 1 else ""
    return Figure(
        "tuning-" + re.sub(r"\W+", "-", path),
        f"Tuning: {short(path)}",
        f"Mean validation accuracy after the last epoch{rest}. Rings with names: the values chosen "
        "for the final runs. The worse half of what an arm tried may lie below the frame. Crosses: "
        "a run diverged.",
        {"": chart},
        datasets,
        floors,
    )


def _floors(tried: Rows) -> dict[str, float]:
    """Arm -> the least accuracy of the better half of what it tried.

    Beside what is far from the best, as after a rate that is too high, the rest would be flat.
    """
    by_arm: dict[str, list[float]] = {}
    for row in tried:
        by_arm.setdefault(row["arm"], []).append(row["accuracy"])
    return {arm: sorted(reached)[len(reached) // 2] for arm, reached in by_arm.items()}


def _chosen(view: View, tried: Rows, low: float) -> Rows:
    """The names beside the values chosen, those at one value below each other."""
    by_value: dict[Any, dict[str, tuple[dict[str, Any], float]]] = {}
    for row in tried:
        if row["chosen"]:
            fields = {"tried": row["tried"], "accuracy": row["accuracy"]}
            by_value.setdefault(row["tried"], {})[row["arm"]] = fields, row["accuracy"]
    if sum(map(len, by_value.values())) > MOST_LABELS:
        return []
    high = max((row["accuracy"] for row in tried), default=low)
    return [row for arms in by_value.values() for row in labels(view, arms, low, high)]


def budget(view: View) -> Figure | None:
    """Expected best validation accuracy against the number of trials."""
    rows = [
        {"arm": arm.name, "trials": int(n), "accuracy": rounded(100 * float(accuracy))}
        for arm in view.arms
        if arm.budget is not None
        for n, accuracy in zip(arm.budget.trials, arm.budget.validation, strict=True)
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
    y = alt.Y("accuracy:Q", title="best validation accuracy, %", scale=ACCURACY)
    last = {row["arm"]: row for row in rows}
    ends = {
        arm: ({"trials": row["trials"], "accuracy": row["accuracy"]}, row["accuracy"])
        for arm, row in last.items()
    }
    every = [row["accuracy"] for row in rows]
    datasets = {"budget": rows, "budget-ends": labels(view, ends, min(every), max(every))}
    return Figure(
        "budget",
        "What more tuning brings",
        "Expected validation accuracy of the best of n trials (unbiased estimate of Tang et al. "
        "2020); a diverged trial counts as 0. An arm that still rises at the right would gain from "
        "more trials.",
        {
            "": together(
                datasets,
                lines(view, "budget", with_dots=True).encode(x, y),
                layer(view, "budget")
                .mark_point(size=45, filled=True, opacity=1)
                .encode(x, y, shape(view), tooltip=["arm:N", "trials:Q", "accuracy:Q"]),
                named(view, "budget-ends").encode(x, y),
            )
        },
        datasets,
    )
