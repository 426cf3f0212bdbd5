"""How scores are told: digits, units, direction."""

import math

import pytest

from normlab.inference.measure import SHARE, Measure, in_units
from normlab.inference.pairs import all_pairs

ACCURACY = Measure("accuracy", share=True)
RMSE = Measure("rmse", higher_is_better=False, title="RMSE", unit="m")
ERROR = Measure("error_rate", higher_is_better=False, share=True)
R2 = Measure("r2", title="R²")


def test_shares_are_told_in_percent_and_nothing_else_is():
    assert ACCURACY.told(0.98123) == "98.12%"
    assert (ACCURACY.heading("test"), ACCURACY.noun) == ("test accuracy, %", "points")
    assert (ERROR.heading("test"), ERROR.words) == ("test error rate, %", "error rate")
    assert RMSE.told(0.98123) == "0.9812 m"
    assert (RMSE.heading("test"), RMSE.noun) == ("test RMSE, m", "m")
    assert (R2.heading(), R2.noun, R2.told(0.98123)) == ("R²", "R²", "0.9812")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0, "0.0"),
        (12345.678, "12,346"),
        (1.5e9, "1.500e+09"),
        (1.234e-5, "1.234e-05"),
        (-0.5, "-0.5000"),
        (math.inf, "∞"),
    ],
)
def test_numbers_of_any_size_have_four_digits(value, told):
    assert R2.number(value) == told


def test_the_ends_of_an_interval_have_the_digits_of_its_middle():
    assert [RMSE.number(it, 0.1299) for it in (0.08699, 0.1299)] == ["0.0870", "0.1299"]


def test_the_worst_is_the_end_of_shares_and_infinite_of_others():
    assert [it.worst for it in (ACCURACY, ERROR, R2, RMSE)] == [0, 1, -math.inf, math.inf]
    assert [it.score(0.25) for it in (ACCURACY, ERROR, R2, RMSE)] == [0.25, -0.25, 0.25, -0.25]
    assert math.copysign(1, RMSE.score(0.0)) == 1
    assert in_units(-1e-9, 2, SHARE) == "0.00"


def test_the_lower_is_the_better_one_and_differences_are_those_of_what_was_measured():
    base = {seed: 2.0 + 0.01 * (seed % 3) for seed in range(6)}
    new = {seed: it - 0.5 + 0.001 * seed for seed, it in base.items()}
    scores = {
        name: [{seed: RMSE.score(it) for seed, it in of.items()}]
        for name, of in (("base", base), ("new", new))
    }
    pairs = all_pairs(scores, [["base", "new"]], measure=RMSE)
    found = pairs.compare([("new", "base"), ("base", "new")])
    ours, theirs = found["new", "base"], found["base", "new"]
    assert (ours.verdict, theirs.verdict) == ("better", "worse")
    assert ours.difference.value == pytest.approx(-0.4975)
    assert theirs.difference.value == pytest.approx(0.4975)
    low, high = ours.difference.interval
    assert low < -0.4975 < high < 0
    assert ours.lead == pytest.approx(0.4975)
    assert ours.sentence.startswith("new is better than base by 0.498 m [0.495, 0.500] (6 paired")
    assert theirs.sentence.startswith("base is worse than new by 0.498 m [0.495, 0.500] (6 paired")


def test_within_a_margin_in_the_metrics_own_unit_two_arms_are_equivalent():
    scores = {
        "base": [{seed: -2.0 - 0.01 * (seed % 3) for seed in range(6)}],
        "new": [{seed: -2.003 - 0.01 * ((seed + 1) % 3) for seed in range(6)}],
    }
    pairs = all_pairs(scores, [["base", "new"]], margin=0.1, measure=RMSE)
    (found,) = pairs.compare([("new", "base")]).values()
    assert found.verdict == "equivalent"
    assert "new is equivalent to base within 0.1 m: +0.0030 m" in found.sentence
