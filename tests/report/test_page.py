"""The page: whole, escaped, written without JAX and read without a network."""

import html
import html.parser
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from report.studies import (
    QUICKSTART,
    RATES,
    SOMETIMES_DIVERGED,
    TEN_BY_TWENTY,
    WITH_FACTOR,
    WITH_TASKS,
    draw_study,
)
from rich.console import Console

from normlab.compare.arm import arms
from normlab.compare.store import Store
from normlab.inference.estimates import Estimate, estimate
from normlab.inference.pairs import Pairs
from normlab.report import print_table, read_study, words, write_page, write_report
from normlab.report.charts import figures, overview
from normlab.report.style import BASELINE_COLOR, COLORS, looks
from normlab.report.verdicts import verdict_words
from normlab.report.view import titles, views

BATCH = QUICKSTART["batch"]
CASES = {
    "no runs": {"final": False, "tune": {}},
    "no final runs": {"final": False},
    "one seed and no tuning": {"seeds": 1, "tune": {}},
    "one variant": {"variants": {"batch": BATCH}},
    "some runs diverged": {"variants": SOMETIMES_DIVERGED},
    "all runs diverged": {"variants": {"batch": BATCH | {"diverges": range(8), "limit": 0.0}}},
    "all runs diverged in the first epoch": {
        "variants": {name: BATCH | {"diverges": range(8), "limit": 0.0} for name in "ab"},
        "epochs": 2,
    },
    "two tuned paths": {"tune": RATES | {"optimizer.weight_decay": [0.0, 0.0001]}},
    "a factor, no final runs": WITH_FACTOR | {"final": False},
    "two factors on two tasks": WITH_TASKS
    | {
        "variants": {name: QUICKSTART[name] for name in ("none", "batch")},
        "factors": {"data.batch_size": [16, 64], "model.activation": ["relu", "gelu"]},
        "seeds": 2,
    },
    "one task by name": {"tasks": {"digits": {}}},
}


class Parsed(html.parser.HTMLParser):
    """Collects all elements with their attributes, and the text outside of scripts."""

    def __init__(self, page):
        super().__init__()
        self.elements = []
        self.text = ""
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements[-1:] and self.elements[-1][0] not in ("script", "style"):
            self.text += data


@pytest.mark.parametrize("case", CASES)
def test_every_study_gets_a_page(tmp_path, case):
    page = write_report(draw_study(tmp_path, **{"epochs": 6, **CASES[case]}))
    assert page == tmp_path / "report.html"
    text = Parsed(page).text
    assert "How to read this" in text
    for wrong in ("nan", "None", "inf ", "Undefined"):
        assert wrong not in text.replace("None", "", text.count("None: ")), wrong


def test_a_study_gets_a_page_whose_finished_runs_have_no_finite_metric(tmp_path):
    """As R² of constant targets: charts without a single row ended it after all of its training."""
    variants = {name: QUICKSTART[name] for name in ("none", "batch")}
    draw_study(tmp_path, variants, tune={}, epochs=2, seeds=3)
    store = Store(tmp_path)
    metric = {"name": "loss", "higher_is_better": False, "unit": "nats"}
    store.write_config(store.config() | {"metric": metric, "margin_points": None})
    for result in store.results():
        store.write(result.model_copy(update={"test": {**result.test, "loss": None}}))
    text = " ".join(Parsed(write_report(tmp_path)).text.split())
    assert "Nothing to conclude: no final run has a finite test loss." in text
    assert "3 of 3 final runs of batch ended without a finite test loss (seeds 0, 1 and 2)" in text
    (view,) = views([read_study(tmp_path)])
    notes = figures(view)[0].datasets["test-notes"]
    assert {row["words"] for row in notes} == {"3 of 3 without loss"}


def test_the_page_says_who_won_by_how_much_and_whether_it_is_shown(quickstart):
    text = " ".join(Parsed(quickstart / "report.html").text.split())
    summary = read_study(quickstart).summary
    conclusion = words.conclude(summary)
    assert text.index(conclusion.headline) < 200
    assert "ghost16 came first with 98.19% test accuracy" in conclusion.headline
    assert conclusion.belief in text
    compared = summary["ghost16"].comparison
    assert f"{words.difference(compared)} points {words.interval_of(compared)}" in text
    assert "above none, the baseline ✓ shown" in text
    assert "above batch, the runner-up ? not shown" in text
    for remark in conclusion.remarks:
        assert remark in text


def test_the_page_says_how_to_get_it_again(quickstart):
    text = " ".join(Parsed(quickstart / "report.html").text.split())
    assert "normlab compare configs/quickstart.yaml" in text
    assert "optimizer.learning_rate: - 0.003" in text
    assert "flax 0.12.8" in text
    assert (
        "optimizer.learning_rate: 0.003, 0.01, 0.03, 0.1, 0.3; the same 5 points of 2 seeds for "
        "each arm"
    ) in text


def test_a_search_by_draws_is_told_as_its_range(tmp_path):
    draw_study(tmp_path, {name: QUICKSTART[name] for name in ("none", "batch")}, seeds=6)
    store = Store(tmp_path)
    drawn = {"optimizer.learning_rate": {"low": 0.001, "high": 0.3, "scale": "log"}}
    store.write_config(store.config() | {"tune": drawn | {"trials": 5, "seeds": 2}})
    text = " ".join(Parsed(write_report(tmp_path)).text.split())
    said = "optimizer.learning_rate: 0.001 to 0.3, log scale"
    assert f"the same 5 points ({said}) with 2 seeds each" in text
    # Rates of 0.1 and 0.03 lie inside the range, and no line joins draws.
    assert "lies at the edge" not in text
    (tuning,) = [it for it in figures(views([read_study(tmp_path)])[0]) if it.name[:6] == "tuning"]
    (spec,) = tuning.specifications().values()
    assert {it["mark"]["type"] for it in spec["layer"]} == {"point", "text"}


def test_the_table_says_what_the_summary_says(quickstart):
    text = " ".join(Parsed(quickstart / "report.html").text.split())
    for arm in read_study(quickstart).summary.arms:
        accuracy = f"{words.hundredfold(arm.mean.value)} "
        assert f"{arm.name} {accuracy}{words.interval(arm.mean, words.hundredfold)}" in text


def test_every_arm_has_one_look_of_its_own():
    names = [f"v{place}" for place in range(2 + len(COLORS))]
    of_many = looks(arms(names, {}, {}), "v0")
    assert list(of_many) == names
    assert len(set(of_many.values())) == len(names)
    assert len({it.color for it in list(of_many.values())[: 1 + len(COLORS)]}) == 1 + len(COLORS)
    # From the seventh variant on, colour is not the only thing that tells.
    assert {it.dash for it in list(of_many.values())[:7]} == {()}
    assert all(it.dash for it in list(of_many.values())[7:])


def test_levels_share_the_colour_of_their_variant_but_no_dash_and_no_shape():
    drawn = looks(arms("ab", {"data.batch_size": [1, 2, 3]}, {}), "a")
    assert len(set(drawn.values())) == 6
    of_a = [drawn[f"a, batch_size={level}"] for level in (1, 2, 3)]
    assert {it.color for it in of_a} == {BASELINE_COLOR}
    assert len({it.dash for it in of_a}) == len({it.shape for it in of_a}) == 3


def test_names_are_escaped_everywhere(hurtful):
    parsed = Parsed(hurtful / "report.html")
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == 2
    assert not {"img", "i"} & {*tags}
    assert not [name for _, it in parsed.elements for name in it if name.startswith("on")]
    for name in (
        "<script>alert(1)</script>",
        "<script>alert(2)</script>",
        "a'\"&{{ 7 * 7 }}${b}",
        '<img src=x onerror=alert(4)>="</script><b onclick=alert(5)>"',
        "<svg onload=alert(6)>",
        "optimizer.<i>\"'[0]",
    ):
        assert name in parsed.text


def test_nothing_is_loaded_from_elsewhere(quickstart):
    parsed = Parsed(quickstart / "report.html")
    loaded = [
        value
        for _, attributes in parsed.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert loaded == ["data:,"]
    styles = re.search(r"<style>(.*?)</style>", (quickstart / "report.html").read_text(), re.S)
    assert "url(" not in styles.group(1)
    assert "@import" not in styles.group(1)
    policy = [it["content"] for _, it in parsed.elements if "http-equiv" in it]
    assert len(policy) == 1
    assert policy[0].startswith("default-src 'none';")
    assert "http" not in policy[0]


def test_ten_variants_by_twenty_seeds_stay_under_three_megabytes(tmp_path):
    page = write_report(draw_study(tmp_path, **TEN_BY_TWENTY))
    assert page.stat().st_size < 3_000_000


def test_more_seeds_than_one_can_look_at_are_shown_by_quantiles(tmp_path, monkeypatch):
    monkeypatch.setattr("normlab.report.final.MOST_DOTS", 39)
    two = {name: QUICKSTART[name] for name in ("none", "batch")}
    page = write_report(draw_study(tmp_path, two, tune={}, seeds=40, epochs=2))
    whole = views([read_study(tmp_path)])[0]
    drawn = {figure.name: figure for figure in figures(whole)}
    scores = 100 * np.array([*whole.summary["batch"].by_seed.values()])
    differences = scores - 100 * np.array([*whole.summary["none"].by_seed.values()])
    for name, prefix, of_batch in (
        ("test-accuracy", "test", scores),
        ("differences", "difference", differences),
    ):
        data = drawn[name].datasets
        assert data[f"{prefix}-runs"] == []
        (found,) = (row for row in data[f"{prefix}-spread"] if row["arm"] == "batch")
        shown = [found[end] for end in ("lowest", "lower", "upper", "highest")]
        np.testing.assert_allclose(shown, np.percentile(of_batch, [5, 25, 75, 95]), rtol=1e-4)
    text = Parsed(page).text
    assert "half of the seeds lie on the thick" in text
    assert "Small dots" not in text


def test_of_more_arms_than_one_can_look_at_one_chart_has_all(tmp_path):
    variants = {
        f"m{place:03}": QUICKSTART["batch"] | {"skill": 0.90 + 0.0005 * place}
        for place in range(120)
    }
    page = write_report(draw_study(tmp_path, variants, tune={}, seeds=3, epochs=2))
    summary = read_study(tmp_path).summary
    whole = views([read_study(tmp_path)])[0]
    (every,) = (figure for figure in figures(whole.shown) if figure.name == "all-arms")
    rows = every.datasets["all-arms"]
    ranked = sorted(summary.arms, key=words.by_rank(summary))
    assert [row["arm"] for row in rows] == [arm.name for arm in ranked]
    assert [row["rank"] for row in rows] == list(range(1, 121))
    for row, arm in zip(rows, ranked, strict=True):
        ends = [arm.mean.value, *arm.mean.interval]
        np.testing.assert_allclose(
            [row["value"], row["low"], row["high"]], np.multiply(ends, 100), 1e-4
        )
        assert row["verdict"] == (arm.comparison.verdict if arm.comparison else "baseline")
    text = Parsed(page).text
    assert "Of 120 arms the table and the charts show the 40 best, the 10 worst" in text
    parsed = [
        row["data-arm"]
        for tag, row in Parsed(page).elements
        if tag == "button" and "data-arm" in row
    ]
    kept = {arm.name for arm in [*ranked[:40], *ranked[-10:]]} | {summary.baseline}
    assert set(parsed) == kept
    assert page.stat().st_size < 3_000_000


def test_charts_are_drawings_for_papers(quickstart):
    names = {path.name for path in (quickstart / "charts").iterdir()}
    curves = ("validation-accuracy", "training-loss")
    assert names == {
        "overview.svg",
        "test-accuracy.svg",
        "differences.svg",
        *(f"{name}{axis}.svg" for name in curves for axis in ("", "-by-step", "-by-seconds")),
        "time-to-target.svg",
        "tuning-optimizer-learning_rate.svg",
        "budget.svg",
    }
    for path in (quickstart / "charts").iterdir():
        root = ElementTree.parse(path).getroot()
        text = "".join(root.itertext())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "ghost16" in text
        assert path.stat().st_size < 200_000


def test_tasks_have_charts_of_their_own_and_together_ranks_and_profiles(with_tasks):
    def charts(view):
        return {path.stem for path in (with_tasks / "charts" / view).iterdir()}

    assert charts("all-tasks-together") == {
        *("test-accuracy", "differences", "performance-profile", "ranks")
    }
    assert charts("digits") == charts("fashion") >= {"time-to-target", "budget"}


def test_a_factor_has_a_chart(with_factor):
    drawing = (with_factor / "charts" / "by-data-batch-size.svg").read_text("utf-8")
    assert "data.batch_size" in drawing
    assert "ghost16, batch_size=64" in drawing


def test_studies_are_joined_over_the_arms_that_they_share(tmp_path):
    two = {name: QUICKSTART[name] for name in ("none", "batch")}
    first = draw_study(tmp_path / "a", two | {"layer": QUICKSTART["layer"]}, study="first")
    second = draw_study(tmp_path / "b", two, study="second", tune={}, seeds=6)
    page = write_page([first, second], tmp_path / "joint.html")
    text = " ".join(Parsed(page).text.split())
    shown = views([read_study(first), read_study(second)])
    assert [it.title for it in shown] == ["all studies together", "first", "second"]
    joined = shown[0].summary
    assert [it.name for it in joined.arms] == ["none", "batch"]
    alone = [view.summary["batch"].comparison.difference for view in shown[1:]]
    difference = joined["batch"].comparison.difference
    # Each study weighs the same, however many seeds it has.
    assert difference.value == pytest.approx((alone[0].value + alone[1].value) / 2)
    assert difference.count == 8 + 6
    assert words.conclude(joined).headline in text
    assert text.count("To run first again") == text.count("To run second again") == 1
    assert {path.name for path in (tmp_path / "joint_charts").iterdir()} == {
        *("all-studies-together", "first", "second")
    }


def told(folder, **changes):
    """A study of two variants that says more of how it is judged."""
    two = {name: QUICKSTART[name] for name in ("none", "batch")}
    draw_study(folder, two, tune={}, study=folder.name, epochs=6)
    store = Store(folder)
    store.write_config(store.config() | changes)
    return folder


def test_joined_studies_are_judged_by_the_strictest_in_any_order(tmp_path):
    lax = told(tmp_path / "lax", margin_points=2.0, significance=0.1)
    # As studies were stored before.
    strict = told(tmp_path / "strict", margin=0.001, significance=0.01)
    without = told(tmp_path / "without", margin=None)
    for folders, expected in (
        ((lax, strict), (0.001, 0.01)),
        ((strict, lax), (0.001, 0.01)),
        ((lax, without), (0, 0.05)),
        ((without, lax), (0, 0.05)),
    ):
        joined = views([read_study(it) for it in folders])[0].summary
        assert (joined.margin, joined.significance) == expected
        assert joined["batch"].comparison.level == expected[1]


def test_each_view_says_by_what_it_judges(tmp_path):
    lax = told(tmp_path / "lax", margin=0.02, significance=0.1)
    without = told(tmp_path / "without", margin=None, significance=0.04)
    text = Parsed(write_page([lax, without], tmp_path / "joint.html")).text
    assert re.findall(r"p-value of at most ([\d.]+), which", text) == ["0.04", "0.1", "0.04"]
    assert re.findall(r"within the margin of (\S+) points", text) == ["±2"]
    assert re.findall(r"Means over seeds with (\d+%) intervals", text) == ["96%", "90%", "96%"]


def test_intervals_of_charts_are_of_the_studys_significance(tmp_path):
    (view,) = views([read_study(told(tmp_path / "lax", significance=0.1))])
    made = {it.name: it for it in figures(view)}
    for name in ("validation-accuracy", "training-loss"):
        assert "Mean over seeds with 90% intervals." in made[name].caption.replace(
            "Geometric m", "M"
        )
    last = [it for it in made["validation-accuracy"].datasets["measured"] if it["epoch"] == 6]
    for row in last:
        scores = [it.curve.validation["accuracy"][-1] for it in view.runs(row["arm"])]
        low, high = estimate([scores], confidence=0.9).interval
        assert (row["low"], row["high"]) == pytest.approx((100 * low, 100 * high), rel=1e-4)
    subtitle = overview(view, figures(view), "lax", "a setting")["title"]["subtitle"]
    assert subtitle == "a setting. Mean over seeds with 90% intervals; small dots are seeds."


@pytest.mark.parametrize(("epochs", "opacity"), [(1, 1), (2, 0)])
def test_a_curve_of_a_single_epoch_is_seen_as_dots(tmp_path, epochs, opacity):
    """A line through one point is none, and the chart was empty."""
    two = {it: QUICKSTART[it] for it in ("none", "batch")}
    read = read_study(draw_study(tmp_path, two, tune={}, epochs=epochs))
    made = {it.name: it for it in figures(views([read])[0])}
    for name in ("validation-accuracy", "training-loss"):
        for chart in made[name].charts.values():
            marks = [it["mark"] for it in chart.to_dict()["layer"]]
            assert [it["opacity"] for it in marks if it["type"] == "circle"] == [opacity]


def test_bands_of_profiles_are_of_the_studys_significance(tmp_path):
    store = Store(draw_study(tmp_path, **WITH_TASKS | {"tune": {}, "epochs": 4}))
    store.write_config(store.config() | {"significance": 0.2})
    made = {it.name: it for it in figures(views([read_study(tmp_path)])[0])}
    assert "Bands: 80% at each point" in made["performance-profile"].caption


def test_charts_say_what_they_leave_out(tmp_path):
    draw_study(tmp_path / "some", SOMETIMES_DIVERGED, tune={}, epochs=8)
    draw_study(tmp_path / "none", {it: QUICKSTART[it] for it in ("none", "batch")}, tune={})
    said = "Diverged runs, and the means that they worsen, are left out here; the table has them."
    for folder, expected in (("some", True), ("none", False)):
        made = {it.name: it.caption for it in figures(views([read_study(tmp_path / folder)])[0])}
        assert (said in made["test-accuracy"]) == (said in made["differences"]) == expected
        assert (
            "no difference is shown, which does not mean that there is none"
            in (made["differences"])
        )


def test_a_factor_on_data_is_no_same_data_for_all(with_factor, quickstart):
    text = Parsed(with_factor / "report.html").text
    assert "Arms at the same level of data.batch_size train on the same data." in text
    assert "Every arm trains on the same data." not in text
    assert "Every arm trains on the same data." in Parsed(quickstart / "report.html").text


def test_one_seed_has_no_intervals_to_speak_of(tmp_path):
    draw_study(tmp_path, seeds=1, tune={}, epochs=4)
    text = Parsed(write_report(tmp_path)).text
    assert "Means over seeds. The p-values" in text
    assert "intervals in brackets" not in text


def test_studies_that_share_no_comparison_are_shown_side_by_side(tmp_path):
    draw_study(tmp_path / "a", {"none": QUICKSTART["none"], "batch": BATCH}, tune={})
    draw_study(tmp_path / "b", {"none": QUICKSTART["none"], "rms": BATCH}, tune={})
    studies = [read_study(tmp_path / name) for name in "ab"]
    assert [it.title for it in views(studies)] == [
        "quickstart (variants besides=batch)",
        "quickstart (variants besides=rms)",
    ]
    said = "no two arms, one of them a baseline, have the same names in all of them"
    assert said in Parsed(write_page(studies, tmp_path / "joint.html")).text


def test_studies_of_one_name_are_told_apart_by_what_differs(tmp_path):
    two = {name: QUICKSTART[name] for name in ("none", "batch")}
    for name, epochs in (("a", 4), ("b", 6), ("c", 6)):
        draw_study(tmp_path / name, two, tune={}, epochs=epochs)
    store = Store(tmp_path / "b")
    store.write_config(store.config() | {"margin": 0.01})
    studies = [read_study(tmp_path / name) for name in "abc"]
    told = [
        "quickstart (epochs=4, margin=none)",
        "quickstart (epochs=6, margin=0.01)",
        "quickstart (epochs=6, margin=none)",
    ]
    assert [it.title for it in views(studies)] == ["all studies together", *told]
    # The same settings leave the folder, and one folder given twice is one study.
    alike = [studies[2], read_study(draw_study(tmp_path / "d", two, tune={}, epochs=6))]
    assert titles(alike) == [f"quickstart ({tmp_path / name})" for name in "cd"]
    text = Parsed(write_page([tmp_path / "a", tmp_path / "." / "a"], tmp_path / "one.html")).text
    assert "all studies together" not in text


def test_reports_are_written_without_jax(tmp_path):
    program = """
import sys
for name in ("jax", "jaxlib", "flax", "optax", "chex"):
    sys.modules[name] = None
from rich.console import Console
from normlab.report import print_table, read_study, write_report
print(write_report(sys.argv[1]))
print_table(read_study(sys.argv[1]).summary, Console())
"""
    draw_study(tmp_path, {"batch": BATCH}, seeds=2)
    process = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "report.html").exists()


def test_the_numbers_are_written_as_json_that_every_reader_takes(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    write_report(draw_study(tmp_path, **{"epochs": 6, **CASES["some runs diverged"]}))
    told = json.loads((tmp_path / "summary.json").read_text("utf-8"), parse_constant=refuse)
    summary = read_study(tmp_path).summary
    assert told["summary"]["contests"][0]["best"] == summary.best
    for said, meant in zip(told["summary"]["arms"], summary.arms, strict=True):
        assert said["mean"]["value"] == meant.mean.value
        assert (said["loss"]["value"] is None) == bool(meant.diverged)


def test_arms_with_a_model_of_their_own_are_named(tmp_path):
    own = {"model": {"residual": "skip_init"}, "optimizer": {"adaptive_gradient_clip": 0.1}}
    draw_study(tmp_path, {"none": QUICKSTART["none"] | own, "batch": BATCH}, epochs=2)
    text = Parsed(write_report(tmp_path)).text
    assert "none: model.residual=skip_init, optimizer.adaptive_gradient_clip=0.1" in text
    assert "Only the normalization differs" not in text
    assert "as far as their models have the same ones" in text


def test_tasks_whose_names_share_a_file_name_have_charts_of_their_own(tmp_path):
    """The charts of the task `a b` were written over those of `a-b`."""
    tasks = {"a b": {}, "a-b": {}, "A/B": {}}
    write_report(draw_study(tmp_path, **WITH_TASKS | {"tasks": tasks, "seeds": 3}))
    folders = {it.name for it in (tmp_path / "charts").iterdir() if it.is_dir()}
    assert folders == {"all-tasks-together", "a-b", "a-b-2", "A-B-3"}


def test_the_page_says_which_of_two_tests_decides(quickstart):
    """The exact p-value stood in summary.json alone."""
    content = html.unescape((quickstart / "report.html").read_text())
    assert content.count(words.WHICH_DECIDES) == 1
    summary = read_study(quickstart).summary
    rows = re.findall(r'<td data-label="exact sign-flip[^>]*><span>(.*?)</span>', content)
    told = [it.comparison.sign_flip_in_words for it in summary.arms if it.comparison]
    assert sorted(it for it in rows if it.startswith("p")) == sorted(told)


def test_an_interval_that_ends_close_to_0_is_told_with_more_digits(tmp_path, monkeypatch):
    """The page, the terminal and the exports told "+0.00" beside "better"."""
    folder = draw_study(tmp_path, {n: QUICKSTART[n] for n in ("none", "batch")}, tune={})
    study = read_study(folder)
    arm = study.summary["batch"]
    close = Estimate(0.0055, (0.00003, 0.01097), 8)
    compared = replace(arm.comparison, difference=close, adjusted_p=0.04, verdict="better")
    monkeypatch.setattr(
        Pairs, "compare", lambda self, pairs: {it: compared for it in pairs if it[0] == "batch"}
    )
    study = read_study(folder)
    assert study.summary["batch"].comparison == compared
    told = "+0.550 [+0.003, +1.097]"
    assert told in verdict_words(study.summary).row(0)
    content = re.sub(r"<[^>]*>", "", html.unescape(write_report(study).read_text()))
    assert content.count(told) >= 2
    for width, shown in ((200, told), (60, "+0.550 ±0.547")):
        console = Console(file=io.StringIO(), width=width)
        print_table(study.summary, console)
        assert shown in console.file.getvalue()
