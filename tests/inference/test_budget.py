"""Expected best of n trials, against all subsets."""

import itertools
import math

import numpy as np
import pytest

from normlab.inference.budget import expected_best


def test_two_of_three_trials_by_hand():
    # The pairs' best are 0.6, 0.9, 0.9.
    found = expected_best([0.9, 0.5, 0.6])
    assert found.trials.tolist() == [1, 2, 3]
    assert found.validation == pytest.approx([2.0 / 3, 2.4 / 3, 0.9])
    assert found.test is None


@pytest.mark.parametrize("ties", [False, True])
def test_it_is_the_mean_over_all_subsets(ties):
    draw = np.random.default_rng(0)
    validation = draw.random(9).round(1 if ties else 8)
    test = draw.random(9)
    assert (len(set(validation)) < 9) == ties
    found = expected_best(validation, test)
    for n in range(1, 10):
        best, chosen = [], []
        for subset in map(list, itertools.combinations(range(9), n)):
            highest = validation[subset].max()
            best.append(highest)
            # All of those that tie are as likely to be chosen.
            chosen.append(np.mean([test[i] for i in subset if validation[i] == highest]))
        assert found.validation[n - 1] == pytest.approx(np.mean(best), rel=1e-12)
        assert found.test[n - 1] == pytest.approx(np.mean(chosen), rel=1e-12)


def test_a_test_score_chosen_by_validation_can_fall_with_the_budget():
    found = expected_best([0.1, 0.2, 0.3], [0.9, 0.5, 0.1])
    assert found.test == pytest.approx([0.5, (0.5 + 0.1 + 0.1) / 3, 0.1])


def test_it_does_not_depend_on_the_order_of_the_trials():
    draw = np.random.default_rng(0)
    validation, test = draw.random(12).round(1), draw.random(12)
    order = draw.permutation(12)
    found, other = expected_best(validation, test), expected_best(validation[order], test[order])
    np.testing.assert_allclose(found.validation, other.validation, rtol=1e-12)
    np.testing.assert_allclose(found.test, other.test, rtol=1e-12)


def test_two_thousand_trials_do_not_overflow():
    found = expected_best(np.arange(2000.0))
    # The mean of the largest of n of 0..N-1 is n (N + 1) / (n + 1) - 1.
    n = found.trials
    np.testing.assert_allclose(found.validation, n * 2001 / (n + 1) - 1, rtol=1e-9)


def test_the_estimate_is_unbiased():
    # Of few trials of a uniform distribution, whose best of n is expected at n / (n + 1).
    draws = np.random.default_rng(0).random((5_000, 5))
    mean = np.mean([expected_best(row).validation for row in draws], axis=0)
    np.testing.assert_allclose(mean, [1 / 2, 2 / 3, 3 / 4, 4 / 5, 5 / 6], atol=0.012)


def test_an_infinitely_bad_trial_counts_only_while_it_can_be_the_best():
    assert expected_best([-math.inf, 0.5, 0.7]).validation == pytest.approx(
        [-math.inf, (0.5 + 0.7 + 0.7) / 3, 0.7]
    )


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (([],), "at least one number a trial"),
        (([0.5, math.nan],), "the worst score for one that diverged"),
        (([0.5, 0.6], [0.5]), "for 2 trials; expected one each"),
    ],
)
def test_scores_that_cannot_be_used_are_named(scores, message):
    with pytest.raises(ValueError, match=message):
        expected_best(*scores)
