"""The charts of final results: by seed, against the baseline, by level of a factor, over tasks."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from ..compare.arm import in_words, short_names
from ..compare.summary import ArmSummary, Summary
from ..inference.estimates import Estimate
from .figure import (
    ACCURACY,
    Figure,
    Layers,
    Rows,
    are_numbers,
    band,
    labels,
    layer,
    lines,
    named,
    number_scale,
    rounded,
    shape,
    together,
)
from .style import BASELINE_COLOR
from .verdicts import verdict
from .view import View
from .words import confidence, difference_with_interval, interval, percent, points, rank

LABELS = 160  # pixels that the name of an arm may take
BELOW = 10  # pixels from the bar of an arm to its dots, which it would hide
MOST_DOTS = 1000  # that a reader can tell apart in one chart
VERDICT_COLORS = {
    "better": "#00694d",
    "equivalent": "#0072b2",
    "undecided": "#b58900",
    "worse": "#a33c00",
    "baseline": BASELINE_COLOR,
}


def accuracy_on_test(view: View) -> Figure:
    """Each run's accuracy on the test split, with lines from arm to arm by seed."""
    estimates = {it.name: it.accuracy for it in view.arms if it.accuracy}
    samples = {it.name: _of_finished(it) for it in view.arms}
    told = {name: f"{percent(it.value)} {interval(it, percent)}" for name, it in estimates.items()}
    datasets = _by_row_data(view, "accuracy", estimates, samples, percent, told)
    over = "" if view.is_one_task else ", the mean over the tasks"
    below = (
        f"one seed each{over}; a thin line joins the runs of a seed, which share data order and "
        "initial weights"
    )
    return Figure(
        "test-accuracy",
        "Test accuracy",
        f"{_below_in_words(datasets, below)} Large dots and bars: mean and its interval."
        + _of_diverged(view),
        {"": _by_row(view, "accuracy", datasets, estimates, "test accuracy, %")},
        datasets,
    )


def differences(view: View) -> Figure | None:
    """Each seed's difference to the baseline."""
    summary = view.summary
    estimates = {it.name: it.comparison.difference for it in view.arms if it.comparison}
    if not estimates:
        return None
    samples = {}
    for name in estimates:
        ours, theirs = _of_finished(summary[name]), _of_finished(summary[summary.baselines[name]])
        samples[name] = {seed: it - theirs[seed] for seed, it in ours.items() if seed in theirs}
    told = {it.name: difference_with_interval(it.comparison) for it in view.arms if it.comparison}
    datasets = _by_row_data(view, "difference", estimates, samples, points, told)
    datasets["zero"] = [{}]
    zero = alt.Chart(alt.NamedData("zero")).mark_rule(strokeDash=[4, 3]).encode(x=alt.datum(0))
    title = "percentage points of test accuracy"
    behind = [zero]
    caption = (
        "Where a bar crosses 0 no difference is shown, which does not mean that there is none."
        + _of_diverged(view)
    )
    if summary.margin:
        datasets["margin"] = [{"low": -100 * summary.margin, "high": 100 * summary.margin}]
        behind.insert(
            0,
            alt.Chart(alt.NamedData("margin"))
            .mark_rect(opacity=0.12, color="#888888")
            .encode(alt.X("low:Q", title=title), alt.X2("high:Q")),
        )
        caption += (
            f" Shaded: within {100 * summary.margin:g} points, too small to matter in this study."
        )
    levels = " at the same levels" if view.factors else ""
    return Figure(
        "differences",
        f"Difference to {summary.baseline}, the baseline{levels}",
        _below_in_words(datasets, "one seed each, against the same seed of the baseline")
        + f" Large dots and bars: mean and its interval. {caption}",
        {"": _by_row(view, "difference", datasets, estimates, title, *behind)},
        datasets,
    )


def _below_in_words(datasets: Mapping[str, Rows], dots: str) -> str:
    """What stands below the bars: dots, or of too many dots how they spread."""
    if any(name.endswith("-spread") and rows for name, rows in datasets.items()):
        return "Lines below the bars: half of the seeds lie on the thick, 9 of 10 on the thin one."
    return f"Small dots below the bars: {dots}."


def _of_diverged(view: View) -> str:
    if any(arm.diverged for arm in view.arms):
        return (
            " Diverged runs, and the means that they lower, are left out here; the table has them."
        )
    return ""


def _of_finished(arm: ArmSummary) -> dict[int, float]:
    """Seed -> accuracy of an arm, the mean over the tasks, of seeds that diverged on none."""
    diverged = {seed for _, seed in arm.diverged}
    return {seed: it for seed, it in arm.by_seed.items() if seed not in diverged}


def _by_row_data(
    view: View,
    prefix: str,
    estimates: Mapping[str, Estimate],
    samples: Mapping[str, Mapping[int, float]],
    words: Callable[[float], str],
    told: Mapping[str, str],
) -> dict[str, Rows]:
    """Rows for `_by_row`: samples by seed, means with intervals, and notes on divergence.

    The mean of an arm with diverged runs lies far off and is left to the table, so that the
    others keep their scale.
    """
    lost = {name: len(view.summary[name].diverged) for name in estimates}
    baselines = view.summary.baselines
    if prefix == "difference":
        lost = {name: it + len(view.summary[baselines[name]].diverged) for name, it in lost.items()}
    ranked = _by_levels(view, estimates)
    place = {name: {"arm": name, "rank": number} for number, name in enumerate(ranked)}
    too_many = sum(len(samples[name]) for name in estimates) > MOST_DOTS
    return {
        f"{prefix}-spread": [
            place[name] | _quantiles([100 * it for it in samples[name].values()])
            for name in estimates
            if too_many and samples[name]
        ],
        f"{prefix}-runs": []
        if too_many
        else [
            place[name]
            | {
                "levels": str(view.summary[name].levels),
                "seed": seed,
                "value": rounded(100 * value),
                "words": words(value),
            }
            for name in estimates
            for seed, value in samples[name].items()
        ],
        f"{prefix}-means": [
            place[name]
            | {
                "value": 100 * it.value,
                "low": 100 * min(it.interval or (it.value,)),
                "high": 100 * max(it.interval or (it.value,)),
                "words": told[name],
                "runs": it.count,
            }
            for name, it in estimates.items()
            if not lost[name]
        ],
        f"{prefix}-notes": [
            place[name] | {"words": _diverged(view, name, prefix)}
            for name in estimates
            if lost[name]
        ],
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    """Where the middle half of some values and 9 of 10 of them lie."""
    found = np.quantile(values, [0.05, 0.25, 0.75, 0.95]).tolist()
    names = ("lowest", "lower", "upper", "highest")
    return dict(zip(names, map(rounded, found), strict=True))


def _by_levels(view: View, estimates: Mapping[str, Estimate]) -> list[str]:
    """The arms at one combination of levels together, each time the best first."""
    return [
        name
        for contest in view.summary.contests
        for name in sorted(
            (arm for arm in contest.arms if arm in estimates),
            key=lambda name: -estimates[name].value,
        )
    ]


def _diverged(view: View, name: str, prefix: str) -> str:
    arm = view.summary[name]
    if prefix == "difference" and not arm.diverged:
        return "runs of the baseline diverged"
    return f"{len(arm.diverged)} of {arm.runs} diverged"


def _by_row(
    view: View,
    prefix: str,
    datasets: Mapping[str, Rows],
    estimates: Mapping[str, Estimate],
    title: str,
    *behind: alt.Chart,
) -> Layers:
    """One row an arm, best on top: its samples, joined by seed, their mean and interval."""
    ranked = _by_levels(view, estimates)
    # By a field of the rows: of a list Vega-Lite makes keys, which not every name can be.
    by_rank = alt.EncodingSortField("rank", op="min")
    row = alt.Y("arm:N", sort=by_rank, title=None, axis=alt.Axis(labelLimit=LABELS))
    axis = alt.X("value:Q", title=title, scale=alt.Scale(zero=False, padding=12))
    words = alt.Tooltip("words:N", title=title)
    runs, means, spread = f"{prefix}-runs", f"{prefix}-means", f"{prefix}-spread"
    of_spread = [
        alt.Tooltip("arm:N"),
        *(
            alt.Tooltip(f"{name}:Q", title=f"{share}% lie below", format=".2f")
            for name, share in (("lowest", 5), ("lower", 25), ("upper", 75), ("highest", 95))
        ),
    ]
    pairs = (
        alt.Chart(alt.NamedData(runs))
        .transform_filter("indexof(hidden, datum.arm) < 0")
        .mark_line(color="#888888", opacity=0.35, strokeWidth=1, yOffset=BELOW)
        .encode(axis, row, detail=["seed:N", "levels:N"], order="rank:Q")
    )
    return together(
        datasets,
        *behind,
        pairs,
        *(
            layer(view, spread)
            .mark_rule(strokeWidth=width, opacity=0.5, yOffset=BELOW, y2Offset=BELOW)
            .encode(alt.X(f"{low}:Q", title=title), row, alt.X2(f"{high}:Q"), tooltip=of_spread)
            for width, low, high in ((1, "lowest", "highest"), (5, "lower", "upper"))
        ),
        layer(view, runs)
        .mark_point(size=22, opacity=0.75, filled=True, yOffset=BELOW)
        .encode(axis, row, shape(view), tooltip=["arm:N", "seed:O", words]),
        layer(view, means)
        .mark_rule(strokeWidth=3, strokeCap="round")
        .encode(alt.X("low:Q", title=title), row, alt.X2("high:Q")),
        layer(view, means)
        .mark_point(size=130, opacity=1, filled=True)
        .encode(axis, row, shape(view), tooltip=["arm:N", words, "runs:Q"]),
        layer(view, f"{prefix}-notes")
        .mark_text(dy=-12, baseline="middle", **_beside_zero(prefix, datasets))
        .encode(row, text="words:N"),
        height=50 + 34 * len(ranked),
    )


def _beside_zero(prefix: str, datasets: Mapping[str, Rows]) -> dict[str, Any]:
    """At which edge a note stands above its row: at the one further from the line at 0."""
    shown = [it["value"] for it in datasets[f"{prefix}-runs"]]
    shown += [it[end] for it in datasets[f"{prefix}-means"] for end in ("low", "high")]
    shown += [it[end] for it in datasets[f"{prefix}-spread"] for end in ("lowest", "highest")]
    if prefix == "difference" and max(shown, default=0) > -min(shown, default=0):
        return {"align": "right", "x": "width", "dx": -4}
    return {"align": "left", "x": 0, "dx": 4}


def all_arms(view: View) -> Figure | None:
    """Every arm of a large study by its rank, with its interval and the colour of its verdict."""
    summary = view.summary
    ranked = sorted((arm for arm in view.arms if arm.accuracy), key=rank)
    rows: list[dict[str, Any]] = []
    for place, arm in enumerate(ranked, start=1):
        assert arm.accuracy is not None
        low, high = arm.accuracy.interval or (arm.accuracy.value, arm.accuracy.value)
        rows.append(
            {
                "arm": arm.name,
                "rank": place,
                "value": rounded(100 * arm.accuracy.value),
                "low": rounded(100 * low),
                "high": rounded(100 * high),
                "verdict": verdict(arm, summary) or "none",
            }
        )
    if not rows:
        return None
    x = alt.X("rank:Q", title="rank by test accuracy", scale=alt.Scale(nice=False, zero=False))
    color = alt.Color(
        "verdict:N",
        title=f"against {summary.baseline}",
        scale=alt.Scale(domain=list(VERDICT_COLORS), range=list(VERDICT_COLORS.values())),
    )
    each = alt.Chart(alt.NamedData("all-arms"))
    drawn = together(
        {"all-arms": rows},
        each.mark_rule(opacity=0.35).encode(
            x, alt.Y("low:Q", title="test accuracy, %", scale=ACCURACY), alt.Y2("high:Q"), color
        ),
        each.mark_circle(size=16, opacity=1).encode(
            x,
            alt.Y("value:Q", title="test accuracy, %", scale=ACCURACY),
            color,
            tooltip=["rank:Q", "arm:N", "value:Q", "low:Q", "high:Q", "verdict:N"],
        ),
    )
    return Figure(
        "all-arms",
        f"All {len(rows)} arms by rank",
        f"Mean test accuracy of every arm with its {confidence(summary)} interval, in the colour "
        f"of its verdict against {summary.baseline}. Diverged runs count as 0.",
        {"": drawn},
        {"all-arms": rows},
        wide=True,
    )


def by_level(view: View, path: str) -> Figure | None:
    """Accuracy against the levels of a factor, one line a variant and level of other factors."""
    levels = view.factors[path]
    short = short_names(list(view.factors))
    numeric = are_numbers(levels)
    rows: list[dict[str, Any]] = []
    for arm in view.arms:
        if arm.accuracy and path in arm.levels and not arm.diverged:
            others = {it: arm.levels[it] for it in view.factors if it != path and it in arm.levels}
            line = ", ".join(
                [arm.variant, *(f"{short[it]}={in_words(v)}" for it, v in others.items())]
            )
            mean = arm.accuracy
            rows.append(
                {
                    "arm": arm.name,
                    "line": line,
                    "color": view.looks[arm.name].color,
                    "level": arm.levels[path] if numeric else in_words(arm.levels[path]),
                    "order": levels.index(arm.levels[path]),
                    "value": rounded(100 * mean.value),
                    "low": rounded(100 * min(mean.interval or (mean.value,))),
                    "high": rounded(100 * max(mean.interval or (mean.value,))),
                    "words": f"{percent(mean.value)} {interval(mean, percent)}",
                }
            )
    if not rows:
        return None
    kind, scale, axis = "O", alt.Scale(), alt.Axis(labelAngle=0, grid=False)
    if numeric:
        kind, axis = "Q", alt.Axis(values=sorted(levels), format="~g", grid=False)
        scale = number_scale(levels)
    by_order = None if numeric else alt.EncodingSortField("order", op="min")
    x = alt.X(f"level:{kind}", title=path, scale=scale, axis=axis, sort=by_order)
    y = alt.Y("value:Q", title="test accuracy, %", scale=ACCURACY)
    every = [row[end] for row in rows for end in ("low", "high")]
    ends: list[Mapping[str, Any]] = []
    for order, level in enumerate(levels):
        there = {row["arm"]: row for row in rows if view.summary[row["arm"]].levels[path] == level}
        fields = ("level", "value", "line")
        of_level = {
            arm: ({"order": order} | {field: row[field] for field in fields}, row["value"])
            for arm, row in there.items()
        }
        texts = {arm: row["line"] for arm, row in there.items()}
        ends += labels(view, of_level, min(every), max(every), texts)
    datasets = {"levels": rows, "levels-ends": ends}
    # Of each line the name stands at the last of the levels that are shown.
    names = (
        named(view, "levels-ends")
        .transform_joinaggregate(last="max(order)", groupby=["line"])
        .transform_filter("datum.order == datum.last")
    )
    between = (
        alt.Chart(alt.NamedData("levels"))
        .transform_filter("indexof(hidden, datum.arm) < 0")
        .mark_line(strokeWidth=2)
        .encode(x, y, alt.Color("color:N", scale=None), detail="line:N")
    )
    low = alt.Y("low:Q", title="test accuracy, %", scale=ACCURACY)
    return Figure(
        "by-" + "".join(it if it.isalnum() else "-" for it in path),
        f"Test accuracy by {short[path]}",
        "Mean over seeds with its interval, each arm tuned by itself. Arms with diverged runs are "
        "left out.",
        {
            "": together(
                datasets,
                between,
                layer(view, "levels").mark_rule(strokeWidth=2).encode(x, low, alt.Y2("high:Q")),
                layer(view, "levels")
                .mark_point(size=90, filled=True, opacity=1)
                .encode(
                    x,
                    y,
                    shape(view),
                    tooltip=["arm:N", alt.Tooltip("words:N", title="test accuracy")],
                ),
                names.encode(x, y),
            )
        },
        datasets,
    )


def profiles(view: View) -> Figure | None:
    """Performance profiles: the share of the runs above each accuracy."""
    rows: list[dict[str, Any]] = []
    for arm in view.arms:
        if arm.profile is not None:
            profile = arm.profile
            keep = _bends(profile.share, profile.low, profile.high)
            rows += [
                {
                    "arm": arm.name,
                    "accuracy": rounded(100 * float(profile.thresholds[i])),
                    "share": rounded(100 * float(profile.share[i])),
                    "low": rounded(100 * float(profile.low[i])),
                    "high": rounded(100 * float(profile.high[i])),
                }
                for i in keep
            ]
    if not rows:
        return None
    last = {row["arm"]: row for row in rows}
    # Of those that end together the better stand above.
    ends = {
        arm: ({"accuracy": last[arm]["accuracy"], "share": last[arm]["share"]}, last[arm]["share"])
        for arm in sorted(last, key=lambda arm: rank(view.summary[arm]))
    }
    datasets = {"profile": rows, "profile-ends": labels(view, ends, 0.0, 100.0)}
    x = alt.X(
        "accuracy:Q",
        title="test accuracy, %",
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(grid=False),
    )
    share = "runs above it, mean over the tasks, %"
    scale, axis = alt.Scale(domain=[0, 100]), alt.Axis(grid=True)
    y = alt.Y("share:Q", title=share, scale=scale, axis=axis)
    low = alt.Y("low:Q", title=share, scale=scale, axis=axis)
    return Figure(
        "performance-profile",
        "Performance profile",
        "Share of the runs whose accuracy is above each value; a curve further to the right is "
        f"better. Bands: {confidence(view.summary)} at each point, by bootstrap within the tasks.",
        {
            "": together(
                datasets,
                band(view, "profile").encode(x, low, alt.Y2("high:Q")),
                lines(view, "profile").encode(x, y),
                named(view, "profile-ends").encode(x, y),
            )
        },
        datasets,
    )


def _bends(*curves: np.ndarray) -> list[int]:
    """Where some curve begins, ends, or is about to change or has just changed."""
    table = np.stack(curves)
    moves = np.any(np.diff(table, axis=1) != 0, axis=0)
    keep = np.ones(table.shape[1], dtype=bool)
    keep[1:-1] = moves[:-1] | moves[1:]
    return np.flatnonzero(keep).tolist()


def ranks(view: View) -> Figure | None:
    """Mean ranks over the tasks, with bars that join what cannot be told apart."""
    ranking = view.summary.ranking
    if ranking is None:
        return None
    order = list(ranking.ranks)
    bars = [
        {"arm": names[0], "last": names[-1], "bar": bar}
        for bar, names in enumerate(_not_told_apart(view.summary, order))
    ]
    datasets: dict[str, Rows] = {
        "ranks": [{"arm": name, "rank": rounded(it)} for name, it in ranking.ranks.items()],
        "bars": bars,
    }
    # The domain is given, since that of rules from one arm to another loses its order.
    row = alt.Y(
        "arm:N",
        sort=None,
        title=None,
        scale=alt.Scale(domain=order),
        axis=alt.Axis(labelLimit=LABELS),
    )
    x = alt.X(
        "rank:Q",
        title="mean rank over the tasks, 1 is best",
        scale=alt.Scale(domain=[1, len(order)], nice=False, padding=14),
        axis=alt.Axis(tickMinStep=1),
    )
    joined = (
        alt.Chart(alt.NamedData("bars"))
        .mark_rule(strokeWidth=4, opacity=0.55, strokeCap="round")
        .encode(row, alt.Y2("last:N"), x=alt.XValue(alt.ExprRef("width - 4")))
    )
    told = "Bars at the right join arms none of whose differences over the tasks is shown. "
    return Figure(
        "ranks",
        "Ranks over the tasks",
        "Each task ranks the arms by their mean accuracy. "
        + (told if bars else "")
        + "Ranks only describe; the verdicts are those of the table.",
        {
            "": together(
                datasets,
                joined,
                layer(view, "ranks")
                .mark_point(size=130, filled=True, opacity=1)
                .encode(x, row, shape(view), tooltip=["arm:N", "rank:Q"]),
                height=50 + 30 * len(order),
            )
        },
        datasets,
    )


def _not_told_apart(summary: Summary, order: Sequence[str]) -> list[Sequence[str]]:
    """The largest sets of neighbours of an order no pair of which is shown to differ."""
    pairs = summary.pairs.compare(itertools.combinations(order, 2))
    alike = {pair for pair, it in pairs.items() if it.verdict not in ("better", "worse")}
    groups: list[Sequence[str]] = []
    end = 0
    for start in range(len(order)):
        stop = start + 1
        while stop < len(order) and all((it, order[stop]) in alike for it in order[start:stop]):
            stop += 1
        if stop - start > 1 and stop > end:
            groups.append(order[start:stop])
        end = max(end, stop)
    return groups
