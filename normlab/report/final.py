"""The charts of final results: by seed, against the baseline, by level of a factor, over tasks."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from ..compare.arm import in_words, short_names
from ..compare.summary import ArmSummary, Summary
from ..inference.estimates import Estimate
from ..inference.measure import digits_of
from .figure import (
    MEASURED,
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
    slug,
    together,
)
from .style import BASELINE_COLOR
from .verdicts import verdict
from .view import View
from .words import (
    by_rank,
    confidence,
    difference_with_interval,
    interval,
    signed,
    told_of,
    worst_in_words,
)

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


def on_test(view: View) -> Figure:
    """What was measured of each run on the test split, with lines from arm to arm by seed."""
    measure = view.summary.measure
    estimates = {it.name: it.mean for it in view.arms if it.mean}
    samples = {it.name: _of_finished(it) for it in view.arms}
    told = {}
    for name, it in estimates.items():
        words = told_of(measure, it.value)
        told[name] = f"{words(it.value)} {interval(it, words)}"
    datasets = _by_row_data(view, "test", estimates, samples, told_of(measure), told)
    over = "" if view.is_one_task else ", the mean over the tasks"
    below = (
        f"one seed each{over}; a thin line joins the runs of a seed, which share data order and "
        "initial weights"
    )
    return Figure(
        f"test-{slug(measure.words)}",
        f"Test {measure.words}",
        f"{_below_in_words(datasets, below)} Large dots and bars: mean and its interval."
        + _of_diverged(view),
        {"": _by_row(view, "test", datasets, estimates, measure.heading("test"))},
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
    measure = summary.measure
    _, digits = digits_of([0.0, *(it.value for it in estimates.values())], measure)
    digits = 2 if measure.share else digits - 2

    def words(difference: float) -> str:
        return signed(difference, digits, measure)

    datasets = _by_row_data(view, "difference", estimates, samples, words, told)
    datasets["zero"] = [{}]
    zero = alt.Chart(alt.NamedData("zero")).mark_rule(strokeDash=[4, 3]).encode(x=alt.datum(0))
    title = f"difference of {measure.heading('test')}"
    if measure.share:
        title = f"percentage points of test {measure.words}"
    behind = [zero]
    caption = (
        "Where a bar crosses 0 no difference is shown, which does not mean that there is none."
        + _of_diverged(view)
    )
    if summary.margin:
        datasets["margin"] = [
            {"low": -measure.factor * summary.margin, "high": measure.factor * summary.margin}
        ]
        behind.insert(
            0,
            alt.Chart(alt.NamedData("margin"))
            .mark_rect(opacity=0.12, color="#888888")
            .encode(alt.X("low:Q", title=title), alt.X2("high:Q")),
        )
        caption += (
            f" Shaded: within {measure.factor * summary.margin:g} {measure.noun}, too small to "
            "matter in this study."
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
    if any(arm.unmeasured for arm in view.arms):
        runs = f"Runs that diverged or have no finite test {view.summary.measure.words}"
    elif any(arm.diverged for arm in view.arms):
        runs = "Diverged runs"
    else:
        return ""
    return f" {runs}, and the means that they worsen, are left out here; the table has them."


def _of_finished(arm: ArmSummary) -> dict[int, float]:
    """Seed -> mean of an arm over the tasks, of seeds that are lost on none."""
    lost = {seed for _, seed in arm.lost}
    return {seed: it for seed, it in arm.by_seed.items() if seed not in lost}


def _by_row_data(
    view: View,
    prefix: str,
    estimates: Mapping[str, Estimate],
    samples: Mapping[str, Mapping[int, float]],
    words: Callable[[float], str],
    told: Mapping[str, str],
) -> dict[str, Rows]:
    """Rows for `_by_row`: samples by seed, means with intervals, and notes on what is lost.

    The mean of an arm with lost runs lies far off and is left to the table, so that the
    others keep their scale.
    """
    lost = {name: len(view.summary[name].lost) for name in estimates}
    baselines = view.summary.baselines
    if prefix == "difference":
        lost = {name: it + len(view.summary[baselines[name]].lost) for name, it in lost.items()}
    ranked = _by_levels(view, estimates)
    factor = view.summary.measure.factor
    place = {name: {"arm": name, "rank": number} for number, name in enumerate(ranked)}
    too_many = sum(len(samples[name]) for name in estimates) > MOST_DOTS
    return {
        f"{prefix}-spread": [
            place[name] | _quantiles([factor * it for it in samples[name].values()])
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
                "value": rounded(factor * value),
                "words": words(value),
            }
            for name in estimates
            for seed, value in samples[name].items()
            if math.isfinite(value)
        ],
        f"{prefix}-means": [
            place[name]
            | {
                "value": factor * it.value,
                "low": factor * min(it.interval or (it.value,)),
                "high": factor * max(it.interval or (it.value,)),
                "words": told[name],
                "runs": it.count,
            }
            for name, it in estimates.items()
            if not lost[name] and math.isfinite(it.value)
        ],
        f"{prefix}-notes": [
            place[name] | {"words": _lost(view, name, prefix)} for name in estimates if lost[name]
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
            key=lambda name: -view.summary.measure.score(estimates[name].value),
        )
    ]


def _lost(view: View, name: str, prefix: str) -> str:
    arm, words = view.summary[name], view.summary.measure.words
    if prefix == "difference" and not arm.lost:
        baseline = view.summary[view.summary.baselines[name]]
        if baseline.unmeasured:
            return f"runs of the baseline are without {words}"
        return "runs of the baseline diverged"
    told = [f"{len(arm.diverged)} of {arm.runs} diverged"] if arm.diverged else []
    told += [f"{len(arm.unmeasured)} of {arm.runs} without {words}"] if arm.unmeasured else []
    return ", ".join(told)


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
    measure = summary.measure
    # What is infinitely bad has no place on an axis.
    shown = [arm for arm in view.arms if arm.mean and math.isfinite(arm.mean.value)]
    ranked = sorted(shown, key=by_rank(summary))
    rows: list[dict[str, Any]] = []
    for place, arm in enumerate(ranked, start=1):
        assert arm.mean is not None
        low, high = arm.mean.interval or (arm.mean.value, arm.mean.value)
        rows.append(
            {
                "arm": arm.name,
                "rank": place,
                "value": rounded(measure.factor * arm.mean.value),
                "low": rounded(measure.factor * low),
                "high": rounded(measure.factor * high),
                "verdict": verdict(arm, summary) or "none",
            }
        )
    if not rows:
        return None
    x = alt.X(
        "rank:Q", title=f"rank by test {measure.words}", scale=alt.Scale(nice=False, zero=False)
    )
    color = alt.Color(
        "verdict:N",
        title=f"against {summary.baseline}",
        scale=alt.Scale(domain=list(VERDICT_COLORS), range=list(VERDICT_COLORS.values())),
    )
    each = alt.Chart(alt.NamedData("all-arms"))
    drawn = together(
        {"all-arms": rows},
        each.mark_rule(opacity=0.35).encode(
            x,
            alt.Y("low:Q", title=measure.heading("test"), scale=MEASURED),
            alt.Y2("high:Q"),
            color,
        ),
        each.mark_circle(size=16, opacity=1).encode(
            x,
            alt.Y("value:Q", title=measure.heading("test"), scale=MEASURED),
            color,
            tooltip=["rank:Q", "arm:N", "value:Q", "low:Q", "high:Q", "verdict:N"],
        ),
    )
    return Figure(
        "all-arms",
        f"All {len(rows)} arms by rank",
        f"Mean test {measure.words} of every arm with its {confidence(summary)} interval, in the "
        f"colour of its verdict against {summary.baseline}. Diverged runs count as "
        f"{worst_in_words(measure)}.",
        {"": drawn},
        {"all-arms": rows},
        wide=True,
    )


def by_level(view: View, path: str) -> Figure | None:
    """The mean against the levels of a factor, one line a variant and level of other factors."""
    levels = view.factors[path]
    measure = view.summary.measure
    words = told_of(measure)
    short = short_names(list(view.factors))
    numeric = are_numbers(levels)
    rows: list[dict[str, Any]] = []
    for arm in view.arms:
        if arm.mean and path in arm.levels and not arm.lost:
            others = {it: arm.levels[it] for it in view.factors if it != path and it in arm.levels}
            line = ", ".join(
                [arm.variant, *(f"{short[it]}={in_words(v)}" for it, v in others.items())]
            )
            mean = arm.mean
            rows.append(
                {
                    "arm": arm.name,
                    "line": line,
                    "color": view.looks[arm.name].color,
                    "level": arm.levels[path] if numeric else in_words(arm.levels[path]),
                    "order": levels.index(arm.levels[path]),
                    "value": rounded(measure.factor * mean.value),
                    "low": rounded(measure.factor * min(mean.interval or (mean.value,))),
                    "high": rounded(measure.factor * max(mean.interval or (mean.value,))),
                    "words": f"{words(mean.value)} {interval(mean, words)}",
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
    y = alt.Y("value:Q", title=measure.heading("test"), scale=MEASURED)
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
    low = alt.Y("low:Q", title=measure.heading("test"), scale=MEASURED)
    return Figure(
        "by-" + "".join(it if it.isalnum() else "-" for it in path),
        f"Test {measure.words} by {short[path]}",
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
                    tooltip=["arm:N", alt.Tooltip("words:N", title=f"test {measure.words}")],
                ),
                names.encode(x, y),
            )
        },
        datasets,
    )


def profiles(view: View) -> Figure | None:
    """Performance profiles: the share of the runs that are better than each value."""
    measure = view.summary.measure
    above = "above" if measure.higher_is_better else "below"
    rows: list[dict[str, Any]] = []
    for arm in view.arms:
        if arm.profile is not None:
            profile = arm.profile
            keep = _bends(profile.share, profile.low, profile.high)
            rows += [
                {
                    "arm": arm.name,
                    "value": rounded(measure.factor * measure.score(float(profile.thresholds[i]))),
                    "share": rounded(100 * float(profile.share[i])),
                    "low": rounded(100 * float(profile.low[i])),
                    "high": rounded(100 * float(profile.high[i])),
                }
                for i in keep
            ]
    if not rows:
        return None
    last = {row["arm"]: row for row in rows}
    order = by_rank(view.summary)
    # Of those that end together the better stand above.
    ends = {
        arm: ({"value": last[arm]["value"], "share": last[arm]["share"]}, last[arm]["share"])
        for arm in sorted(last, key=lambda arm: order(view.summary[arm]))
    }
    datasets = {"profile": rows, "profile-ends": labels(view, ends, 0.0, 100.0)}
    x = alt.X(
        "value:Q",
        title=measure.heading("test"),
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(grid=False),
    )
    share = f"runs {above} it, mean over the tasks, %"
    scale, axis = alt.Scale(domain=[0, 100]), alt.Axis(grid=True)
    y = alt.Y("share:Q", title=share, scale=scale, axis=axis)
    low = alt.Y("low:Q", title=share, scale=scale, axis=axis)
    return Figure(
        "performance-profile",
        "Performance profile",
        f"Share of the runs whose {measure.words} is {above} each value; a curve further to the "
        f"{'right' if measure.higher_is_better else 'left'} is better. Bands: "
        f"{confidence(view.summary)} at each point, by bootstrap within the tasks.",
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
        f"Each task ranks the arms by their mean {view.summary.measure.words}. "
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
