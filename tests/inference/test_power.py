"""How many pairs a study takes: against tables, simulations and the test itself."""

import math

import numpy as np
import pytest
from scipy import stats

from normlab.inference.pairs import all_pairs
from normlab.inference.power import (
    FEWEST_PAIRS,
    enough_pairs,
    pairs_for_power,
    smallest_shown,
    too_few,
)


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
    assert pairs_for_power(0.01, 0.0, 0.05) == FEWEST_PAIRS
    assert pairs_for_power(100.0, 1.0, 0.05) == FEWEST_PAIRS
    assert pairs_for_power(0.01, 0.01, 0.05, comparisons=5) > 10


def test_enough_seeds_grow_slowly_with_the_arms():
    assert [enough_pairs(0.05, math.comb(arms, 2)) for arms in (1, 2, 3, 6, 20, 1000)] == [
        *(5, 5, 6, 8, 12, 22)
    ]
    with pytest.raises(ValueError, match="level 5"):
        enough_pairs(5.0, 1)


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_the_smallest_difference_shown_is_where_the_test_begins_to_show_it(seeds):
    # Three arms, two of which are far from being shown to differ, so that the first step decides.
    pattern = np.random.default_rng(0).normal(size=seeds)
    pattern = (pattern - pattern.mean()) / np.std(pattern, ddof=1)
    size = smallest_shown(seeds, 0.05, 3)
    for factor, verdict in ((1.01, "better"), (0.99, "undecided")):
        ours = 0.001 * (pattern + factor * size)
        middle = ours / 2 + 0.01 * np.random.default_rng(1).normal(size=seeds)
        scores = {"a": ours, "b": np.zeros(seeds), "c": middle}
        found = all_pairs({k: [dict(enumerate(v))] for k, v in scores.items()}, ["abc"])
        assert found.compare([("a", "b")])["a", "b"].verdict == verdict
    assert smallest_shown(2, 0.05, 1) == math.inf


def test_too_few_seeds_are_told_with_the_number_that_would_do():
    assert too_few(8, 0.05, 15) == too_few(1, 0.05, 0) == ""
    assert too_few(1, 0.05, 3) == (
        "With 1 seed no difference can be shown. Take 6: with these a true difference of 2 "
        "standard deviations is shown in 4 of 5 studies."
    )
    assert too_few(3, 0.05, 15) == (
        "With 3 seeds the clearest of 15 differences is shown only where its mean is at least 10.0 "
        "times its standard deviation over the seeds. Take 8: with these a true difference of 2 "
        "standard deviations is shown in 4 of 5 studies."
    )
