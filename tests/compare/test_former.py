"""A folder whose study is run with other settings: what changed is told, and nothing is lost."""

import re

import numpy as np
import yaml
from command import normlab

from normlab.compare.environment import environment
from normlab.compare.run import run_study
from normlab.compare.store import Store
from normlab.compare.study import study_type
from normlab.report import read_study, write_report

CONFIG = {
    "study": "small",
    "data": {"name": "digits", "batch_size": 32, "train_examples": 64},
    "model": {"name": "mlp", "hidden": [4]},
    "optimizer": {"name": "sgd"},
    "train": {"epochs": 1},
    "variants": {"none": {"layer": "identity"}},
    "tune": {"optimizer.learning_rate": [0.01, 0.1]},
    "seeds": 2,
}


def run(folder, packages=None, **changes):
    """Runs the study; returns what it told and how many runs are left out."""
    told = []
    described = environment("test")
    described["packages"] |= packages or {}
    made = study_type().model_validate({**CONFIG, **changes})
    ending = run_study(made, Store(folder), described, lambda *_: None, told.append)
    write_report(folder)
    return told, ending.left_out


def test_a_study_that_goes_on_or_is_done_tells_nothing(tmp_path):
    assert run(tmp_path) == ([], 0)
    assert run(tmp_path) == ([], 0)
    # Stopped within its tuning: the reported runs are not known again before it is done.
    next((tmp_path / "runs").glob("tune-*.json")).unlink()
    assert run(tmp_path, modules=[], executor={"name": "local", "width": 2}) == ([], 0)
    assert not (tmp_path / "former").exists()


def test_a_grid_that_went_on_and_lost_a_run_is_the_same_study(tmp_path):
    tune = {"optimizer.learning_rate": [0.01, 0.1], "extend": 1}
    assert run(tmp_path, tune=tune) == ([], 0)
    for lost in (tmp_path / "runs").glob("tune-none-1000000-*.json"):
        lost.unlink()
    assert run(tmp_path, tune=tune) == ([], 0)


def test_another_number_of_epochs_is_told_and_the_former_page_is_kept(tmp_path):
    run(tmp_path)
    page, summary = ((tmp_path / name).read_bytes() for name in ("report.html", "summary.json"))
    charts = sorted(it.name for it in (tmp_path / "charts").rglob("*.svg"))
    told, left_out = run(tmp_path, train={"epochs": 2})
    assert told == [
        f"{tmp_path} held another study until now; what is different:",
        "  train.epochs: 1 -> 2",
        "0 of its 4 finished runs count here so far; all of them are kept.",
        f"Its page, figures and settings are kept in {tmp_path / 'former' / '1'}. To have a folder "
        "for each of the two, give another one with --out.",
    ]
    assert left_out == 4
    kept = tmp_path / "former" / "1"
    assert (kept / "report.html").read_bytes() == page != (tmp_path / "report.html").read_bytes()
    assert (kept / "summary.json").read_bytes() == summary
    assert sorted(it.name for it in (kept / "charts").rglob("*.svg")) == charts
    assert Store(kept).config()["train"]["epochs"] == 1
    assert len(Store(kept).plan()) == len(list((tmp_path / "runs").glob("*.json"))) / 2 == 4
    assert run(tmp_path, train={"epochs": 2}) == ([], 4)
    # Back again: the runs are there, and count.
    told, left_out = run(tmp_path)
    assert told[1:3] == [
        "  train.epochs: 2 -> 1",
        "0 of its 4 finished runs count here so far; all of them are kept.",
    ]
    assert (left_out, len(list((tmp_path / "former").iterdir()))) == (4, 2)
    assert len(read_study(tmp_path).results) == 4


def test_every_setting_that_differs_is_told_by_its_path(tmp_path):
    run(tmp_path)
    told, _ = run(
        tmp_path,
        margin_points=None,
        tune=None,
        variants={"none": {"layer": "identity"}, "rms": {"layer": "rms_norm"}},
    )
    settings = {line.partition(":")[0].strip(): line.partition(": ")[2] for line in told[1:-2]}
    assert settings.keys() == {"margin_points", "tune", "variants.rms"}
    assert settings["margin_points"] == "0.5 -> null"
    assert re.fullmatch(
        r'\{.*"optimizer.learning_rate": \[0.01, 0.1\].*} -> null', settings["tune"]
    )
    assert settings["variants.rms"].startswith('not set -> {"layer": "rms_norm"')


def test_other_packages_and_other_examples_are_told(tmp_path):
    draw = np.random.default_rng(0)

    def write(examples):
        arrays = {
            f"{split}_{name}": value
            for split in ("train", "test")
            for name, value in {
                "images": draw.integers(0, 256, (examples, 2, 2), dtype=np.uint8),
                "labels": np.arange(examples) % 2,
            }.items()
        }
        np.savez(tmp_path / "own.npz", **arrays)

    study = {
        "tune": None,
        "data": {"name": "npz", "folder": str(tmp_path / "own.npz"), "batch_size": 8},
    }
    write(32)
    folder = tmp_path / "study"
    assert run(folder, **study) == ([], 0)
    told, _ = run(folder, packages={"jax": "0.0.1"}, **study)
    assert len(told) == 4
    assert re.fullmatch(r'  packages.jax: "[\d.]+" -> "0.0.1"', told[1])
    write(40)
    told, left_out = run(folder, packages={"jax": "0.0.1"}, **study)
    assert (told[1:-2], left_out) == (["  the examples that were read: changed"], 4)


def test_a_study_whose_settings_are_damaged_is_kept_as_the_folder_has_it(tmp_path):
    run(tmp_path)
    page = (tmp_path / "report.html").read_bytes()
    (tmp_path / "config.yaml").write_text("seeds: [")
    (told,), _ = run(tmp_path)
    assert "config.yaml is damaged" in told
    assert str(tmp_path / "former" / "1") in told
    assert (tmp_path / "former" / "1" / "report.html").read_bytes() == page


def test_the_command_tells_it(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    normlab("compare", "small.yaml", folder=tmp_path)
    shown = normlab("compare", "small.yaml", "train.epochs=2", folder=tmp_path).stdout
    assert "  train.epochs: 1 -> 2\n" in shown
    assert "are kept in runs/small/former/1. To have" in shown
    assert "4 finished runs in runs/small/runs are not of the study as it is now" in shown
