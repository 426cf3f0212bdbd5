"""Experiments from study to verdict, and those of this repository."""

import hashlib
import json
import math
import shutil
import statistics
from pathlib import Path

import pytest
from command import normlab

from normlab.compare.arm import title
from normlab.config import load_study
from normlab.experiments import Experiment, guide, read_experiments
from normlab.inference.power import difference_for_power
from normlab.results import read_results
from normlab.verdicts.words import END, replaced, section, table, total

ROOT = Path(__file__).parents[2]
EXPERIMENTS = read_experiments(ROOT / "experiments")

STUDY = """
study: tiny
data: {name: digits, batch_size: 32, train_examples: 300}
model: {name: mlp, hidden: [16, 12]}
train: {epochs: 2}
variants:
  none: {layer: identity}
  batch: {layer: batch_norm, momentum: 0.9}
factors: {train.initialization_scale: [0.3, 1.0]}
tune: {optimizer.learning_rate: [0.1, 0.3]}
seeds: 3
probes: {activations: {every: 4}}
"""
RULE = """
claim: Batch norm does not mind the scale of the initial weights.
source: nobody
smoke: {train.epochs: 1, seeds: 2, tune: null}
measures:
  accuracy: {read: test, times: 100, unit: "%"}
  loss: {read: validation, metric: loss}
  gap: {read: gap}
  steps: {read: steps_to, target: 0.3}
  seconds: {read: seconds_to, target: 0.3}
  spread: {read: test, over: train.initialization_scale, by: range}
  most: {read: test, over: train.initialization_scale, by: largest, at_least: 0.3}
  first: {read: probe, probe: activations, quantity: deviation, of: first, at: first}
  last: {read: probe, probe: activations, quantity: deviation, of: last, at: last}
  mean: {read: probe, probe: activations, quantity: deviation, of: mean, at: mean}
  spread_of_ranks: {read: probe, probe: activations, quantity: effective_rank, of: spread}
  named: {read: probe, probe: activations, quantity: deviation, of: norm_1, at: first}
  drift: {read: probe, probe: activations, quantity: percentile_50, of: norm_0, at: deviation}
  own: {read: own, name: half, times: 2}
curves: {probe: activations, quantities: [percentile_15, percentile_85], title: of the last layer}
predictions:
  - says: The range is smaller.
    measure: spread
    contrast: {batch: 1, none: -1}
    below: 0
    pilot: 0.1
  - says: It takes fewer steps.
    measure: steps
    contrast: {"none, initialization_scale=1.0": 1, "batch, initialization_scale=1.0": -1}
    above: 1
    log: true
  - {says: Half is one., measure: own, contrast: {"batch, initialization_scale=1.0": 1}, above: 0}
"""
GUIDE = """
lines:
  - {says: Halves are halves., experiment: tiny, prediction: 3, outcome: supported}
  - says: Batches of two are small.
    when: {layers: [batch_norm], models: [mlp], batch_at_most: 2}
    experiment: tiny
    prediction: 3
    outcome: supported
"""
MEASURE = """
def measure(folder):
    return {"half": {"batch, initialization_scale=1.0": {0: 0.5, 1: 0.6, 2: 0.4}}}
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    root = tmp_path_factory.mktemp("clone")
    folder = root / "experiments" / "tiny"
    folder.mkdir(parents=True)
    (root / "configs").mkdir()
    (root / "configs" / "tiny.yaml").write_text(STUDY)
    (folder / "rule.yaml").write_text(RULE)
    (folder / "measure.py").write_text(MEASURE)
    (folder / "README.md").write_text("# Tiny\n\n<!-- results -->\n<!-- /results -->\n\nmore\n")
    marks = "<!-- results -->\n<!-- /results -->\n<!-- guide -->\n<!-- /guide -->\n"
    (root / "experiments" / "README.md").write_text(marks)
    (root / "experiments" / "guide.yaml").write_text(GUIDE)
    return root


@pytest.fixture(scope="module")
def made(clone):
    return normlab("experiments", "tiny", folder=clone)


def test_an_experiment_is_run_judged_and_written_down(clone, made):
    folder = clone / "experiments" / "tiny"
    (tiny,) = read_experiments(clone / "experiments")
    assert tiny.verdict.word in made.stdout
    text = (folder / "README.md").read_text()
    assert text.startswith("# Tiny\n")
    assert text.endswith(f"{END}\n\nmore\n")
    assert f"**Verdict: {tiny.verdict.word}.**" in text
    assert "(results/figure.svg)" in text
    assert (folder / "results" / "figure.svg").read_text().startswith("<svg")
    assert f"**{tiny.verdict.word}**" in (clone / "experiments" / "README.md").read_text()


def test_what_is_measured_is_what_the_runs_have(clone, made):
    (tiny,) = read_experiments(clone / "experiments")
    scores = tiny.record.measured
    runs = read_results(clone / "runs" / "experiments" / "tiny").runs
    final = {(it["arm"], it["seed"]): it for it in runs.to_dicts() if it["phase"] == "final"}
    assert len(final) == 12
    for (arm, seed), run in final.items():
        assert scores["accuracy"][arm][seed] == pytest.approx(100 * run["test_accuracy"], rel=1e-5)
        assert scores["loss"][arm][seed] == pytest.approx(run["validation_loss"], rel=1e-5)
        gap = run["train_accuracy"] - run["test_accuracy"]
        assert scores["gap"][arm][seed] == pytest.approx(gap, rel=1e-4, abs=1e-6)
        assert scores["seconds"][arm][seed] == pytest.approx(
            run["seconds"] * scores["steps"][arm][seed] / run["steps"], rel=1e-4
        )
    for variant in ("none", "batch"):
        for seed in range(3):
            levels = {
                at: final[f"{variant}, initialization_scale={at}", seed]["test_accuracy"]
                for at in (0.3, 1.0)
            }
            span = max(levels.values()) - min(levels.values())
            assert scores["spread"][variant][seed] == pytest.approx(span, rel=1e-4, abs=1e-6)
            enough = [at for at, it in levels.items() if it >= 0.3]
            assert scores["most"][variant][seed] == max(enough, default=0.3)
    assert scores["own"] == {"batch, initialization_scale=1.0": {0: 1.0, 1: 1.2, 2: 0.8}}
    assert tiny.verdict.predictions[2].mean == pytest.approx(statistics.fmean([1.0, 1.2, 0.8]))


def test_measures_by_probes_are_what_the_probes_found(clone, made):
    (tiny,) = read_experiments(clone / "experiments")
    scores = tiny.record.measured
    found = read_results(clone / "runs" / "experiments" / "tiny").probes
    for (arm, seed), of_run in found.partition_by("arm", "seed", as_dict=True).items():
        told = {
            (it["quantity"], it["step"], it["of"]): it["value"]
            for it in of_run.iter_rows(named=True)
        }
        steps = sorted({step for _, step, _ in told})
        layers = ("norm_0", "norm_1")
        ranks = [told["effective_rank", steps[-1], layer] for layer in layers]
        expected = {
            "first": told["deviation", 0, "norm_0"],
            "last": told["deviation", steps[-1], "norm_1"],
            "named": told["deviation", 0, "norm_1"],
            "mean": statistics.fmean(
                told["deviation", step, layer] for step in steps for layer in layers
            ),
            "spread_of_ranks": math.log10(max(ranks) / min(ranks)),
            "drift": statistics.pstdev(told["percentile_50", step, "norm_0"] for step in steps),
        }
        for name, value in expected.items():
            assert scores[name][arm][seed] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_curves_are_means_of_what_the_probes_found_and_are_drawn(clone, made):
    (tiny,) = read_experiments(clone / "experiments")
    found = read_results(clone / "runs" / "experiments" / "tiny").probes
    assert tiny.record.drawn.keys() == {"percentile_15", "percentile_85"}
    for quantity, by_arm in tiny.record.drawn.items():
        assert len(by_arm) == 4
        for arm, points in by_arm.items():
            of_arm = found.filter(arm=arm, quantity=quantity, of="norm_1")
            expected = {
                step: statistics.fmean(of_step["value"])
                for (step,), of_step in of_arm.partition_by("step", as_dict=True).items()
            }
            assert points == pytest.approx(expected, rel=1e-3, abs=1e-6)
            assert min(points) == 0
            assert len(points) > 2
    figure = (tiny.folder / "results" / "figure.svg").read_text()
    assert "of the last layer" in figure
    assert "percentile 85" in figure


def test_a_pilot_tells_the_spread_alone_and_the_experiment_goes_on_from_it(clone, tmp_path):
    shutil.copytree(clone, tmp_path / "clone", ignore=shutil.ignore_patterns("runs", "results"))
    clone = tmp_path / "clone"
    shown = normlab("experiments", "tiny", "--pilot", "2", folder=clone).stdout
    assert not (clone / "experiments" / "tiny" / "results").exists()
    runs = read_results(clone / "runs" / "experiments" / "tiny").runs.filter(phase="final")
    assert sorted(runs["seed"].unique()) == [0, 1]
    accuracy = {(it["arm"], it["seed"]): it["test_accuracy"] for it in runs.to_dicts()}
    spans = {
        (variant, seed): abs(
            accuracy[f"{variant}, initialization_scale=0.3", seed]
            - accuracy[f"{variant}, initialization_scale=1.0", seed]
        )
        for variant in ("none", "batch")
        for seed in (0, 1)
    }
    spread = statistics.stdev(spans["batch", it] - spans["none", it] for it in (0, 1))
    (told,) = [line for line in shown.splitlines() if "The range is smaller." in line]
    could_show = difference_for_power(3, spread, 0.05 / 3)
    assert told.split()[4:] == [f"{spread:.3g}", f"{could_show:.3g}"]
    for word in ("supported", "refuted", "undecided"):
        assert word not in shown
    whole = normlab("experiments", "tiny", folder=clone).stdout
    assert "4 made just now" in " ".join(whole.split())
    refused = normlab("experiments", "tiny", "--pilot", "2", folder=clone, code=2)
    assert "after which a pilot plans nothing" in " ".join(refused.stderr.split())


@pytest.mark.parametrize("arguments", [(), ("tiny", "--smoke"), ("tiny", "--rewrite")])
def test_a_pilot_of_nothing_is_refused(clone, arguments):
    done = normlab("experiments", *arguments, "--pilot", "2", folder=clone, code=2)
    assert "expected 2 seeds or more" in " ".join(done.stderr.split())


def test_a_finished_experiment_is_judged_again_to_the_same_files(clone, made):
    folder = clone / "experiments"
    before = {it: it.read_bytes() for it in folder.rglob("*") if it.is_file()}
    done = normlab("experiments", "tiny", folder=clone)
    assert "0 made just now" in done.stdout
    assert {it: it.read_bytes() for it in folder.rglob("*") if it.is_file()} == before


def test_smoke_goes_through_all_of_it_and_keeps_nothing(clone, made):
    before = {it: it.read_bytes() for it in clone.rglob("*") if it.is_file()}
    done = normlab("experiments", "--smoke", folder=clone)
    assert "at smoke size" in done.stdout
    assert {it: it.read_bytes() for it in clone.rglob("*") if it.is_file()} == before


def test_the_guide_has_lines_with_the_results_behind_them(clone, made):
    text = (clone / "experiments" / "README.md").read_text()
    line = (
        "- Halves are halves. ([tiny](tiny/README.md): 1.00 [0.117, 1.88]; supported: Half is one.)"
    )
    assert line in text


@pytest.mark.parametrize(
    ("override", "told"),
    [((), False), (("data.batch_size=2",), True), (("factors={data.batch_size: [2, 8]}",), True)],
)
def test_advice_is_what_the_guide_says_of_some_arm_of_a_study(clone, made, override, told):
    printed = normlab("advise", "configs/tiny.yaml", *override, folder=clone).stdout
    assert "Halves are halves." in printed
    assert "tiny: 1.00 [0.117, 1.88]; supported: Half is one." in printed
    assert ("Batches of two are small." in printed) == told


def test_a_line_that_no_result_bears_out_is_refused(clone, made):
    path = clone / "experiments" / "guide.yaml"
    path.write_text(GUIDE.replace("supported", "refuted", 1))
    try:
        done = normlab("advise", "configs/tiny.yaml", folder=clone, code=2)
    finally:
        path.write_text(GUIDE)
    assert "whose prediction 3 is supported and not refuted; change the line" in " ".join(
        done.stderr.split()
    )


def test_a_rule_that_changed_after_the_run_is_a_defect_that_is_told(clone, made):
    rule = clone / "experiments" / "tiny" / "rule.yaml"
    rule.write_text(RULE.replace("below: 0", "below: 1"))
    try:
        done = normlab("experiments", folder=clone, code=2)
        again = normlab("experiments", "tiny", folder=clone, code=2)
    finally:
        rule.write_text(RULE)
    assert "a rule is not changed after the run" in done.stderr
    assert "a rule is not changed after the run" in again.stderr


def test_a_study_that_changed_after_the_run_is_refused_too(clone, made):
    """Regression: its runs were made anew, and the record with its verdict written over."""
    study, scores = clone / "configs" / "tiny.yaml", clone / "experiments/tiny/results/scores.json"
    before = scores.read_bytes()
    study.write_text(STUDY.replace("epochs: 2", "epochs: 1"))
    try:
        done = normlab("experiments", "tiny", folder=clone, code=2)
    finally:
        study.write_text(STUDY)
    assert "a design is not changed after the run" in " ".join(done.stderr.split())
    assert scores.read_bytes() == before


def test_mistakes_in_a_rule_are_told_all_at_once(clone, made):
    rule = clone / "experiments" / "tiny" / "rule.yaml"
    wrong = RULE.replace("read: gap", "read: gaps").replace("below: 0", "belov: 0")
    rule.write_text(wrong)
    try:
        done = normlab("experiments", "tiny", folder=clone, code=2)
    finally:
        rule.write_text(RULE)
    assert "'gaps'" in done.stderr
    assert "belov" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"), [(["tiiny"], "did you mean 'tiny'?"), (["--rewrit"], "--rewrite")]
)
def test_a_wrong_name_is_told(clone, arguments, told):
    done = normlab("experiments", *arguments, folder=clone, code=2)
    assert told in done.stderr + done.stdout


def test_what_would_be_missed_after_the_runs_is_told_before_them(clone, tmp_path):
    shutil.copytree(clone, tmp_path / "clone", ignore=shutil.ignore_patterns("runs", "results"))
    clone = tmp_path / "clone"
    folder = clone / "experiments" / "tiny"

    def told(*arguments):
        done = normlab("experiments", "tiny", *arguments, folder=clone, code=2)
        assert "repeating" not in done.stdout + done.stderr
        return " ".join(done.stderr.split())

    assert "expected at most 2" in told("--pilot", "3")
    (folder / "rule.yaml").write_text(RULE.replace("curves: {probe: act", "curves: {probe: deact"))
    assert "did you mean 'activations'?" in told()
    (folder / "rule.yaml").write_text(RULE)
    (folder / "README.md").unlink()
    assert "has no README.md" in told()


def test_outside_of_a_clone_the_command_says_what_is_missing(tmp_path):
    done = normlab("experiments", folder=tmp_path, code=2)
    assert "in a clone of normlab" in done.stderr


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda it: it.name)
def test_an_experiment_of_the_project_is_whole(experiment: Experiment):
    """Its rule can be read, its study be made, also at smoke size, and asks for 8 pairs or more."""
    study = load_study(experiment.config)
    smoke = [f"{path}={json.dumps(it)}" for path, it in experiment.rule.smoke.items()]
    load_study(experiment.config, smoke)
    assert study.study == experiment.name
    assert study.seeds >= 8
    readme = (experiment.folder / "README.md").read_text()
    assert replaced(readme, "", experiment.name)


@pytest.mark.parametrize(
    "experiment", [it for it in EXPERIMENTS if it.record_path.exists()], ids=lambda it: it.name
)
def test_a_verdict_of_the_project_is_computed_from_its_results(experiment: Experiment):
    """README, table and figure say what the rule makes of the committed numbers."""
    record, verdict = experiment.record, experiment.verdict
    assert record.rule == hashlib.sha256((experiment.folder / "rule.yaml").read_bytes()).hexdigest()
    assert record.study == load_study(experiment.config).hash
    assert not record.edges
    arms = {title(it.name, it.task) for it in load_study(experiment.config).arms()}
    assert record.tuned.keys() == arms
    tunes = load_study(experiment.config).tune is not None
    assert all(bool(values) == tunes for values in record.tuned.values())
    readme = (experiment.folder / "README.md").read_text()
    command = f"normlab experiments {experiment.name}"
    assert section(experiment.rule, record, verdict, command) in readme
    assert experiment.record_path.with_name("figure.svg").exists()


def test_the_table_of_the_project_has_all_verdicts():
    rows = [(it.name, it.rule, it.verdict) for it in EXPERIMENTS]
    text = (ROOT / "experiments" / "README.md").read_text()
    assert table(rows) in text
    assert total([it.record for it in EXPERIMENTS if it.record]) in text


def test_each_line_of_the_projects_guide_has_its_result_behind_it():
    text = (ROOT / "experiments" / "README.md").read_text()
    lines = guide(EXPERIMENTS, ROOT / "experiments")
    assert lines
    for line, why in lines:
        assert f"{line.says} ([{line.experiment}]({line.experiment}/README.md): {why})" in text
