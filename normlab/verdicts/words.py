"""Verdicts in words: the section of an experiment's README, and the table of all of them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError
from .judge import MOST_SEEDS, Judged, Verdict
from .record import Record
from .rule import Rule, kind

BEGIN, END = "<!-- results -->", "<!-- /results -->"
GUIDE = "<!-- guide -->", "<!-- /guide -->"


def number(value: float) -> str:
    """Three significant digits, as many as a verdict is read with."""
    if not math.isfinite(value):
        return "no number" if math.isnan(value) else f"{'-' * (value < 0)}\N{INFINITY}"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        decimals = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{decimals}f}"
    return f"{value:.2e}"


def measured_in_words(judged: Judged) -> str:
    """Mean and interval: "1.23 [0.80, 1.66]", of a ratio "1.23 times [1.10, 1.40]"."""
    times = " times" if judged.prediction.log else ""
    if judged.interval is None:
        return f"{number(judged.mean)}{times}, without an interval"
    low, high = map(number, judged.interval)
    return f"{number(judged.mean)}{times} [{low}, {high}]"


def asked_in_words(judged: Judged) -> str:
    """The threshold: "above 0.5", "within 1.2 times"."""
    prediction = judged.prediction
    times = " times" if prediction.log else ""
    for word in ("above", "below", "within"):
        threshold = getattr(prediction, word)
        if threshold is not None:
            return f"{word} {threshold:g}{times}"
    raise AssertionError("a prediction has one threshold")


def outcome_in_words(judged: Judged) -> str:
    """The outcome; where it is undecided with what would decide: "undecided, 40 would tell"."""
    if judged.outcome != "undecided" or judged.interval is None:
        return judged.outcome
    if judged.would_tell is None:
        return f"undecided, more than {MOST_SEEDS:,} would tell"
    return f"undecided, {judged.would_tell:,} would tell"


def brief(arm: str) -> str:
    """An arm's name with equal numbers counted: "hidden=[64, 64, 64]" -> "hidden=[3 x 64]"."""
    equal = re.compile(r"\[(\d+)((?:, \1){2,})\]")
    return equal.sub(lambda it: f"[{1 + it[2].count(',')} x {it[1]}]", arm)


def contrast_in_words(contrast: Mapping[str, float], *, log: bool) -> str:
    """The arms: "batch less none", of logarithms "batch over none"."""
    positive = [(arm, it) for arm, it in contrast.items() if it > 0]
    negative = [(arm, -it) for arm, it in contrast.items() if it < 0]

    def side(terms: Sequence[tuple[str, float]]) -> str:
        told = [f"`{brief(arm)}`" if it == 1 else f"{it:g} x `{brief(arm)}`" for arm, it in terms]
        return (" x " if log else " + ").join(told)

    if not negative:
        return side(positive)
    joined = " over " if log else " less "
    return f"{side(positive) or '0'}{joined}{side(negative)}"


def section(rule: Rule, record: Record, verdict: Verdict, command: str) -> str:
    """What stands between the marks of an experiment's README, in Markdown."""
    supported = sum(it.outcome == "supported" for it in verdict.predictions)
    count = len(verdict.predictions)
    confidence = 100 * (1 - rule.level / count)
    lines = [
        f"**Verdict: {verdict.word}.** {supported} of {count} "
        f"prediction{'s are' if count > 1 else ' is'} supported.",
        "",
        f"| prediction | measured [{confidence:.4g}% interval] | asked | could show | outcome |",
        "| --- | --- | --- | --- | --- |",
    ]
    for it in verdict.predictions:
        prediction = it.prediction
        of = contrast_in_words(prediction.contrast, log=prediction.log)
        measure = rule.measures[prediction.measure]
        unit = f", {measure.unit}" if measure.unit else ""
        could = "" if it.could_show is None else number(it.could_show)
        lines.append(
            f"| {_cell(prediction.says)} {_cell(kind(measure))}{unit}: {_cell(of)}, "
            f"{it.pairs} seeds | {measured_in_words(it)} | {asked_in_words(it)} | {could} | "
            f"{outcome_in_words(it)} |"
        )
    if any(it.could_show is not None for it in verdict.predictions):
        lines += [
            "",
            "*Could show*: the distance from the threshold that four of five such studies show, by "
            "the spread that the design reckoned with.",
        ]
    if any(it.outcome == "undecided" for it in verdict.predictions):
        lines += [
            "",
            "*Would tell*: the seeds with which four of five such studies decide, were mean and "
            "spread those that were measured.",
        ]
    lines += ["", "![What was measured, a dot a seed](results/figure.svg)", ""]
    runs = " and ".join(f"{it} {_PHASES[phase]}" for phase, it in record.runs.items() if it)
    lines.append(
        f"Made by `{command}`: {runs} runs, {number(record.seconds / 60)} minutes of training in "
        f"all, on {record.environment.get('device', 'an unknown device')}."
    )
    if record.tuned and any(record.tuned.values()):
        lines += ["", f"Tuned: {_tuned(record.tuned)}."]
    if record.edges:
        named = ", ".join(f"`{it}`" for it in record.edges)
        lines.append(f"At the edge of what was tried: {named}.")
    return "\n".join(lines)


_PHASES = {"tune": "tuning", "final": "reported"}


def _tuned(tuned: Mapping[str, Mapping[str, Any]]) -> str:
    """The tuned values of the arms, those that have the same together."""
    of: dict[str, list[str]] = {}
    for arm, values in tuned.items():
        told = ", ".join(f"{path.rpartition('.')[2]} {it}" for path, it in values.items())
        of.setdefault(told or "nothing", []).append(f"`{brief(arm)}`")
    return "; ".join(f"{told} ({', '.join(named)})" for told, named in of.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def replaced(text: str, section: str, where: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """Returns a text with what stands between its marks replaced.

    Raises:
        UserError: It has no marks.
    """
    begin, end = marks
    between = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if len(between.findall(text)) != 1:
        raise UserError(f"{where}: expected one {begin} with one {end} after it")
    return between.sub(lambda _: f"{begin}\n\n{section}\n\n{end}", text)


def total(records: Sequence[Record]) -> str:
    """What all experiments took, in a sentence."""
    runs = sum(sum(it.runs.values()) for it in records)
    minutes = sum(it.seconds for it in records) / 60
    return (
        f"{len(records)} experiments, {runs:,} runs, {minutes:.0f} minutes of training, "
        "compilation not counted."
    )


def table(rows: Sequence[tuple[str, Rule, Verdict | None]]) -> str:
    """The table of all verdicts, in Markdown: experiment, claim, verdict, what was measured."""
    lines = [
        "| experiment | claim | verdict | of its predictions |",
        "| --- | --- | --- | --- |",
    ]
    for name, rule, verdict in rows:
        word, told = "not run", ""
        if verdict is not None:
            word = f"**{verdict.word}**"
            outcomes = [it.outcome for it in verdict.predictions]
            counts = {it: outcomes.count(it) for it in dict.fromkeys(outcomes)}
            told = ", ".join(f"{count} {it}" for it, count in counts.items())
        lines.append(f"| [{name}]({name}/README.md) | {_cell(rule.claim)} | {word} | {told} |")
    return "\n".join(lines)
