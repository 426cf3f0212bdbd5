"""Experiments: claims about normalization, each with a study, a rule, results and a verdict."""

import hashlib
import json
import runpy
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from rich.console import Console

from .compare.arm import title
from .compare.fingerprint import of_config
from .compare.store import write_whole
from .comparison import run, write_outcome
from .config import ConfigError, load_study
from .config.errors import problems
from .config.read import Given, UnreadableError, text_of
from .errors import UserError, nearest
from .report import Study, read_study
from .report.page import svg
from .spec import Spec
from .verdicts import (
    Record,
    Rule,
    Verdict,
    curves,
    judge,
    measured,
    planned,
    read_record,
    write_record,
)
from .verdicts.figure import figure
from .verdicts.guide import Guide, Line, because
from .verdicts.measures import Own
from .verdicts.record import finite
from .verdicts.rule import Prediction, ProbeSpec
from .verdicts.words import BEGIN, END, GUIDE, replaced, section, table, total

ROOT = Path("experiments")
Read = TypeVar("Read", bound=Spec)


@dataclass(frozen=True)
class Experiment:
    """A claim and what is needed to judge it.

    Attributes:
        folder: Its folder, which has `rule.yaml`, `README.md`, `results` and, where a study alone
            cannot say what is asked, `measure.py`.
        config: Its study.
    """

    folder: Path
    config: Path

    @property
    def name(self) -> str:
        """Its name, which folder and study share."""
        return self.folder.name

    @cached_property
    def rule(self) -> Rule:
        """The rule.

        Raises:
            ConfigError: The file has mistakes; it lists all of them.
        """
        return read_rule(self.folder / "rule.yaml")

    @property
    def rule_hash(self) -> str:
        """SHA-256 of the file of the rule, which results carry."""
        return hashlib.sha256((self.folder / "rule.yaml").read_bytes()).hexdigest()

    @property
    def record_path(self) -> Path:
        """Where what was measured is kept."""
        return self.folder / "results" / "scores.json"

    @cached_property
    def record(self) -> Record | None:
        """What was measured; None before the first run.

        Raises:
            UserError: The file is damaged, or was made under another rule.
        """
        if not self.record_path.exists():
            return None
        record = read_record(self.record_path)
        if record.rule != self.rule_hash:
            raise UserError(
                f"{self.folder / 'rule.yaml'} is not the rule that {self.record_path} was made "
                "under: a rule is not changed after the run. Restore it, or write another "
                "experiment."
            )
        return record

    @cached_property
    def verdict(self) -> Verdict | None:
        """What the rule makes of what was measured; None before the first run."""
        return judge(self.rule, self.record.measured) if self.record is not None else None


def read_rule(path: Path) -> Rule:
    """Reads a rule and checks all of it.

    Raises:
        ConfigError: That lists everything that is wrong.
    """
    return _read(path, Rule)


def _read(path: Path, kind: type[Read]) -> Read:
    given = Given()
    try:
        raw = given.from_yaml(text_of(path))
    except UnreadableError as error:
        raise ConfigError(str(path), [str(error)]) from error
    found = dict(given.problems)
    try:
        read = kind.model_validate(raw)
    except ValidationError as error:
        found |= problems(error, kind.model_json_schema(), given.texts)
        read = None
    if read is None or found:
        raise ConfigError(str(path), [f"{at}: {it}" if at else it for at, it in found.items()])
    return read


def read_experiments(root: Path = ROOT) -> list[Experiment]:
    """Returns the experiments of a folder, those with a `rule.yaml`, by name.

    Raises:
        UserError: There is no such folder, or a rule has no study.
    """
    found = [
        Experiment(it.parent, root.parent / "configs" / f"{it.parent.name}.yaml")
        for it in sorted(root.glob("*/rule.yaml"))
    ]
    if not found:
        raise UserError(
            f"{root} has no folder with a rule.yaml; give this command in a clone of normlab"
        )
    for it in found:
        if not it.config.exists():
            raise UserError(f"{it.folder} has a rule and no study {it.config}")
    return found


def chosen(names: Sequence[str], there: Sequence[Experiment]) -> list[Experiment]:
    """Returns the experiments of some names; `all` means each.

    Raises:
        UserError: There is no experiment of a name.
    """
    by_name = {it.name: it for it in there}
    if list(names) == ["all"]:
        return list(there)
    for name in names:
        if name not in by_name:
            raise UserError(f"there is no experiment {name!r}{nearest(name, by_name)}")
    return [by_name[name] for name in dict.fromkeys(names)]


def make(experiment: Experiment, console: Console, out: Path) -> Verdict:
    """Runs an experiment, or goes on with it, judges it, and writes results, figure and README.

    Args:
        experiment: The experiment.
        console: Where progress is told.
        out: Folder of its study.

    Raises:
        UserError: The study cannot be run or does not have what the rule asks for.
    """
    read_rule(experiment.folder / "rule.yaml")  # Its mistakes come before that it was changed.
    former = experiment.record
    if former is not None and former.study != load_study(experiment.config).hash:
        raise UserError(
            f"{experiment.config} is not the study that {experiment.record_path} was made of: a "
            "design is not changed after the run. Restore it, or write another experiment."
        )
    record = _recorded(experiment, console, out, [])
    write_record(record, experiment.record_path)
    for cached in ("record", "verdict"):
        experiment.__dict__.pop(cached, None)
    write_words(experiment)
    verdict = experiment.verdict
    assert verdict is not None
    return verdict


def plan(
    experiment: Experiment, console: Console, out: Path, seeds: int
) -> list[tuple[Prediction, float, float | None]]:
    """Runs the first seeds of an experiment, and returns what they say of its design.

    That is the spread, and never the outcome, so that a rule can still be written. The runs are of
    the experiment itself, which goes on from them.

    Args:
        experiment: The experiment.
        console: Where progress is told.
        out: Folder of its study.
        seeds: How many.

    Returns:
        Each prediction, the deviation of its contrast over the seeds, and the smallest difference
        from its threshold that four of five studies of all seeds would show by it.

    Raises:
        UserError: The experiment has results, or those of `make`.
    """
    if experiment.record is not None:
        raise UserError(
            f"{experiment.name} has results, after which a pilot plans nothing: its spread is that "
            f"of {experiment.record_path}"
        )
    rule = experiment.rule
    whole = load_study(experiment.config)
    if seeds >= whole.seeds:
        raise UserError(
            f"{experiment.name} has {whole.seeds} seeds, so that a pilot of {seeds} would be all "
            f"of it; expected at most {whole.seeds - 1}"
        )
    there = _run(experiment, console, out, [f"seeds={seeds}"])
    found = planned(rule, measured(rule, there, _own(experiment, there)), whole.seeds)
    return [(it, *told) for it, told in zip(rule.predictions, found, strict=True)]


def try_out(experiment: Experiment, console: Console) -> Verdict:
    """Does what `make` does at smoke size, and keeps nothing of it."""
    changes = [f"{path}={json.dumps(value)}" for path, value in experiment.rule.smoke.items()]
    with tempfile.TemporaryDirectory() as folder:
        record = _recorded(experiment, console, Path(folder) / experiment.name, changes)
        again = Path(folder) / "scores.json"
        write_record(record, again)
        kept = read_record(again)
        verdict = judge(experiment.rule, kept.measured)
        svg(figure(experiment.rule, kept.measured, kept.drawn))
        _readme(experiment, record, verdict)
    return verdict


def write_words(experiment: Experiment) -> None:
    """Writes figure and README of an experiment anew from what was measured."""
    record = experiment.record
    if record is None or experiment.verdict is None:
        return
    drawn = svg(figure(experiment.rule, record.measured, record.drawn))
    write_whole(experiment.record_path.with_name("figure.svg"), drawn)
    text = _readme(experiment, record, experiment.verdict)
    write_whole(experiment.folder / "README.md", text)


def write_table(there: Sequence[Experiment], root: Path = ROOT) -> None:
    """Writes the table of all verdicts, and the guide, into the README of the experiments."""
    readme = root / "README.md"
    rows = [(it.name, it.rule, it.verdict) for it in there]
    took = total([it.record for it in there if it.record is not None])
    text = replaced(readme.read_text("utf-8"), f"{table(rows)}\n\n{took}", str(readme))
    lines = [
        f"- {line.says} ([{line.experiment}]({line.experiment}/README.md): {why})"
        for line, why in guide(there, root)
    ]
    write_whole(readme, replaced(text, "\n".join(lines), str(readme), GUIDE))


def guide(there: Sequence[Experiment], root: Path = ROOT) -> list[tuple[Line, str]]:
    """Returns the lines of `guide.yaml`, each with the result that is behind it.

    Raises:
        UserError: A line relies on what no result says.
    """
    by_name = {it.name: it for it in there}
    told = []
    for line in _read(root / "guide.yaml", Guide).lines:
        experiment = by_name.get(line.experiment)
        if experiment is None:
            raise UserError(
                f"{root / 'guide.yaml'}: there is no experiment {line.experiment!r}"
                f"{nearest(line.experiment, by_name)}"
            )
        judged = line.judged(experiment.verdict)
        unit = experiment.rule.measures[judged.prediction.measure].unit
        told.append((line, because(line, judged, unit)))
    return told


def advice(config: Path, overrides: Sequence[str], root: Path = ROOT) -> list[tuple[Line, str]]:
    """Returns the lines of the guide that are about some arm of a study.

    Raises:
        ConfigError: The study has mistakes.
        UserError: There are no experiments here.
    """
    study = load_study(config, overrides)
    arms = [(arm, study.for_arm(arm)) for arm in study.arms()]
    return [
        (line, why)
        for line, why in guide(read_experiments(root), root)
        if any(
            line.when.holds(own.variants[arm.variant].layer, own.model, own.data.batch_size)
            for arm, own in arms
        )
    ]


def _readme(experiment: Experiment, record: Record, verdict: Verdict) -> str:
    readme = experiment.folder / "README.md"
    told = section(experiment.rule, record, verdict, _command(experiment))
    return replaced(readme.read_text("utf-8"), told, str(readme))


def _recorded(
    experiment: Experiment, console: Console, out: Path, changes: Sequence[str]
) -> Record:
    rule, rule_hash = experiment.rule, experiment.rule_hash
    there = _run(experiment, console, out, changes)
    if not changes:
        there = write_outcome(out)
    return _record(there, rule, rule_hash, _command(experiment), _own(experiment, there))


def _refuse_what_cannot_be_told(experiment: Experiment, probes: Collection[str]) -> None:
    """Refuses before the runs what would be missed after them.

    Raises:
        UserError: The folder has no README, or the rule asks for a probe that the study has not.
    """
    if not (experiment.folder / "README.md").exists():
        raise UserError(
            f"{experiment.folder} has no README.md, which the verdict is written into; write it, "
            f"with {BEGIN} and {END} where that shall stand"
        )
    rule = experiment.rule
    asked = {name: it.probe for name, it in rule.measures.items() if isinstance(it, ProbeSpec)}
    if rule.curves is not None:
        asked["curves"] = rule.curves.probe
    for name, probe in asked.items():
        if probe not in probes:
            raise UserError(
                f"{experiment.name}: {name} reads the probe {probe!r}, which {experiment.config} "
                f"does not ask for{nearest(probe, probes)}"
            )


def _command(experiment: Experiment) -> str:
    return f"normlab experiments {experiment.name}"


def _run(experiment: Experiment, console: Console, out: Path, changes: Sequence[str]) -> Study:
    """Runs the study, or goes on with it, and returns it whole."""
    study = load_study(experiment.config, changes)
    _refuse_what_cannot_be_told(experiment, study.probes)
    ending = run(study, out, console, _command(experiment))
    if ending.failures or ending.done < ending.planned:
        raise UserError(
            f"{experiment.name}: {ending.done} of {ending.planned} runs are done, so that nothing "
            f"can be judged; `normlab status {out}` says more"
        )
    return read_study(out)


def _own(experiment: Experiment, study: Study) -> Own:
    """What the experiment's own program measures; nothing where it has none."""
    path = experiment.folder / "measure.py"
    if not path.exists():
        return {}
    program = runpy.run_path(str(path))
    if "measure" not in program:
        raise UserError(f"{path} has no function measure(folder)")
    return program["measure"](study.folder)


def _record(study: Study, rule: Rule, rule_hash: str, command: str, own: Own) -> Record:
    of_arms = {
        title(it.name, task): it
        for task, summary in (study.summary.tasks or {"": study.summary}).items()
        for it in summary.arms
    }
    return Record(
        rule=rule_hash,
        study=of_config(study.config),
        command=command,
        environment=study.environment,
        runs={phase: study.done(phase) for phase in ("tune", "final")},
        seconds=sum(it.seconds for it in study.results),
        tuned={arm: dict(it.values) for arm, it in of_arms.items()},
        edges=[arm for arm, it in of_arms.items() if it.at_edge],
        scores=finite(measured(rule, study, own)),
        curves=finite(curves(rule.curves, study)) if rule.curves is not None else {},
    )
