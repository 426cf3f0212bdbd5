"""Fields of the layers themselves: tuned for the variants that have them, or crossed with all."""

import pytest

import normlab
from normlab.compare.grid import extended, final_runs, tuning_runs
from normlab.config import ConfigError, make_study
from normlab.report.study import read_study
from normlab.variants import VARIANTS

STUDY = {
    "study": "fields",
    "data": {"name": "digits", "batch_size": 256},
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"epochs": 1},
    "variants": {
        "none": {"layer": "identity"},
        "batch": {"layer": "batch_norm", "momentum": 0.8},
        "a.b": {"layer": "layer_norm"},
    },
    "seeds": 2,
}
TUNE = {
    "optimizer.learning_rate": [0.1, 0.3],
    "layer.epsilon": [1e-5, 1e-3],
    "variants.batch.momentum": [0.9, 0.99],
}


def problems(**changes):
    with pytest.raises(ConfigError) as caught:
        make_study(STUDY, changes)
    return caught.value.problems


def test_a_field_is_tuned_for_the_variants_that_have_it():
    study = make_study(STUDY, {"tune": TUNE})
    arms = {arm.variant: arm for arm in study.arms()}
    tried = {name: [run.values for run in tuning_runs(study, arm)] for name, arm in arms.items()}
    assert {name: len(values) for name, values in tried.items()} == {
        "none": 2,
        "batch": 8,
        "a.b": 4,
    }
    assert tried["none"] == [{"optimizer.learning_rate": it} for it in (0.1, 0.3)]
    for name, arm in arms.items():
        for run in tuning_runs(study, arm):
            layer = run.study.variants[name].constructor()()
            assert run.study.optimizer.learning_rate == run.values["optimizer.learning_rate"]
            if name != "none":
                assert layer.epsilon == run.values["layer.epsilon"]
            if name == "batch":
                assert layer.momentum == run.values["variants.batch.momentum"]
    # The chosen values are those of the final runs, and part of what they are.
    chosen = {"layer.epsilon": 1e-3, "optimizer.learning_rate": 0.3}
    for run in final_runs(study, arms["a.b"], chosen):
        assert run.study.variants["a.b"].constructor()().epsilon == 1e-3
        assert run.identity({})["variant"]["epsilon"] == 1e-3


def test_with_trials_every_variant_tries_as_many_points():
    ranged = TUNE | {"optimizer.learning_rate": {"low": 0.01, "high": 1.0}, "trials": 5}
    study = make_study(STUDY, {"tune": ranged})
    points = [study.points(arm) for arm in study.arms()]
    assert [len(it) for it in points] == [5, 5, 5]
    rates = [[it["optimizer.learning_rate"] for it in of_arm] for of_arm in points]
    assert rates[0] == rates[1] == rates[2]


def test_a_grid_over_a_field_goes_on_for_the_variants_that_have_it():
    study = make_study(STUDY, {"tune": TUNE | {"extend": 1}})
    best = [
        {"optimizer.learning_rate": 0.1},
        {"optimizer.learning_rate": 0.1, "layer.epsilon": 1e-3, "variants.batch.momentum": 0.99},
    ]
    wider = extended(study, best)
    assert wider.tune.space["layer.epsilon"] == (1e-5, 1e-3, 0.1)
    # A momentum of 1.08 is none that the layer allows.
    assert wider.tune.space["variants.batch.momentum"] == (0.9, 0.99)


def test_such_a_study_runs_and_its_page_says_who_tried_how_much(tmp_path):
    results = normlab.compare(STUDY, tune=TUNE, out=tmp_path)
    assert results.summary["batch"].values.keys() == TUNE.keys()
    assert results.summary["none"].values.keys() == {"optimizer.learning_rate"}
    study = read_study(tmp_path)
    assert study.points == {"none": 2, "batch": 8, "a.b": 4}
    assert study.planned == {"tune": 14, "final": 6}
    page = (tmp_path / "report.html").read_text()
    assert "2 (none), 8 (batch) and 4 (a.b)" in page


def test_a_field_is_a_factor_where_every_variant_has_it():
    two = {name: STUDY["variants"][name] for name in ("batch", "a.b")}
    study = make_study(STUDY | {"variants": two}, {"factors": {"layer.epsilon": [1e-5, "1e-3"]}})
    arms = study.arms()
    assert [arm.name for arm in arms] == [
        f"{name}, epsilon={it}" for it in (1e-05, 0.001) for name in two
    ]
    layers = [study.for_arm(arm).variants[arm.variant].constructor()() for arm in arms]
    assert [layer.epsilon for layer in layers] == [1e-5, 1e-5, 1e-3, 1e-3]
    assert {layer.momentum for layer in layers[::2]} == {0.8}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"tune.layer.epsilonn": [1]},
            "no variant's layer has such a field; did you mean 'epsilon'",
        ),
        ({"tune.variants.bach.epsilon": [1]}, "'bach' is no variant; did you mean 'batch'?"),
        ({"tune.variants.none.epsilon": [1]}, "the layer of none has no such field"),
        ({"tune.variants.batch.layer": ["rms_norm"]}, "the layer of batch has no such field"),
        ({"tune.layer.epsilon": [1e-5, "x"]}, "should be a valid number, unable to parse"),
        (
            {"tune.variants.batch.momentum": [0.9, 90]},
            "momentum=90.0 was given; expected the share",
        ),
        ({"tune.layer.momentum": [0.9]}, "variants.batch.momentum: given for an arm, but also for"),
        (
            {"tune.layer.epsilon": [1e-5], "tune.variants.batch.epsilon": [1e-3]},
            "variants.batch.epsilon: given for an arm, but also for all",
        ),
        (
            {"factors": {"layer.epsilon": [1e-5, 1e-3]}},
            "the layers of none have no such field, but a factor is crossed with every variant",
        ),
        ({"factors": {"variants.batch.momentum": [0.9]}}, "cannot be a factor"),
        ({"tasks": {"x": {"layer.epsilon": 1e-3}}}, "expected fields of data, model, objective"),
    ],
)
def test_fields_that_cannot_be_searched_are_told(changes, told):
    found = problems(**changes)
    assert any(told in line for line in found), found


def test_a_field_of_a_layer_of_ones_own_is_tuned_too():
    layer = type("Own", (normlab.Identity,), {"__annotations__": {"power": float}, "power": 1.0})
    normlab.register("own_power", layer)
    try:
        own = STUDY | {"variants": {"own": {"layer": "own_power"}}}
        study = make_study(own, {"tune.layer.power": ["2", 3]})
        assert study.points(study.arms()[0]) == [{"layer.power": 2.0}, {"layer.power": 3.0}]
    finally:
        VARIANTS.pop("own_power")
