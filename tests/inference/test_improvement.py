"""Probability of improvement and performance profiles."""

import math

import numpy as np
import pytest
from scipy import stats

from normlab.inference.improvement import probability_of_improvement
from normlab.inference.profiles import performance_profile


def test_it_is_mann_whitneys_u_with_ties_halved_averaged_over_tasks():
    ours, theirs = [[3.0, 1.0, 2.0], [5.0, 5.0]], [[2.0, 0.0], [5.0, 7.0, 5.0]]
    expected = [
        stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert expected == [4.5 / 6, 2 / 6]
    found = probability_of_improvement(ours, theirs)
    assert found.value == pytest.approx(np.mean(expected))
    assert found.count == 10
    back = probability_of_improvement(theirs, ours)
    assert back.value == pytest.approx(1 - found.value)


def test_it_is_the_same_each_time():
    ours, theirs = [[0.1, 0.5, 0.3]], [[0.2, 0.4, 0.35]]
    found = probability_of_improvement(ours, theirs)
    assert found == probability_of_improvement(ours, theirs)
    assert found.interval[0] < found.value < found.interval[1]


def test_complete_separation_and_single_runs_have_no_interval():
    assert probability_of_improvement([[2.0, 3.0]], [[0.0, 1.0]]).value == 1.0
    assert probability_of_improvement([[2.0, 3.0]], [[0.0, 1.0]]).interval is None
    assert probability_of_improvement([[0.5]], [[0.0, 1.0]]).interval is None


def test_infinitely_bad_runs_lose_and_tie_among_themselves():
    found = probability_of_improvement([[-math.inf, 1.0]], [[-math.inf, 0.0]])
    assert found.value == pytest.approx((0.5 + 0 + 1 + 1) / 4)


def test_different_numbers_of_tasks_are_an_error():
    with pytest.raises(ValueError, match="1 and of 2 tasks"):
        probability_of_improvement([[0.5]], [[0.5], [0.5]])


@pytest.mark.parametrize("count", [5, 8, 20])
@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_intervals_cover_the_truth(count, shift):
    simulations, draw = 200, np.random.default_rng(0)
    truth = stats.norm.cdf(shift / math.sqrt(2))
    covered = 0
    for _ in range(simulations):
        found = probability_of_improvement(
            [draw.normal(shift, 1, count)], [draw.normal(0, 1, count)]
        )
        covered += found.interval is None or found.interval[0] <= truth <= found.interval[1]
    assert covered / simulations > 0.95 - 3 * math.sqrt(0.95 * 0.05 / simulations)


def test_a_profile_is_the_share_of_runs_strictly_above():
    found = performance_profile([[0.1, 0.2, 0.3, 0.4], [0.2, 0.9]], np.array([0.0, 0.2, 0.35, 1.0]))
    assert found.share.tolist() == [1.0, (2 / 4 + 1 / 2) / 2, (1 / 4 + 1 / 2) / 2, 0.0]
    assert (found.low <= found.share).all()
    assert (found.share <= found.high).all()
    assert found.low[0] == found.high[0] == 1.0


def test_the_band_of_a_share_is_that_of_a_binomial():
    found = performance_profile([np.arange(40.0)], np.array([19.5]))
    expected = stats.binom(40, 0.5).ppf([0.025, 0.975]) / 40
    assert [found.low[0], found.high[0]] == pytest.approx(expected, abs=1 / 40)
