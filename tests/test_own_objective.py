"""A regression of one's own from Python, end to end: loss and metric in 15 lines."""

import html
import json
import re

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import normlab
from normlab.data.sources import LOADERS
from normlab.objectives import OBJECTIVES
from normlab.report import read_study
from normlab.report.charts import figures
from normlab.report.view import views


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    before = dict(OBJECTIVES)

    @normlab.register_objective("pinball")
    class Pinball(normlab.Objective):
        share: float = 0.9
        targets = "values"
        metrics = {"pinball": normlab.Metric(higher_is_better=False, unit="m")}  # noqa: RUF012

        def loss(self, output, target):
            error = target - output
            return jnp.maximum(self.share * error, (self.share - 1) * error).mean(-1)

        def measure(self, output, target):
            return {"pinball": self.loss(output, target)}

    @normlab.register_data("waves")
    def waves():
        x = np.linspace(0, 7, 200, dtype=np.float32)[:, None]
        return x[::2], np.sin(x[::2, 0]) + 3, x[1::2], np.sin(x[1::2, 0]) + 3

    yield normlab.compare(
        {
            "study": "waves",
            "data": {"name": "waves", "batch_size": 20},
            "objective": {"name": "pinball"},
            "model": {"name": "mlp", "hidden": [8]},
            "train": {"steps": 10, "evaluate_every": 3},
            "variants": {"none": {"layer": "identity"}, "layer": {"layer": "layer_norm"}},
            "tune": {"optimizer.learning_rate": [0.01, 0.1]},
            "seeds": 3,
        },
        out=tmp_path_factory.mktemp("waves") / "out",
    )
    OBJECTIVES.clear()
    OBJECTIVES.update(before)
    LOADERS.pop("waves")


def text_of(page):
    """What a reader sees of a page, its charts included."""
    body = page[page.index("<body") :]
    charts = " ".join(re.findall(r'"(?:title|text|words)": ?"([^"]*)"', body))
    seen = re.sub(r"<script.*?</script>|<style.*?</style>", " ", body, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", seen)).split()) + charts


def test_runs_are_ranked_by_the_metric_of_which_the_lower_is_better(results):
    summary = results.summary
    means = {arm.name: np.mean([*arm.measured[""].values()]) for arm in summary.arms}
    assert summary.best == min(means, key=means.get)
    for arm in summary.arms:
        assert arm.mean.value == pytest.approx(means[arm.name])
        first, second = arm.trials
        assert first.reached.value <= second.reached.value
        assert arm.values == first.values
    finals = results.runs.filter(pl.col("phase") == "final")
    assert finals["test_pinball"].mean() == pytest.approx(np.mean([*means.values()]))
    assert "test_accuracy" not in finals.columns


def test_curves_are_by_step(results):
    one = results.curves.filter(pl.col("id") == results.curves["id"][0])
    assert one["step"].to_list() == [3, 6, 9, 10]
    assert one["epoch"].to_list() == [0.75, 1.5, 2.25, 2.5]
    assert results.report.is_file()
    assert (results.folder / "charts" / "validation-pinball-by-epoch.svg").is_file()


def test_charts_are_by_step_and_have_the_lowest_on_top(results):
    (view,) = views([read_study(results.folder)])
    made = {it.name: it for it in figures(view)}
    means = made["test-pinball"].datasets["test-means"]
    ranked = sorted(means, key=lambda row: row["rank"])
    assert ranked[0]["value"] == pytest.approx(min(row["value"] for row in means))
    assert [*made["validation-pinball"].charts] == ["step", "epoch", "seconds"]
    assert not made["validation-pinball"].floors
    told = [row["words"] for row in made["differences"].datasets["difference-means"]]
    assert not any("%" in it for it in told)


def test_the_page_has_no_word_of_accuracy_and_no_percent_but_of_confidence_and_chances(results):
    text = text_of(results.report.read_text())
    assert "test pinball, m" in text
    assert "difference, m" in text
    assert "lowest validation pinball" in text
    assert "accurac" not in text.lower()
    assert "percent" not in text.lower()
    assert "margin of" not in text
    # Confidence of intervals, chances, and shares of runs are in percent.
    for found in re.findall(r".{30}%.{20}", text):
        assert re.search(r"95% interval|\d%( \[|,|\])|target, %|\d% (lie|intervals)", found), found
    told = json.dumps(json.loads((results.folder / "summary.json").read_text())["conclusion"])
    assert "accurac" not in told
    assert " m " in told


def test_the_table_in_the_terminal_and_the_notebook_speak_of_the_metric(results):
    for shown in (repr(results), results._repr_html_()):
        assert "pinball, m" in shown
        assert "accurac" not in shown.lower()
