"""Which results of a folder belong to the study that its configuration describes."""

import json

import pytest
from report.studies import QUICKSTART, RATES, draw_study

from normlab.compare.store import Label, NoStudyError, Store, StoreError
from normlab.report import read_study

TWO = {name: QUICKSTART[name] for name in ("none", "batch")}


def test_a_complete_study_has_all_that_was_planned(quickstart):
    study = read_study(quickstart)
    assert study.planned == {"tune": 6 * 5 * 2, "final": 6 * 8}
    assert {phase: study.done(phase) for phase in study.planned} == study.planned
    assert study.left_out == 0
    assert study.tuned == RATES
    assert study.setting == "digits · mlp · sgd · 20 epochs · 6 variants · 8 seeds"


def test_a_study_without_tuning_plans_none(tmp_path):
    study = read_study(draw_study(tmp_path, TWO, tune={}, seeds=1, epochs=1))
    assert study.planned == {"tune": 0, "final": 2}
    assert study.setting == "digits · mlp · sgd · 1 epoch · 2 variants · 1 seed"


def test_the_setting_names_tasks_and_counts_arms(with_factor, with_tasks):
    assert read_study(with_factor).setting == (
        "digits · mlp · sgd · 20 epochs · 4 variants · 12 arms · 8 seeds"
    )
    assert read_study(with_tasks).setting == (
        "digits and fashion_mnist · mlp · sgd · 20 epochs · 4 variants · 2 tasks · 8 seeds"
    )


def test_only_the_runs_of_the_plan_count(tmp_path):
    draw_study(tmp_path, TWO, seeds=2)
    store = Store(tmp_path)
    every = {it.id: Label(arm=it.arm) for it in store.results()}
    assert read_study(tmp_path).left_out == 0
    kept = list(every)[3:]
    store.write_plan({run: every[run] for run in kept})
    study = read_study(tmp_path)
    assert [it.id for it in study.results] == kept
    assert study.left_out == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: [1"),
        ("config.yaml", "study: x"),
        ("environment.json", '{"packages": '),
        ("environment.json", "[]"),
        ("plan.json", "nothing"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, name, content):
    draw_study(tmp_path, TWO, seeds=1)
    (tmp_path / name).write_text(content)
    with pytest.raises(StoreError, match=rf"(?s){name} .*Run the study again"):
        read_study(tmp_path)


def test_a_folder_without_a_study_and_a_damaged_result_are_told(tmp_path):
    with pytest.raises(NoStudyError, match=r"config\.yaml is missing"):
        read_study(tmp_path)
    draw_study(tmp_path, TWO, seeds=1)
    victim = next((tmp_path / "runs").glob("*.json"))
    victim.write_text(json.dumps({"id": victim.stem}))
    study = read_study(tmp_path)
    assert victim.name in study.left_aside[1]
    assert victim.stem not in {it.id for it in study.results}
