"""Verdicts: the rule, the sentence, and how often they are wrong."""

import math

import numpy as np
import pytest
from scipy import stats

from normlab.inference.permutation import sign_flip_p
from normlab.inference.scores import paired_differences
from normlab.inference.verdict import compare, decide

BETTER = [0.004, 0.006, 0.009, 0.002, 0.007, 0.005, 0.008, 0.003]


def one(differences, **options):
    return compare({("ghost16", "batch"): [differences]}, **options)["ghost16", "batch"]


@pytest.mark.parametrize(
    ("interval", "p", "margin", "verdict"),
    [
        ((0.01, 0.03), 0.01, 0.0, "better"),
        ((-0.03, -0.01), 0.01, 0.0, "worse"),
        ((0.01, 0.03), 0.05, 0.0, "better"),  # at most the level
        ((0.01, 0.03), 0.06, 0.0, "undecided"),  # the interval without the test
        ((-0.01, 0.03), 0.01, 0.0, "undecided"),  # the test without the interval
        ((0.0, 0.03), 0.01, 0.0, "undecided"),
        ((-0.01, 0.01), 0.9, 0.02, "equivalent"),
        ((0.001, 0.01), 0.01, 0.02, "equivalent"),  # significant, and too small to matter
        ((-0.01, 0.02), 0.9, 0.02, "undecided"),
        ((0.001, 0.03), 0.01, 0.02, "better"),
        (None, 0.01, 0.02, "undecided"),
    ],
)
def test_the_rule(interval, p, margin, verdict):
    assert decide(interval, p, margin, 0.05) == verdict


def test_numbers_are_scipys_for_one_task():
    found = one(BETTER)
    expected = stats.ttest_1samp(BETTER, 0).confidence_interval(0.95)
    assert found.difference.value == pytest.approx(np.mean(BETTER))
    assert found.difference.interval == pytest.approx(expected)
    assert found.p == found.adjusted_p == sign_flip_p([BETTER]) == 2 / 2**8
    assert found.bootstrap == pytest.approx(expected, abs=0.0005)
    assert (found.pairs, found.needed) == ((8,), 6)


def test_better_and_worse_say_effect_interval_pairs_and_p_in_this_order():
    low, high = (100 * it for it in stats.ttest_1samp(BETTER, 0).confidence_interval(0.95))
    assert one(BETTER).sentence == (
        f"ghost16 is better than batch by 0.55 points [{low:.2f}, {high:.2f}] "
        "(8 paired seeds, p = 0.0078)."
    )
    worse = one([-it for it in BETTER])
    assert worse.verdict == "worse"
    assert worse.sentence == (
        f"ghost16 is worse than batch by 0.55 points [{low:.2f}, {high:.2f}] "
        "(8 paired seeds, p = 0.0078)."
    )


def test_holms_correction_is_over_all_comparisons_and_is_said():
    arms = {"a": [BETTER], "b": [BETTER[::-1]], "c": [[0.01, -0.01] * 4]}
    pairs = compare({(arm, "batch"): differences for arm, differences in arms.items()})
    assert list(pairs) == [(arm, "batch") for arm in "abc"]
    found = {arm: it for (arm, _), it in pairs.items()}
    assert found["a"].adjusted_p == found["b"].adjusted_p == 3 * 2 / 2**8
    assert found["a"].verdict == "better"
    assert "p = 0.023 after Holm's correction for 3 comparisons)" in found["a"].sentence
    assert found["c"].verdict == "undecided"
    assert found["c"].needed == 7


def test_within_the_margin_it_is_no_different():
    found = one(BETTER, margin=0.01)
    assert found.verdict == "equivalent"
    assert found.sentence.startswith(
        "ghost16 is no different from batch within 1.00 points: +0.55 points ["
    )


def test_undecided_says_how_many_pairs_would_show_it():
    found = one([0.02, -0.01, 0.015, -0.005, 0.01, -0.01, 0.005, 0.003])
    assert found.verdict == "undecided"
    assert found.sentence.startswith("It is undecided whether ghost16 differs from batch: +0.35")
    assert found.sentence.endswith(
        f" A difference of this size and spread takes about {found.needed_for_spread:.0f} pairs "
        "to show."
    )
    assert 60 < found.needed_for_spread < 90  # (1.96 + 0.84)² · (1.13 / 0.35)² is 82


def test_too_few_pairs_are_said_before_any_p():
    found = one([0.011, 0.009, 0.010, 0.012, 0.008])
    assert found.verdict == "undecided"
    assert not found.within_reach
    assert found.difference.interval[0] > 0  # and yet
    sentence = found.sentence
    assert (
        "(5 paired seeds). Whatever the data, 5 pairs cannot show a difference at p = 0.05"
        in sentence
    )
    assert sentence.index("that takes 6 pairs. Here p = 0.062.") > sentence.index("cannot show")
    assert sentence.endswith("takes about 6 pairs to show.")


def test_holm_over_many_comparisons_takes_more_pairs():
    arms = {(str(i), "batch"): [np.random.default_rng(i).normal(0, 1, 6)] for i in range(7)}
    found = compare(arms)["0", "batch"]
    assert found.needed == 9
    assert (
        "6 pairs cannot show a difference at p = 0.05 after Holm's correction for 7 comparisons: "
        "that takes 9 pairs" in found.sentence
    )


def test_one_seed_decides_nothing():
    found = one([0.5], margin=1.0)
    assert (found.verdict, found.difference.interval, found.needed_for_spread) == (
        "undecided",
        None,
        None,
    )
    assert found.sentence.startswith(
        "It is undecided whether ghost16 differs from batch: +50.00 points (1 paired seed). "
        "Whatever the data, 1 pair cannot show a difference at p = 0.05: that takes 6 pairs. "
        "Here p = 1."
    )


def test_equal_differences_say_nothing_of_the_spread_when_they_are_few():
    # 0.3 - 0.2 and 0.2 - 0.1 differ by rounding only.
    few = one(np.array([0.3, 0.2, 0.4]) - np.array([0.2, 0.1, 0.3]), margin=0.2)
    assert few.equal
    assert few.verdict == "undecided"
    assert "All pairs differ by the same" in few.sentence
    assert one([0.1] * 8).verdict == "better"
    assert one([0.0] * 8, margin=0.01).verdict == "equivalent"
    assert one([0.0] * 8).verdict == "undecided"
    assert "+0.00 points [0.00, 0.00]" in one([0.0] * 8).sentence


def test_diverged_runs_are_the_worst_outcome_and_are_named():
    ours = [0.9, 0.91, 0.92, 0.9, 0.9, 0.0, 0.91, 0.9]
    theirs = [0.89, 0.9, 0.9, 0.89, 0.88, 0.9, 0.89, 0.89]
    found = one(paired_differences([ours], [theirs])[0], diverged={"ghost16": 1})
    assert found.verdict == "undecided"
    assert found.difference.value == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert found.sentence.endswith(
        "Diverged, counted as the worst outcome: 1 run of ghost16, 0 runs of batch."
    )


def test_infinite_losses_leave_no_interval_and_no_claim():
    found = one([-math.inf] * 7 + [0.1])
    assert (found.verdict, found.difference.interval) == ("undecided", None)
    assert found.p == 4 / 2**8  # the finite difference may have either sign
    assert "-inf points (8 paired seeds, p = 0.016)" in found.sentence


def test_several_tasks_weigh_the_same():
    tasks = [np.array(BETTER), np.array(BETTER[:4]) + 0.01]
    found = compare({("ghost16", "batch"): tasks})["ghost16", "batch"]
    assert found.difference.value == pytest.approx(
        (np.mean(BETTER) + np.mean(BETTER[:4]) + 0.01) / 2
    )
    assert found.pairs == (8, 4)
    assert "(12 pairs over 2 tasks, p < 0.001)" in found.sentence


@pytest.mark.parametrize("margin", [-0.1, math.inf])
def test_a_margin_that_is_no_difference_of_scores_is_an_error(margin):
    with pytest.raises(ValueError, match="expected a difference of scores, 0 or more"):
        one(BETTER, margin=margin)


def test_claims_under_the_null_are_rarer_than_the_level():
    # Three arms and a baseline, all alike in truth: a study errs when it claims any difference.
    draw, wrong, simulations = np.random.default_rng(0), 0, 250
    for _ in range(simulations):
        baseline, *arms = draw.normal(0.9, 0.01, (4, 8))
        found = compare({(str(i), "b"): [it - baseline] for i, it in enumerate(arms)})
        wrong += any(it.verdict in ("better", "worse") for it in found.values())
    assert wrong / simulations <= 0.05


@pytest.mark.parametrize("pairs", [3, 8])
def test_equivalence_is_claimed_wrongly_less_often_than_the_level(pairs):
    # The true difference is the margin, so every claim is wrong.
    draws = np.random.default_rng(0).normal(0.005, 0.003, (300, pairs))
    wrong = np.mean([one(row, margin=0.005).verdict == "equivalent" for row in draws])
    assert wrong <= 0.05


def test_claims_are_made_where_they_are_true():
    draws = np.random.default_rng(0).normal(0.0, 0.003, (100, 10))
    equivalent = [one(row, margin=0.005).verdict == "equivalent" for row in draws]
    better = [one(row + 0.01, margin=0.005).verdict == "better" for row in draws]
    assert min(np.mean(equivalent), np.mean(better)) > 0.95
