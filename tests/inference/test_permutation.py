"""The sign-flip test, the pairs it needs, and Holm's correction."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from normlab.inference.permutation import (
    fewest_pairs,
    holm,
    joint_sign_flip_p,
    pairs_for_power,
    sign_flip_p,
    smallest_p,
)


@pytest.mark.parametrize("pairs", [1, 2, 5, 8, 11])
def test_p_is_that_of_scipys_exact_test(pairs):
    differences = np.random.default_rng(pairs).normal(0.5, 1, pairs)
    if pairs == 1:
        assert sign_flip_p([differences]) == 1.0  # which SciPy does not take
        return
    found = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p([differences]) == pytest.approx(found.pvalue, abs=1e-12)


def test_ties_that_rounding_would_part_count_as_ties():
    # 0.1 + 0.2 - 0.3 is not 0 in binary: all differences are multiples of 0.1.
    tenths = [1, 2, -3, 4, 5, 1, -2]
    sums = [sum(s * t for s, t in zip(signs, tenths, strict=True)) for signs in flips(7)]
    expected = np.mean([abs(it) >= abs(sum(tenths)) for it in sums])
    assert sign_flip_p([[it / 10 for it in tenths]]) == expected


def test_of_several_tasks_the_statistic_is_the_mean_over_tasks():
    tasks = [np.array([0.3, 0.1, -0.05]), np.array([0.2, 0.4]), np.array([-0.3, 0.6, 0.1, 0.2])]
    observed = abs(np.mean([np.mean(it) for it in tasks]))
    sums = []
    for signs in flips(9):
        parts = np.split(np.array(signs), [3, 5])
        sums.append(np.mean([np.mean(a * b) for a, b in zip(parts, tasks, strict=True)]))
    expected = np.mean(np.abs(sums) >= observed - 1e-12)
    assert sign_flip_p(tasks) == pytest.approx(expected)


def test_of_more_than_twenty_pairs_random_flips_come_near_the_exact_p():
    differences = np.random.default_rng(0).integers(-3, 6, 24)
    # The distribution of the sum by convolution: every difference adds or subtracts itself.
    ways = np.array([1.0])
    for it in np.abs(differences):
        wider = np.zeros(ways.size + 2 * it)
        wider[: ways.size] += ways
        wider[2 * it :] += ways
        ways = wider
    sums = np.arange(ways.size) - ways.size // 2
    exact = np.sum(ways[np.abs(sums) >= abs(differences.sum())]) / 2.0**24
    found = sign_flip_p([differences.astype(float)])
    assert found == sign_flip_p([differences.astype(float)])
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 99_999))
    assert sign_flip_p([np.ones(40)]) == 1e-5


def test_an_infinite_difference_is_larger_than_all_finite_ones_together():
    finite = [3.0, 5.0, 1.0, 2.0, 4.0, 6.0]
    assert sign_flip_p([[*finite, -math.inf]]) == sign_flip_p([[*finite, -1000.0]])
    assert sign_flip_p([[-math.inf] * 6]) == 2 / 2**6
    assert sign_flip_p([[math.inf, -math.inf]]) == 1.0


def test_equal_and_zero_differences():
    assert sign_flip_p([[0.0] * 8]) == 1.0
    assert sign_flip_p([[0.1] * 8]) == 2 / 2**8


@pytest.mark.parametrize("pairs", [1, 2, 5, 6, 10, 20])
def test_the_smallest_p_is_that_of_equal_differences(pairs):
    assert smallest_p(pairs) == sign_flip_p([np.full(pairs, 0.1)])


def test_five_pairs_cannot_reach_five_percent_and_holm_takes_more():
    assert smallest_p(5) == 0.0625
    assert smallest_p(1, 4) == 1.0
    assert [fewest_pairs(0.05, m) for m in (1, 2, 6, 7, 12, 13)] == [6, 7, 8, 9, 9, 10]
    assert fewest_pairs(0.01) == 8
    with pytest.raises(ValueError, match=r"level 5.0"):
        fewest_pairs(5.0)
    with pytest.raises(ValueError, match="cannot be reached"):
        fewest_pairs(1e-7)


@pytest.mark.parametrize(("size", "expected"), [(1.0, 10), (0.5, 34), (0.2, 199)])
def test_pairs_for_power_are_those_of_the_tables(size, expected):
    # Paired t-test at 0.05 two-sided and power 0.8, as in Cohen's tables and G*Power.
    assert pairs_for_power(-0.01 * size, 0.01, 0.05) == expected


def test_pairs_for_power_show_the_difference_as_often_as_asked():
    pairs = int(pairs_for_power(0.8, 1.0, 0.05))
    draws = np.random.default_rng(0).normal(0.8, 1.0, (20_000, pairs))
    power = np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue <= 0.05)
    fewer = np.mean(stats.ttest_1samp(draws[:, :-1], 0, axis=1).pvalue <= 0.05)
    assert fewer < 0.8 < power + 0.01


def test_pairs_for_power_at_the_ends():
    assert pairs_for_power(0.0, 0.01, 0.05) == math.inf
    assert pairs_for_power(1e-9, 0.01, 0.05) == math.inf
    assert pairs_for_power(0.01, 0.0, 0.05) == 6
    assert pairs_for_power(1.0, 0.01, 0.05, comparisons=6) == 8  # never fewer than can do at all
    assert pairs_for_power(0.01, 0.01, 0.05, comparisons=5) > 10


def test_holm_by_hand():
    given = {"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.005, "e": 0.5}
    # In rising order 0.005 · 5, 0.01 · 4, 0.03 · 3, 0.04 · 2 (less than the one before), 0.5.
    expected = {"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.025, "e": 0.5}
    assert holm(given) == pytest.approx(expected)
    assert list(holm(given)) == list(given)
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize("pairs", [6, 8])
def test_the_test_holds_its_level_under_the_null(pairs):
    draws = np.random.default_rng(0).laplace(0, 1, (4000, pairs))
    rejected = np.mean([sign_flip_p([row]) <= 0.05 for row in draws])
    # Exact: the level is the largest multiple of 2 / 2^pairs up to 0.05, reached on average.
    reachable = math.floor(0.05 * 2**pairs / 2) * 2 / 2**pairs
    assert abs(rejected - reachable) < 4 * math.sqrt(reachable / 4000)


def test_holm_holds_the_error_of_the_family():
    # Five arms against one baseline, whose noise they share, all alike in truth.
    draw, false_findings, simulations = np.random.default_rng(0), 0, 1000
    for _ in range(simulations):
        baseline = draw.normal(0, 1, 10)
        arms = draw.normal(0, 1, (5, 10))
        p = {str(i): sign_flip_p([arm - baseline]) for i, arm in enumerate(arms)}
        false_findings += min(holm(p).values()) <= 0.05
    assert false_findings / simulations < 0.05 + 3 * math.sqrt(0.05 * 0.95 / simulations)
    assert false_findings > 0


def flips(pairs):
    return itertools.product([1, -1], repeat=pairs)


@pytest.mark.parametrize("pairs", [2, 7, 12])
def test_joint_flips_of_one_comparison_are_the_exact_test(pairs):
    differences = np.random.default_rng(pairs).normal(0.5, 1, pairs)
    found = joint_sign_flip_p({"only": [dict(enumerate(differences))]})
    assert found == {"only": pytest.approx(sign_flip_p([differences]))}


def test_joint_flips_step_down_over_the_largest_statistics():
    scores = np.random.default_rng(3).normal([[0], [0.4], [1.5]], 1, (3, 6))
    pairs = {(a, b): scores[a] - scores[b] for a, b in [(0, 1), (0, 2), (1, 2)]}
    length = {pair: np.linalg.norm(it) for pair, it in pairs.items()}
    left, expected, reached = dict(pairs), {}, 0.0
    while left:
        pair = max(left, key=lambda it: abs(left[it].sum()) / length[it])
        observed = abs(left[pair].sum()) / length[pair]
        largest = [max(abs(it @ signs) / length[p] for p, it in left.items()) for signs in flips(6)]
        reached = max(reached, np.mean(np.array(largest) >= observed - 1e-12))
        expected[pair] = reached
        del left[pair]
    found = joint_sign_flip_p({pair: [dict(enumerate(it))] for pair, it in pairs.items()})
    assert list(found) == list(pairs)
    assert found == pytest.approx(expected)
    assert len(set(found.values())) > 1


def test_joint_flips_show_a_clear_order_of_many_arms_where_holm_cannot():
    draw = np.random.default_rng(0)
    scores = draw.normal(3 * np.arange(10)[:, None], 1, (10, 8))
    pairs = {(a, b): scores[a] - scores[b] for a, b in itertools.combinations(range(10), 2)}
    found = joint_sign_flip_p({pair: [dict(enumerate(it))] for pair, it in pairs.items()})
    assert max(p for pair, p in found.items() if 9 in pair) == pytest.approx(2 / 2**8)
    assert min(holm({pair: sign_flip_p([it]) for pair, it in pairs.items()}).values()) > 0.05


def test_joint_flips_take_seeds_that_not_all_have_equal_arms_and_many_seeds():
    found = joint_sign_flip_p(
        {"few": [{3: 0.1, 4: 0.2}], "more": [{3: 0.1, 5: -0.2, 6: 0.3}], "equal": [{3: 0.0}]}
    )
    assert found["equal"] == 1
    # Of the two that "few" has, both signs alike in half of the flips, or "more" at its largest.
    assert found["few"] == pytest.approx(0.5 + 0.5 * 0.25)
    draw = np.random.default_rng(1)
    differences = draw.normal(0.5, 1, 18)
    many = joint_sign_flip_p({"only": [dict(enumerate(differences))]})["only"]
    assert many == pytest.approx(sign_flip_p([differences]), abs=0.005)
    assert joint_sign_flip_p({}) == {}
