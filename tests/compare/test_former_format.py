"""Results of the format with four named curves by epoch, in the folder `former`."""

import json
import shutil
from pathlib import Path

import pytest

from normlab.compare.export import curve_table, run_table
from normlab.compare.status import read_status
from normlab.compare.store import Store
from normlab.report import read_study, write_report

FORMER = Path(__file__).parent / "former"


@pytest.fixture
def former(tmp_path):
    shutil.copytree(FORMER, tmp_path / "former")
    return tmp_path / "former"


def test_results_of_the_former_format_are_read_with_their_checksums(former):
    path = former / "runs" / "final-none-0-cb4223f2eace.json"
    written = json.loads(path.read_text())
    assert "train_loss" in written["curve"]
    (read,) = (it for it in Store(former).results() if it.id == written["id"])
    assert read.curve.step == [18, 36, 54]
    assert read.curve.train["loss"] == written["curve"]["train_loss"]
    assert read.curve.validation["accuracy"] == written["curve"]["validation_accuracy"]
    assert read.test == written["test"]
    assert len(Store(former).finished()) == 10
    assert not read_study(former).left_aside


def test_a_study_of_the_former_format_has_its_page_status_and_tables(former):
    study = read_study(former)
    assert study.summary.measure.name == "accuracy"
    assert study.summary.target == 0.9
    assert study.summary["batch"].mean.value == pytest.approx(0.97963, abs=1e-5)
    assert "test accuracy" in write_report(former).read_text()
    assert read_status(former).total.left == 0
    assert run_table(former)["test_accuracy"].max() > 0.97
    assert curve_table(former)["epoch"].to_list()[:3] == [1, 2, 3]


def test_what_no_accuracy_can_be_is_left_aside(former):
    path = former / "runs" / "final-none-0-cb4223f2eace.json"
    written = json.loads(path.read_text())
    del written["checksum"]
    written["test"]["accuracy"] = 7.5
    path.write_text(json.dumps(written))
    study = read_study(former)
    assert path.stem not in {it.id for it in study.results}
    assert "7.5" in " ".join(study.left_aside)
