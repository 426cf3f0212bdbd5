"""The exact sign-flip test."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from normlab.inference.permutation import sign_flip_p, sign_flip_ps


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


@pytest.mark.parametrize("pairs", [6, 8])
def test_the_test_holds_its_level_under_the_null(pairs):
    draws = np.random.default_rng(0).laplace(0, 1, (4000, pairs))
    rejected = np.mean([sign_flip_p([row]) <= 0.05 for row in draws])
    # Exact: the level is the largest multiple of 2 / 2^pairs up to 0.05, reached on average.
    reachable = math.floor(0.05 * 2**pairs / 2) * 2 / 2**pairs
    assert abs(rejected - reachable) < 4 * math.sqrt(reachable / 4000)


@pytest.mark.parametrize("pairs", [3, 8, 20, 24])
def test_many_comparisons_at_once_have_the_p_values_of_each_alone(pairs):
    draws = np.random.default_rng(pairs).normal(0.3, 1, (5, pairs))
    together = sign_flip_ps([[row] for row in draws] + [[draws[0][:3], draws[1]]])
    assert together == [sign_flip_p([row]) for row in draws] + [
        sign_flip_p([draws[0][:3], draws[1]])
    ]


@pytest.mark.parametrize("pairs", [1, 2, 6, 13])
def test_the_smallest_p_is_that_of_equal_differences(pairs):
    assert sign_flip_p([np.full(pairs, 0.1)]) == 2.0 ** (1 - pairs)


def flips(pairs):
    return itertools.product([1, -1], repeat=pairs)
