"""What a study may say of its metric, its target and its margin."""

import pytest

from normlab.config import ConfigError, make_study

STUDY = {
    "study": "s",
    "model": {"name": "mlp"},
    "variants": {"a": {"layer": "rms_norm"}, "b": {"layer": "identity"}},
}


def made(**changes):
    return make_study(STUDY, changes)


def test_the_metric_is_the_first_of_the_objective_unless_one_is_named():
    assert made().metric.model_dump() == {
        "name": "accuracy",
        "higher_is_better": True,
        "share": True,
        "title": "",
        "unit": "",
        "select_by": None,
    }
    of_text = made(objective={"name": "next_token"}).metric
    assert (of_text.name, of_text.higher_is_better) == ("perplexity", False)
    rmse = made(objective={"name": "regression"}, metric={"unit": "m"}).metric
    assert (rmse.name, rmse.title, rmse.unit) == ("rmse", "RMSE", "m")
    assert made(metric="loss").metric.higher_is_better is False


def test_tuning_may_select_by_another_metric():
    selected = made(metric={"select_by": "loss"}).metric.select_by
    assert (selected.name, selected.higher_is_better, selected.share) == ("loss", False, False)


def test_a_resolved_study_is_itself():
    for study in (made(metric={"select_by": "loss"}), made(objective={"name": "regression"})):
        again = make_study(study, {})
        assert again == study
        assert again.hash == study.hash


def test_margins_are_in_points_of_shares_and_in_the_unit_of_others():
    assert made().margin_points == 0.5
    regression = made(objective={"name": "regression"}, margin=0.2, target=1.5)
    assert (regression.margin_points, regression.margin, regression.target) == (None, 0.2, 1.5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"metric": "rmse", "metric.higher_is_better": False},
            r"metric.name=rmse is not measured by objective.name=classification; expected one of "
            "accuracy, top_5_accuracy, loss",
        ),
        # Whoever misspelt the name was told that another field is missing.
        ({"metric": "rmse"}, "metric.name=rmse is not measured by objective.name=classification"),
        (
            {"metric": {"name": "loss", "higher_is_better": True}},
            "metric.higher_is_better=true, but of loss it is false; leave it out",
        ),
        ({"metric": {"select_by": "rmse"}}, "metric.select_by.name=rmse is not measured by"),
        ({"target": 1.5}, "target=1.5, but metric.name=accuracy is a share"),
        # Targets that no run can reach were waited for.
        (
            {"objective": {"name": "regression"}, "target": -1},
            "target=-1, but metric.name=rmse is at",
        ),
        (
            {"objective": {"name": "regression"}, "metric": "r2", "target": 1.5},
            "target=1.5, but metric.name=r2 is at most 1",
        ),
        ({"target_accuracy": 0.9}, "target_accuracy: is now target; rename it"),
        ({"margin": 0.005}, "in points of a percentage: margin_points=0.5"),
        (
            {"objective": {"name": "regression"}, "margin_points": 0.5},
            "metric.name=rmse is no share; give margin, in its own unit",
        ),
    ],
)
def test_what_does_not_fit_is_told(changes, told):
    given = dict(changes)
    if "metric.higher_is_better" in given:
        given = {"metric": {"name": "rmse", "higher_is_better": False}}
    with pytest.raises(ConfigError) as error:
        make_study(STUDY, given)
    assert told.replace("\\", "") in str(error.value)
