"""Ranks over tasks: hand-computed values and Demsar's tables."""

import pytest
from scipy import stats

from normlab.inference.ranks import rank

SCORES = {
    "a": [0.9, 0.8, 0.7, 0.6],
    "b": [0.8, 0.8, 0.9, 0.5],
    "c": [0.1, 0.2, 0.3, 0.4],
}


def test_mean_ranks_by_hand_with_ties_shared():
    found = rank(SCORES)
    # Task by task a: 1, 1.5, 2, 1; b: 2, 1.5, 1, 2; c: always 3.
    assert found.ranks == {"a": 5.5 / 4, "b": 6.5 / 4, "c": 3.0}
    assert list(found.ranks) == ["a", "b", "c"]
    assert found.tasks == 4


def test_friedmans_test_by_hand():
    # Without ties: 12 N / (k (k + 1)) · (sum of squared mean ranks - k (k + 1)² / 4).
    scores = {"a": [3.0, 3.0, 3.0, 2.0], "b": [2.0, 2.0, 2.0, 3.0], "c": [1.0, 1.0, 1.0, 1.0]}
    statistic = 12 * 4 / 12 * (1.25**2 + 1.75**2 + 3.0**2 - 3 * 16 / 4)
    assert rank(scores).p == pytest.approx(stats.chi2.sf(statistic, 2))


@pytest.mark.parametrize(
    ("arms", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)]
)
def test_the_critical_difference_is_that_of_demsars_table(arms, quantile):
    tasks = 14
    scores = {str(i): [float(i)] * tasks for i in range(arms)}
    expected = quantile * (arms * (arms + 1) / (6 * tasks)) ** 0.5
    assert rank(scores).critical_difference == pytest.approx(expected, abs=0.001)


def test_groups_are_the_largest_sets_that_are_not_told_apart():
    tasks = 30
    scores = {name: [float(place)] * tasks for place, name in enumerate("dcba")}
    # Ranks 1, 2, 3, 4, critical difference 0.86: all are told apart.
    assert rank(scores).groups == ()
    # At 10 tasks it is 1.48: neighbours are not.
    fewer = {name: it[:10] for name, it in scores.items()}
    assert rank(fewer).groups == (("a", "b"), ("b", "c"), ("c", "d"))
    # At 4 tasks it is 2.35, at 2 it is 3.32.
    assert rank({name: it[:4] for name, it in scores.items()}).groups == (
        ("a", "b", "c"),
        ("b", "c", "d"),
    )
    assert rank({name: it[:2] for name, it in scores.items()}).groups == (("a", "b", "c", "d"),)


def test_arms_that_tie_everywhere_are_alike_and_two_arms_have_no_friedman_test():
    assert rank({name: [0.5, 0.6] for name in "abc"}).p == 1.0
    assert rank({name: [0.5, 0.6] for name in "abc"}).ranks == {"a": 2.0, "b": 2.0, "c": 2.0}
    assert rank({"a": [0.5, 0.6], "b": [0.4, 0.7]}).p is None


@pytest.mark.parametrize(
    "scores", [{"a": [0.5, 0.6]}, {"a": [0.5], "b": [0.6]}, {"a": [0.5, 0.6], "b": [0.6]}]
)
def test_too_few_arms_or_tasks_have_no_ranks(scores):
    with pytest.raises(ValueError, match="at least two arms"):
        rank(scores)
