"""The README says what is so: its snippets run, its studies are those of the repository."""

import inspect
import json
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import yaml

import normlab
from normlab.cli import train
from normlab.config import load_study
from normlab.data.sources import LOADERS
from normlab.models import MODELS, network_of
from normlab.objectives import OBJECTIVES
from normlab.variants import VARIANTS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


OWN, KINDS = [block for block in blocks("python") if "register_model" in block]


def test_python_snippets_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    try:
        for block in blocks("python"):
            if block not in (OWN, KINDS):
                exec(compile(block, "README.md", "exec"), names)
    finally:
        VARIANTS.pop("centred", None)
        OBJECTIVES.pop("pinball", None)
    assert names["logits"].shape == (64, 10)
    assert set(names["batch_stats"]) == {"BatchNorm_0"}


def test_a_users_own_model_and_data_run_alone_in_less_than_thirty_lines(tmp_path, monkeypatch):
    assert len([line for line in OWN.splitlines() if line.strip()]) < 30
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "pasted"}
    try:
        exec(compile(OWN, "README.md", "exec"), names)
    finally:
        MODELS.pop("tabular", None)
        LOADERS.pop("wine", None)
    # The default seeds of each arm, with two trials before.
    assert len(names["results"].runs) == 5 * (2 + 8)
    assert names["results"].runs["test_accuracy"].max() > 0.9
    assert (tmp_path / "runs/wine/report.html").is_file()


def test_the_other_kinds_of_models_shown_compute_logits():
    names: dict = {"__name__": "pasted", "normlab": normlab}
    before = dict(MODELS)
    try:
        exec(compile(KINDS, "README.md", "exec"), names)
        specs = [MODELS[name](name=name) for name in ("tabular_nnx", "tabular_pair")]
    finally:
        MODELS.clear()
        MODELS.update(before)
    inputs = jnp.ones((2, 1, 1, 13))
    for spec in specs:
        network = network_of(spec.build(normlab.BatchNorm, 3, "float32"))
        params, state = network.init(jax.random.key(0), inputs)
        logits, _ = network.train(params, state, inputs, jax.random.key(1))
        assert logits.shape == network.evaluate(params, state, inputs).shape == (2, 3)


def test_the_study_shown_is_the_quickstart():
    shown = yaml.safe_load(blocks("yaml")[0])
    assert shown == yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())


def test_what_else_a_study_can_say_is_understood_of_the_study_shown():
    (table,) = re.findall(r"name on the command\nline:\n\n((?:\|.*\n)+)", README)
    # What stands in one row belongs together.
    rows = [re.findall(r"`([^`]*=[^`]*)`", row.split(" | ")[0]) for row in table.splitlines()[2:]]
    told = [[word for it in row for word in shlex.split(it)] for row in rows]
    assert all(told)
    quickstart = ROOT / "configs/quickstart.yaml"
    hashes = {load_study(quickstart, overrides).hash for overrides in [[], *told]}
    assert len(hashes) == len(rows) + 1


def test_the_commands_shown_install_this_project():
    compare, test, *_ = blocks("sh")
    assert "-c constraints.txt -e ." in compare
    assert re.search(r"normlab compare (\S+)", compare)[1] == "configs/quickstart.yaml"
    assert test.strip().endswith("-e '.[test]' && .venv/bin/pytest -n auto")


def test_the_places_where_runs_are_made_are_understood_of_the_study_shown():
    commands = [shlex.split(line, comments=True) for line in blocks("sh")[2].splitlines()]
    assert [command[:3] for command in commands] == [["normlab", "compare", "study.yaml"]] * 3
    studies = [load_study(ROOT / "configs/quickstart.yaml", it[3:]) for it in commands]
    assert [it.executor.name for it in studies] == ["local", "processes", "ray"]


def test_the_processes_of_a_run_are_started_with_options_that_there_are():
    lines = [line for block in blocks("sh")[3:7] for line in block.splitlines()]
    commands = [shlex.split(line[line.index("normlab") :]) for line in lines]
    assert {(*command[:3], command[4]) for command in commands} == {
        ("normlab", "train", "study.yaml", "--coordinator")
    }
    options = {word for command in commands for word in command if word.startswith("--")}
    accepted = {f"--{name.replace('_', '-')}" for name in inspect.signature(train).parameters}
    assert options == {"--coordinator", "--num-processes", "--process-id"}
    assert options < accepted
    for command in commands:
        study = load_study(ROOT / "configs/quickstart.yaml", command[3:4], devices_are_here=False)
        assert study.mesh.data > 1


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", README))
def test_links_and_pictures_exist(target):
    assert (ROOT / target).is_file()


def rows_of_summary():
    """The README's table of the quickstart, from the committed numbers."""
    numbers = json.loads((ROOT / "experiments/quickstart/results/summary.json").read_text())
    arms = numbers["summary"]["arms"]

    def percent(estimate, sign=""):
        mean, low, high = (100 * it for it in (estimate["value"], *estimate["interval"]))
        return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"

    for it in sorted(arms, key=lambda it: -it["accuracy"]["value"]):
        (rate,) = it["values"].values()
        difference, verdict = "baseline", ""
        if it["comparison"]:
            difference = percent(it["comparison"]["difference"], "+")
            verdict = it["comparison"]["verdict"]
        yield f"| {it['name']} | {percent(it['accuracy'])} | {difference} | {verdict} | {rate} |"


def test_the_table_shown_is_what_the_quickstart_came_to():
    for row in rows_of_summary():
        assert row in README
