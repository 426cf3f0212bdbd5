"""Verdicts against intervals computed by SciPy, and what each outcome takes."""

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from normlab.inference.power import difference_for_power, pairs_for_power
from normlab.verdicts import Rule, judge

A = {0: 3.0, 1: 4.0, 2: 5.5, 3: 4.5}
B = {0: 1.0, 1: 1.5, 2: 1.0, 3: 2.5}


def rule(*predictions, **more):
    return Rule.model_validate(
        {
            "claim": "a is above b.",
            "source": "nobody",
            "measures": {"m": {"read": "test"}},
            "predictions": [{"says": "so", "measure": "m", **it} for it in predictions],
            **more,
        }
    )


def test_an_interval_is_that_of_scipy_at_the_level_divided_by_the_predictions():
    contrast = {"contrast": {"a": 1, "b": -1}}
    found = judge(rule(contrast | {"above": 0}, contrast | {"below": 9}), {"m": {"a": A, "b": B}})
    differences = [A[seed] - B[seed] for seed in A]
    low, high = stats.t.interval(0.975, 3, loc=np.mean(differences), scale=stats.sem(differences))
    for judged in found.predictions:
        assert judged.mean == pytest.approx(np.mean(differences))
        assert judged.interval == pytest.approx((low, high))
        assert judged.pairs == 4


def test_with_logarithms_it_is_that_of_a_ratio():
    prediction = {"contrast": {"a": 1, "b": -1}, "above": 1.1, "log": True}
    (judged,) = judge(rule(prediction), {"m": {"a": A, "b": B}}).predictions
    ratios = np.log([A[seed] / B[seed] for seed in A])
    expected = stats.t.interval(0.95, 3, loc=ratios.mean(), scale=stats.sem(ratios))
    assert judged.mean == pytest.approx(math.exp(ratios.mean()))
    assert judged.interval == pytest.approx(np.exp(expected))


@pytest.mark.parametrize(
    ("threshold", "outcome"),
    [
        ({"above": 0}, "supported"),  # the interval is [0.86, 4.64]
        ({"above": 2}, "undecided"),
        ({"above": 5}, "refuted"),
        ({"below": 5}, "supported"),
        ({"below": 2}, "undecided"),
        ({"below": 0}, "refuted"),
        ({"within": 5}, "supported"),
        ({"within": 2}, "undecided"),
        ({"within": 0.5}, "refuted"),
    ],
)
def test_an_outcome_is_where_the_whole_interval_lies(threshold, outcome):
    prediction = {"contrast": {"a": 1, "b": -1}, **threshold}
    (judged,) = judge(rule(prediction), {"m": {"a": A, "b": B}}).predictions
    assert judged.outcome == outcome


@pytest.mark.parametrize(
    ("thresholds", "word"),
    [
        ([0, 0.1], "supported"),
        ([0, 2.5], "undecided"),
        ([0, 9], "mixed"),
        ([-1, 2.5, 9], "mixed"),
        ([2.5, 9], "refuted"),
        ([9], "refuted"),
        ([2.5], "undecided"),
    ],
)
def test_a_claim_is_what_its_predictions_are(thresholds, word):
    predictions = [{"contrast": {"a": 1, "b": -1}, "above": it} for it in thresholds]
    assert judge(rule(*predictions), {"m": {"a": A, "b": B}}).word == word


def test_what_is_no_number_decides_nothing():
    """A diverged run has no loss: its NaN must neither be left out nor decide."""
    scores = {"m": {"a": {**A, 1: math.nan}, "b": B}}
    (judged,) = judge(rule({"contrast": {"a": 1, "b": -1}, "above": 0}), scores).predictions
    assert (judged.outcome, judged.interval, judged.pairs) == ("undecided", None, 4)


def test_only_seeds_that_all_arms_have_count():
    scores = {"m": {"a": A, "b": {**B, 7: 0.0}}}
    (judged,) = judge(rule({"contrast": {"a": 1, "b": -1}, "above": 0}), scores).predictions
    assert judged.pairs == 4


@pytest.mark.parametrize("pairs", [4, 8, 20])
def test_what_a_design_could_show_is_shown_in_four_of_five_studies(pairs):
    """By simulation, since the formula is that of a noncentral distribution."""
    difference = difference_for_power(pairs, 2.0, 0.025)
    drawn = np.random.default_rng(0).normal(difference, 2.0, (40_000, pairs))
    low = drawn.mean(1) - stats.t.ppf(1 - 0.0125, pairs - 1) * stats.sem(drawn, axis=1)
    assert (low > 0).mean() == pytest.approx(0.8, abs=0.01)
    assert pairs_for_power(difference * 1.001, 2.0, 0.025) == pairs


@pytest.mark.parametrize("center", [0.0, 0.7, 2.2])
@pytest.mark.parametrize("threshold", [{"above": 1.5}, {"below": 1.5}, {"within": 1.5}])
def test_an_undecided_prediction_says_how_many_seeds_would_tell(threshold, center):
    """By simulation of such studies, with the mean and the spread that were measured.

    Within two bounds both must be kept, which the nearer one alone does not say.
    """
    values = np.random.default_rng(1).normal(0, 1, 6)
    values = center + 2.5 * (values - values.mean()) / values.std(ddof=1)
    scores = {"m": {"a": dict(enumerate(values.tolist()))}}
    the_rule = rule({"contrast": {"a": 1}, **threshold})
    (judged,) = judge(the_rule, scores).predictions
    assert judged.outcome == "undecided"
    assert judged.would_tell is not None
    low = -1.5 if "within" in threshold else threshold.get("above", -math.inf)
    high = threshold.get("within", threshold.get("below", math.inf))
    holds = low < center < high
    shown = []
    for seeds in (judged.would_tell - 1, judged.would_tell):
        drawn = np.random.default_rng(0).normal(center, 2.5, (40_000, seeds))
        half = stats.t.ppf(0.975, seeds - 1) * stats.sem(drawn, axis=1)
        left, right = drawn.mean(1) - half, drawn.mean(1) + half
        inside, outside = (low < left) & (right < high), (right < low) | (high < left)
        shown.append((inside if holds else outside).mean())
    assert shown[0] < 0.807
    assert shown[1] > 0.793


def test_what_no_thousand_seeds_would_tell_has_no_number():
    scores = {"m": {"a": A}}
    mean = statistics.fmean(A.values())
    (far,) = judge(rule({"contrast": {"a": 1}, "above": mean + 1e-6}), scores).predictions
    assert (far.outcome, far.would_tell) == ("undecided", None)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"above": 1, "below": 2}, "expected one of above, below and within, but above, below"),
        ({}, "expected one of above, below and within, but none given"),
        ({"above": 0, "log": True}, "the threshold is a ratio"),
        ({"within": 0.5, "log": True}, "within is a ratio"),
        ({"above": 0, "measure": "n"}, "there is no measure 'n'"),
        ({"above": 0, "contrast": {}}, "at least 1"),
    ],
)
def test_a_rule_that_cannot_be_judged_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        rule({"contrast": {"a": 1}, **changes})


@pytest.mark.parametrize(
    ("measure", "told"),
    [
        ({"read": "test", "over": "data.batch_size"}, "over and by belong together"),
        ({"read": "test", "over": "data.batch_size", "by": "largest"}, "at_least belongs"),
        ({"read": "tset"}, "tset"),
    ],
)
def test_a_measure_that_reads_nothing_is_refused(measure, told):
    with pytest.raises(ValueError, match=told):
        rule({"contrast": {"a": 1}, "above": 0}, measures={"m": measure})
