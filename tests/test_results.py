"""From Python: a study in, its results out, the same as by the command line."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import altair as alt
import numpy as np
import pytest
import vl_convert
import yaml
from report.studies import draw_study

import normlab
from normlab.compare.store import Store
from normlab.compare.study import study_type
from normlab.config import ConfigError, load_study, make_study
from normlab.errors import UserError
from normlab.report import read_study

STUDY = {
    "study": "small",
    "data": {"name": "digits", "train_examples": 64, "batch_size": 16},
    "model": {"name": "mlp", "hidden": (8,)},
    "train": {"epochs": 2},
    "variants": {"none": {"layer": "identity"}, "batch": {"layer": "batch_norm"}},
    "tune": {"optimizer.learning_rate": [0.01, 0.1]},
    "seeds": 3,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return normlab.compare(STUDY, out=tmp_path_factory.mktemp("small") / "of_it")


def test_a_study_from_python_is_run_whole_and_its_results_are_those_of_its_folder(results):
    report = read_study(results.folder)
    assert len(report.results) == 2 * (2 + 3)
    np.testing.assert_equal(asdict(results.summary), asdict(report.summary))
    assert results.config == Store(results.folder).config()
    assert set(results.verdicts) == {"batch"}
    assert results.report == results.folder / "report.html"
    assert results.headline in results.report.read_text().replace("&#39;", "'")


def test_what_is_done_is_not_written_anew_until_something_differs(results, monkeypatch):
    folder = results.folder
    made = [folder / name for name in ("report.html", "summary.json", "metrics.parquet")]
    made.append(folder / "charts" / "overview.svg")

    def written_anew(**changes):
        before = [path.stat().st_mtime_ns if path.exists() else 0 for path in made]
        normlab.compare(STUDY | changes, out=folder)
        after = [path.stat().st_mtime_ns for path in made]
        assert len({one == other for one, other in zip(before, after, strict=True)}) == 1
        return before != after

    written_anew()  # A test before this one asked for the page, which writes it.
    assert not written_anew()
    for path in made:
        path.unlink()
        assert written_anew()
        assert not written_anew()
    made[0].write_text(made[0].read_text() + "<!-- edited -->")
    assert written_anew()
    result = min((folder / "runs").glob("final-*.json"))
    result.write_text(result.read_text().replace('"seconds":', '"seconds" :'))
    assert written_anew()
    assert written_anew(margin_points=5.0)
    assert "5 points" in made[0].read_text()
    assert written_anew()  # The study is again the one that it was.
    monkeypatch.setattr("normlab.compare.made._DRAWN_BY", ("altair",))  # as with another version
    assert written_anew()
    (folder / "made.json").write_text("{")
    assert written_anew()
    assert not written_anew()


def test_frames_have_a_row_a_run_and_a_row_an_epoch(results):
    stored = {it.id: it for it in Store(results.folder).results()}
    assert set(results.runs["id"]) == set(stored)
    for row in results.runs.iter_rows(named=True):
        it = stored[row["id"]]
        assert row["test_accuracy"] == (it.test["accuracy"] if it.test else None)
        assert (row["arm"], row["seed"], row["phase"]) == (it.arm, it.seed, it.phase)
        assert row["optimizer.learning_rate"] == it.values["optimizer.learning_rate"]
    assert len(results.curves) == 2 * len(stored)
    for row in results.curves.iter_rows(named=True):
        curve = stored[row["id"]].curve
        assert row["validation_accuracy"] == curve.validation["accuracy"][row["epoch"] - 1]


def test_results_show_themselves_as_table_and_verdicts(results):
    for shown in (repr(results), results._repr_html_()):
        for words in (results.headline.split()[0], "accuracy", "batch", "none"):
            assert words in shown


def test_a_notebook_shows_the_table_of_the_page(results):
    shown = results._repr_html_()
    assert "<script" not in shown
    for arm in results.summary.arms:
        row = shown[shown.index(f"<span>{arm.name}</span>") :].partition("</tr>")[0]
        assert f"{100 * arm.mean.value:.2f} <small>" in row
        told = arm.comparison.verdict if arm.comparison else "baseline"
        assert told in row


def test_results_are_shown_once_in_a_notebook(results, monkeypatch):
    # Rich shows in the notebook what is printed to a file there, unless it is told not to.
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    shown = []
    monkeypatch.setattr("rich.jupyter.display", lambda *parts: shown.append(parts))
    for told in (repr(results), results._repr_html_()):
        assert told
    assert shown == []


def test_the_plot_is_the_overview_of_the_page(results):
    chart = results.plot()
    assert isinstance(chart, alt.HConcatChart)
    drawn = chart.to_dict()
    assert results.headline in drawn["title"]["text"]
    runs = drawn["datasets"]["test-runs"]
    assert {(row["arm"], row["seed"]) for row in runs} == {
        (arm, seed) for arm in ("none", "batch") for seed in range(3)
    }
    assert "<svg" in vl_convert.vegalite_to_svg(drawn)


def test_without_final_runs_there_is_nothing_to_plot(tmp_path):
    results = normlab.read_results(draw_study(tmp_path, final=False, epochs=2))
    with pytest.raises(UserError, match="no final run is done"):
        results.plot()
    assert "No conclusion yet" in results._repr_html_()


def test_done_again_it_runs_nothing_and_comes_to_the_same(results):
    before = {path: path.stat().st_mtime_ns for path in results.folder.glob("runs/*.json")}
    again = normlab.compare(STUDY, out=results.folder)
    assert {path: path.stat().st_mtime_ns for path in results.folder.glob("runs/*.json")} == before
    assert again.runs.equals(results.runs)


def test_results_are_read_without_jax(results):
    program = (
        "import sys, normlab\n"
        f"results = normlab.read_results({str(results.folder)!r})\n"
        "print(results.hash, len(results.runs), results.verdicts['batch'])\n"
        "print(len(results.curves), results.report)\n"
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules\n"
        "import normlab.report\n"
        "assert 'scipy.stats' not in sys.modules\n"  # half the time of a small page
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert shown.startswith(f"{results.hash} 10 {results.verdicts['batch']}")


def test_the_same_study_from_yaml_and_python_has_the_same_hash_and_another_has_another(tmp_path):
    file = tmp_path / "study.yaml"
    plain = {**STUDY, "model": {"hidden": [8], "name": "mlp"}}
    # Without a baseline, the order of the variants would tell it.
    told = {**plain, "study": "other", "baseline": "none"}
    file.write_text(yaml.safe_dump(told, sort_keys=True))
    expected = make_study(STUDY, {}).hash
    same = [
        load_study(file),
        load_study(file, ["executor=processes"]),
        make_study(file, {}),
        make_study(str(file), {"study": "third"}),
        make_study(dict(reversed(STUDY.items())), {"baseline": "none"}),
        make_study({**STUDY, "optimizer": {"momentum": 0.9}, "margin_points": 0.5}, {}),
        make_study({**STUDY, "seeds": 9}, {"seeds": 3}),
        make_study(load_study(file), {}),
    ]
    assert {it.hash for it in same} == {expected}
    for changes in (
        {"seeds": 4},
        {"train": {"epochs": 3}},
        {"train.epochs": 3},
        {"variants.batch.momentum": 0.5},
        {"tune.optimizer.learning_rate": [0.1]},
        {"factors": {"data.batch_size": [8, 16]}},
        {"margin_points": None},
    ):
        assert make_study(STUDY, changes).hash != expected
    assert study_type().model_validate(STUDY).hash == expected


def test_a_study_read_back_from_its_folder_has_the_same_hash(results):
    assert (
        results.hash
        == make_study(STUDY, {}).hash
        == load_study(results.folder / "config.yaml").hash
    )


def test_mistakes_are_told_all_at_once_with_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        normlab.compare(STUDY, sedes=3, train={"epochs": 0}, model={"name": "mpl"})
    assert str(caught.value).startswith("normlab.compare: 3 problems")
    assert any("did you mean 'seeds'?" in line for line in caught.value.problems)
    assert any("did you mean 'mlp'?" in line for line in caught.value.problems)


def test_what_is_no_study_is_refused_by_what_was_given():
    # In a process of its own, where no type checker refuses it first.
    program = (
        "import normlab\n"
        "from normlab.config import ConfigError\n"
        "for given in (None, 3, [{'study': 'small'}]):\n"
        "    try:\n        normlab.compare(given)\n"
        "    except ConfigError as error:\n        print(*error.problems)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    expected = "expected a study: a mapping, the path of a YAML file, or a checked study"
    assert shown.splitlines() == [
        f"{given} was given; {expected}" for given in ("None", "3", "[{'study': 'small'}]")
    ]


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match=r"notes is a file; expected a folder.*elsewhere"):
        normlab.compare(STUDY, out=tmp_path / "notes")
    assert [it.name for it in tmp_path.iterdir()] == ["notes"]
    assert (tmp_path / "notes").read_text() == "mine"


def test_an_empty_mapping_empties_what_the_study_says():
    full = STUDY | {
        "factors": {"data.batch_size": [8, 16]},
        "tasks": {"whole": {}, "half": {"train": {"epochs": 1}}},
    }
    assert len(make_study(full, {}).arms()) == 2 * 2 * 2
    emptied = make_study(full, {"factors": {}, "tasks": {}, "tune": {}})
    assert (emptied.factors, emptied.tasks, emptied.tune) == ({}, {}, None)
    assert len(emptied.arms()) == 2


@pytest.mark.parametrize(
    "before",
    ["", "import normlab.compare.store", "from normlab.compare import store", "import normlab.cli"],
)
def test_the_function_is_there_whatever_was_imported_before(before):
    program = (
        f"import normlab\n{before}\n"
        "try:\n    normlab.compare({})\n"
        "except normlab.errors.UserError as error:\n    print(error)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert shown.startswith("normlab.compare: ")
    assert "study: is missing" in shown


def test_the_folder_by_default_is_that_of_the_command(monkeypatch, tmp_path, results):
    monkeypatch.chdir(tmp_path)
    made = normlab.compare(STUDY, study="by_default", tune=None, seeds=1, train={"epochs": 1})
    assert made.folder == Path("runs/by_default")
    assert len(made.runs) == 2
    assert (tmp_path / "runs/by_default/report.html").is_file()
