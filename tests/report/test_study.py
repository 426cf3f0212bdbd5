"""Which results of a folder belong to the study that its configuration describes."""

import json

import pytest
from report.studies import QUICKSTART, RATES, draw_study

from normlab.compare.store import NoStudyError, Store, StoreError
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


@pytest.mark.parametrize("again", [{"epochs": 9}, {"optimizer": "adam"}])
def test_runs_of_an_earlier_configuration_are_left_out(tmp_path, again):
    draw_study(tmp_path, TWO, seeds=2)
    earlier = {it.id for it in Store(tmp_path).results()}
    for path in (tmp_path / "runs").iterdir():
        path.rename(path.with_name(f"old-{path.name}"))
        renamed = path.with_name(f"old-{path.name}")
        renamed.write_text(renamed.read_text().replace('{"id":"', '{"id":"old-', 1))
    draw_study(tmp_path, TWO, seeds=2, **again)
    study = read_study(tmp_path)
    assert {it.id for it in study.results} == earlier
    assert study.left_out == len(earlier)


def test_runs_under_other_versions_are_left_out(tmp_path):
    draw_study(tmp_path, TWO, seeds=2)
    path = tmp_path / "environment.json"
    path.write_text(path.read_text().replace('"jax": "0.10.2"', '"jax": "0.11.0"'))
    study = read_study(tmp_path)
    assert study.results == ()
    assert study.left_out == 2 * (5 * 2 + 2)


def test_tuning_runs_outside_of_a_narrowed_search_space_are_left_out(tmp_path):
    draw_study(tmp_path, TWO, seeds=2)
    store = Store(tmp_path)
    narrowed = {"optimizer.learning_rate": [0.03, 0.1], "seeds": 2}
    store.write_config(store.config() | {"tune": narrowed})
    study = read_study(tmp_path)
    assert study.done("tune") == study.planned["tune"] == 2 * 2 * 2
    assert study.left_out == 2 * 3 * 2


def test_a_variant_that_left_the_study_is_left_out(tmp_path):
    draw_study(tmp_path, TWO, seeds=2)
    store = Store(tmp_path)
    config = store.config()
    del config["variants"]["batch"]
    store.write_config(config)
    assert {it.variant for it in read_study(tmp_path).results} == {"none"}


def test_a_folder_without_a_study_and_a_damaged_result_are_named(tmp_path):
    with pytest.raises(NoStudyError, match=r"config\.yaml is missing"):
        read_study(tmp_path)
    draw_study(tmp_path, TWO, seeds=1)
    victim = next((tmp_path / "runs").iterdir())
    victim.write_text(json.dumps({"id": victim.stem}))
    with pytest.raises(StoreError, match=victim.name):
        read_study(tmp_path)
