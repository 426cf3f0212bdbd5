"""Verdicts: the rule, the sentence, and how often they are wrong."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from normlab.inference.estimates import Estimate
from normlab.inference.pairs import all_pairs
from normlab.inference.permutation import sign_flip_p
from normlab.inference.verdict import decide, margin_in_words

BETTER = [0.004, 0.006, 0.009, 0.002, 0.007, 0.005, 0.008, 0.003]


def by_task(*scores):
    return [dict(enumerate(it)) for it in scores]


def one(ours, theirs=None, **options):
    """The comparison of ghost16 with batch, by their scores."""
    theirs = [0.0] * len(ours) if theirs is None else theirs
    scores = {"ghost16": by_task(ours), "batch": by_task(theirs)}
    found = all_pairs(scores, [["ghost16", "batch"]], **options)
    return found.compare([("ghost16", "batch")])["ghost16", "batch"]


@pytest.mark.parametrize(
    ("interval", "p", "margin", "verdict"),
    [
        ((0.01, 0.03), 0.01, 0.0, "better"),
        ((-0.03, -0.01), 0.01, 0.0, "worse"),
        ((0.01, 0.03), 0.05, 0.0, "better"),  # at most the level
        ((-0.01, 0.03), 0.06, 0.0, "undecided"),
        ((-0.01, 0.01), 0.9, 0.02, "equivalent"),
        ((0.001, 0.01), 0.01, 0.02, "equivalent"),  # significant, and too small to matter
        ((-0.01, 0.02), 0.9, 0.02, "undecided"),
        ((0.001, 0.03), 0.01, 0.02, "better"),
        ((0.0, 0.0), 1.0, 0.02, "equivalent"),
        ((0.0, 0.0), 1.0, 0.0, "undecided"),
        (None, 1.0, 0.02, "undecided"),
    ],
)
def test_the_rule(interval, p, margin, verdict):
    assert decide(interval, p, margin, 0.05) == verdict


def test_numbers_are_scipys_for_two_arms():
    found, expected = one(BETTER), stats.ttest_1samp(BETTER, 0)
    assert found.difference.value == pytest.approx(np.mean(BETTER))
    assert found.difference.interval == pytest.approx(expected.confidence_interval(0.95))
    assert found.p == found.adjusted_p == pytest.approx(expected.pvalue)
    assert found.sign_flip_p == sign_flip_p([BETTER]) == 2 / 2**8
    assert found.deviation == pytest.approx(np.std(BETTER, ddof=1))
    assert found.pairs == (8,)


def test_better_and_worse_say_effect_interval_pairs_and_p_in_this_order():
    low, high = (100 * it for it in stats.ttest_1samp(BETTER, 0).confidence_interval(0.95))
    said = f"by 0.55 points [{low:.2f}, {high:.2f}] (8 paired seeds; p < 0.001)."
    assert one(BETTER).sentence == f"ghost16 is better than batch {said}"
    worse = one([-it for it in BETTER])
    assert worse.verdict == "worse"
    assert worse.sentence == f"ghost16 is worse than batch {said}"


@pytest.mark.parametrize(
    ("p", "level", "told"),
    [
        (0.0312, 0.05, "p = 0.031"),
        (0.05, 0.05, "p = 0.05"),
        (0.05004, 0.05, "p = 0.05004"),
        (0.0004, 0.05, "p < 0.001"),
        (0.0004, 0.0001, "p = 0.0004"),
        (0.000996, 0.001, "p < 0.001"),
        (1.0, 0.5, "p = 1"),
    ],
)
def test_a_rounded_p_lies_on_the_side_of_the_level_that_the_verdict_says(p, level, told):
    # "undecided, p = 0.05" at 0.05 would contradict itself.
    assert replace(one(BETTER), adjusted_p=p, level=level).p_in_words == told


def test_within_the_margin_it_is_no_different():
    found = one(BETTER, margin=0.01)
    assert found.verdict == "equivalent"
    assert found.sentence.startswith(
        "ghost16 is equivalent to batch within 1.00 points: +0.55 points ["
    )


def test_undecided_says_how_many_pairs_would_show_it():
    found = one([0.02, -0.01, 0.015, -0.005, 0.01, -0.01, 0.005, 0.003])
    assert found.verdict == "undecided"
    assert found.sentence.startswith("It is undecided whether ghost16 differs from batch: +0.35")
    assert found.sentence.endswith(
        f" A difference of this size and spread takes about {found.needed:.0f} pairs to show."
    )
    assert 60 < found.needed < 90  # (1.96 + 0.84)² · (1.13 / 0.35)² is 82


def test_what_is_undecided_never_needs_fewer_pairs_than_there_are():
    draw = np.random.default_rng(0)
    for _ in range(200):
        table = draw.normal([[0], [2], [3]], 1, (3, 4))
        scores = {name: by_task(row) for name, row in zip("abc", table, strict=True)}
        for it in all_pairs(scores, ["abc"]).compare([("b", "a"), ("c", "a")]).values():
            assert it.verdict != "undecided" or it.needed > it.difference.count


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_decide_nothing(seeds):
    for ours in ([0.5] * seeds, [0.0] * seeds, [0.5, 0.6][:seeds]):
        found = one(ours, margin=1.0)
        assert (found.verdict, found.difference.interval, found.needed) == ("undecided", None, None)
        assert found.p == found.adjusted_p == 1.0
        assert found.p_in_words == "too few pairs"
    assert found.sentence.endswith("decide nothing; 5 seeds would show a clear difference.")


@pytest.mark.parametrize("seeds", [3, 8])
def test_arms_that_are_equal_in_every_pair_are_equivalent_and_without_a_margin_undecided(seeds):
    scores = [1.0, 0.98, 0.99, 1.0, 1.0, 0.97, 1.0, 0.99][:seeds]
    found = one(scores, scores, margin=0.005)
    assert (found.verdict, found.difference.interval) == ("equivalent", (0.0, 0.0))
    assert found.sentence.startswith(
        "ghost16 is equivalent to batch within 0.50 points: +0.00 points [0.00, 0.00] "
    )
    assert found.sentence.endswith("They are equal in every pair.")
    assert one([1.0] * seeds, [1.0] * seeds, margin=0.005).verdict == "equivalent"
    assert one(scores, scores).verdict == "undecided"


def test_float32_means_of_the_same_counts_tie():
    ours = [float(np.float32(350 / 360)), float(np.float32(0.9)), float(np.float32(0.95))]
    found = one(ours, [350 / 360, 0.9, 0.95], margin=0.005)
    assert found.tied
    assert found.verdict == "equivalent"


def test_equal_differences_are_not_taken_for_differences_without_spread():
    # Of a test set of 360, one example more in each of three pairs: rounding alone does that.
    theirs = np.array([340, 343, 341]) / 360
    found = one(theirs + 1 / 360, theirs)
    assert not found.tied
    assert found.verdict == "undecided"
    # Three quarters of the square of the step: t = sqrt(3) / sqrt(3 / 4), two degrees of freedom.
    assert found.p == pytest.approx(2 * stats.t.sf(2, 2))
    assert one(theirs + 20 / 360, theirs).verdict == "better"


def test_diverged_runs_are_the_worst_outcome_and_are_named():
    ours = [0.9, 0.91, 0.92, 0.9, 0.9, 0.0, 0.91, 0.9]
    theirs = [0.89, 0.9, 0.9, 0.89, 0.88, 0.9, 0.89, 0.89]
    found = one(ours, theirs, diverged={"ghost16": 1})
    assert found.verdict == "undecided"
    assert found.difference.value == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert found.sentence.endswith(
        "Diverged, counted as the worst outcome: 1 run of ghost16, 0 runs of batch."
    )


def test_infinite_losses_leave_no_interval_and_no_claim():
    found = one([-math.inf] * 7 + [0.1])
    assert (found.verdict, found.difference.interval) == ("undecided", None)
    assert found.sign_flip_p == 4 / 2**8  # the finite difference may have either sign
    assert found.sentence.endswith("An infinite difference says nothing of the spread.")


@pytest.mark.parametrize("margin", [-0.1, math.inf])
def test_a_margin_that_is_no_difference_of_scores_is_an_error(margin):
    with pytest.raises(ValueError, match="expected a difference of scores, 0 or more"):
        one(BETTER, margin=margin)


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


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict", "told"),
    [
        # Rounded to "[0.00, 1.10]", which leaves it open whether 0 lies inside.
        (0.0055, 0.00003, 0.01097, "better", "by 0.550 points [0.003, 1.097]"),
        (-0.0055, -0.01097, -0.00003, "worse", "by 0.550 points [0.003, 1.097]"),
        (0.0055, -0.00003, 0.01103, "undecided", "+0.550 points [-0.003, 1.103]"),
        # Rounded to 0.50, the margin, beside "equivalent" and beside "undecided".
        (
            0.001,
            -0.0029,
            0.00496,
            "equivalent",
            "0.50 points: +0.100 points [-0.290, 0.496]",
        ),
        (0.001, -0.003, 0.00504, "undecided", "+0.100 points [-0.300, 0.504]"),
        (0.00002, -0.002, 0.00204, "equivalent", "+0.002 points [-0.200, 0.204]"),
        (0.01, 0.002, 0.018, "better", "by 1.00 points [0.20, 1.80]"),
        (0.0, 0.0, 0.0, "equivalent", "+0.00 points [0.00, 0.00]"),
        (1e-12, -0.01, 0.01, "undecided", "+0.00 points [-1.00, 1.00]"),
    ],
)
def test_what_is_told_of_a_difference_never_contradicts_its_verdict(
    value, low, high, verdict, told
):
    """An end of 0.003 points stood as 0.00 beside "better"."""
    p = 0.01 if low * high > 0 else 0.5
    assert decide((low, high), p, 0.005, 0.05) == verdict
    found = replace(
        one(BETTER, margin=0.005),
        difference=Estimate(value, (low, high), 8),
        adjusted_p=p,
        verdict=verdict,
    )
    assert told in found.sentence


def test_a_margin_is_told_with_all_its_digits():
    """0.125 points were told as 0.12."""
    assert [margin_in_words(it) for it in (0.005, 0.02, 0.00125)] == ["0.50", "2.00", "0.125"]
