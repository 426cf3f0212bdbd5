"""The README says what is so: its snippets run, its studies are those of the repository."""

import json
import re
from pathlib import Path

import pytest
import yaml

from normlab.variants import VARIANTS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_snippets_run_one_after_the_other():
    names: dict = {}
    try:
        for block in blocks("python"):
            exec(compile(block, "README.md", "exec"), names)
    finally:
        VARIANTS.pop("centred", None)
    assert names["logits"].shape == (64, 10)
    assert set(names["batch_stats"]) == {"BatchNorm_0"}


def test_the_study_shown_is_the_quickstart():
    shown = yaml.safe_load(blocks("yaml")[0])
    assert shown == yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())


def test_the_commands_shown_install_this_project():
    compare, test = blocks("sh")
    assert "-c constraints.txt -e ." in compare
    assert re.search(r"normlab compare (\S+)", compare)[1] == "configs/quickstart.yaml"
    assert test.strip().endswith("-e '.[test]' && .venv/bin/pytest -n auto")


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
