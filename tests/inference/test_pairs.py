"""All pairs of arms as one family: values against SciPy, intervals against p-values, errors."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from normlab.inference.correction import multipliers, step_down
from normlab.inference.pairs import all_pairs


def by_arm(table):
    """Arm -> scores on one task, of a row an arm."""
    return {chr(97 + place): [dict(enumerate(row))] for place, row in enumerate(table)}


def draws(arms, seeds, spread=1.0, seed=0):
    return np.random.default_rng(seed).normal(0.9, 0.01 * spread, (arms, seeds))


def compared(scores, groups=None, **options):
    groups = [list(scores)] if groups is None else groups
    pairs = [pair for names in groups for pair in itertools.combinations(names, 2)]
    return all_pairs(scores, groups, **options).compare(pairs)


def test_p_values_are_scipys_paired_t_corrected_by_shaffer():
    table = draws(4, 7) + 0.02 * np.arange(4)[:, None]
    found = compared(by_arm(table))
    expected = np.array([stats.ttest_rel(a, b).pvalue for a, b in itertools.combinations(table, 2)])
    assert [it.p for it in found.values()] == pytest.approx(expected, rel=1e-9)
    corrected = step_down(expected, multipliers([4]))
    assert [it.adjusted_p for it in found.values()] == pytest.approx(corrected, rel=1e-9)
    assert {it.comparisons for it in found.values()} == {6}


def test_either_order_of_two_arms_says_the_same_with_the_other_sign():
    found = all_pairs(by_arm(draws(3, 6)), ["abc"])
    for one, other in itertools.combinations("abc", 2):
        there, back = (found.compare([it])[it] for it in ((one, other), (other, one)))
        assert there.difference.value == -back.difference.value
        assert there.difference.interval == tuple(-it for it in back.difference.interval[::-1])
        assert (there.p, there.adjusted_p, there.sign_flip_p) == (
            *(back.p, back.adjusted_p, back.sign_flip_p),
        )
        opposite = {"better": "worse", "worse": "better"}
        assert there.verdict == opposite.get(back.verdict, back.verdict)


@pytest.mark.parametrize("arms", [2, 3, 6])
def test_an_interval_leaves_out_0_just_where_the_corrected_p_value_is_small(arms):
    kinds = set()
    for seed in range(60):
        table = draws(arms, 3 + seed % 6, seed=seed) + 0.015 * np.arange(arms)[:, None]
        for it in compared(by_arm(np.round(table * 360) / 360 if seed % 2 else table)).values():
            low, high = it.difference.interval
            assert (it.adjusted_p <= 0.05) == (low > 0 or high < 0)
            assert (it.verdict != "undecided") == (it.adjusted_p <= 0.05)
            kinds.add(it.verdict)
    assert kinds == {"worse", "undecided"}


def test_intervals_are_never_narrower_than_students():
    table = draws(4, 6) + 0.01 * np.arange(4)[:, None]
    for (one, other), it in compared(by_arm(table)).items():
        a, b = (table[ord(name) - 97] for name in (one, other))
        low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert it.difference.interval[0] <= low + 1e-12
        assert it.difference.interval[1] >= high - 1e-12


def test_six_clear_wins_of_six_are_shown_among_three_arms():
    # Sign flips alone leave all of them undecided: 3 · 2 / 2^6 is above 0.05.
    table = draws(3, 6, 0.1) + 0.02 * np.arange(3)[:, None]
    found = compared(by_arm(table))
    assert {it.verdict for it in found.values()} == {"worse"}
    assert {it.sign_flip_p for it in found.values()} == {2 / 2**6}


def test_arms_compete_within_their_group_and_are_corrected_together():
    scores = by_arm(draws(5, 6))
    found = all_pairs(scores, ["ab", "cde"])
    assert found.comparisons == 1 + 3
    assert found.compare([("a", "c"), ("a", "a")]) == {}
    p = [found.compare([it])[it] for it in (("a", "b"), ("c", "d"), ("c", "e"), ("d", "e"))]
    corrected = step_down(np.array([it.p for it in p]), multipliers([2, 3]))
    assert [it.adjusted_p for it in p] == pytest.approx(corrected)


def test_each_pair_has_the_seeds_that_both_have():
    table = draws(3, 8)
    scores = by_arm(table)
    del scores["a"][0][0], scores["b"][0][7]
    found = compared(scores)
    assert [it.pairs for it in found.values()] == [(6,), (7,), (7,)]
    expected = stats.ttest_rel(table[0, 1:7], table[1, 1:7])
    assert found["a", "b"].p == pytest.approx(expected.pvalue)
    assert found["a", "b"].difference.value == pytest.approx(np.mean(table[0, 1:7] - table[1, 1:7]))


def test_arms_without_runs_are_left_out_and_not_corrected_for():
    scores = by_arm(draws(3, 6)) | {"d": [{}]}
    found = compared(scores)
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert found == compared(by_arm(draws(3, 6)))
    assert compared({"a": [{}], "b": [{}]}) == {}
    assert compared({"a": [{0: 0.5}]}) == {}


def test_of_several_tasks_each_weighs_the_same():
    draw = np.random.default_rng(0)
    first, second = draw.normal(0.02, 0.01, 8), draw.normal(0.03, 0.02, 4)
    scores = {
        "a": [dict(enumerate(0.5 + first)), dict(enumerate(0.5 + second))],
        "b": [dict.fromkeys(range(8), 0.5), dict.fromkeys(range(4), 0.5)],
    }
    (found,) = compared(scores).values()
    assert found.pairs == (8, 4)
    assert found.difference.value == pytest.approx((first.mean() + second.mean()) / 2)
    # Half the difference of one task from the other's negative, by Welch, with degrees of freedom
    # halfway to the fewest.
    parts = np.array([np.var(first, ddof=1) / 8, np.var(second, ddof=1) / 4])
    welch = parts.sum() ** 2 / (parts**2 / [7, 3]).sum()
    t = 2 * found.difference.value / math.sqrt(parts.sum())
    assert found.p == pytest.approx(2 * stats.t.sf(t, (welch + 3) / 2))
    assert "(12 pairs over 2 tasks; p " in found.sentence


def test_a_task_with_a_single_pair_tells_no_spread():
    scores = {"a": [{0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.9}], "b": [{0: 0.4, 1: 0.4, 2: 0.5}, {0: 0.8}]}
    (found,) = compared(scores).values()
    assert (found.verdict, found.difference.interval) == ("undecided", None)


def test_the_error_over_tasks_of_unlike_spread_keeps_the_level():
    draw, simulations = np.random.default_rng(0), 3000
    wrong = 0
    for _ in range(simulations):
        tasks = [draw.normal(0, 1, 3), draw.normal(0, 5, 3)]
        scores = {
            "a": [dict(enumerate(it)) for it in tasks],
            "b": [dict.fromkeys(range(3), 0.0)] * 2,
        }
        wrong += all_pairs(scores, ["ab"]).p[0] <= 0.05
    # Welch and Satterthwaite's own find 5.8%, four standard errors more than this allows.
    assert wrong / simulations < 0.05 + 2 * math.sqrt(0.05 * 0.95 / simulations)


@pytest.mark.parametrize(("arms", "seeds"), [(3, 3), (5, 8)])
def test_claims_under_the_null_are_rarer_than_the_level(arms, seeds):
    # All alike in truth, with accuracies of a test set of 360: a study errs when it claims any
    # difference, whichever.
    simulations = 400
    wrong = 0
    for seed in range(simulations):
        table = np.round(360 * draws(arms, seeds, 0.4, seed)) / 360
        wrong += all_pairs(by_arm(table), [list(by_arm(table))]).adjusted_p.min() <= 0.05
    assert wrong / simulations < 0.05 + 2 * math.sqrt(0.05 * 0.95 / simulations)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="give a diverged run the worst score"):
        all_pairs({"a": [{0: math.nan}], "b": [{0: 0.5}]}, ["ab"])
