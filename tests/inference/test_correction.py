"""Shaffer's correction: by hand, against all partitions, and against closed testing."""

import itertools

import numpy as np
import pytest

from normlab.inference.correction import multipliers, step_down


def partitions(arms):
    """All ways to split arms into sets."""
    if not arms:
        yield []
        return
    first, *others = arms
    for rest in partitions(others):
        yield [[first], *rest]
        for place in range(len(rest)):
            yield [*rest[:place], [first, *rest[place]], *rest[place + 1 :]]


def test_multipliers_are_shaffers():
    # Three arms: once a difference is found, one pair at most is alike. Four: Shaffer's table.
    assert multipliers([3]).tolist() == [3, 1, 1]
    assert multipliers([4]).tolist() == [6, 3, 3, 3, 2, 1]
    assert multipliers([2, 2]).tolist() == [2, 1]
    assert multipliers([1]).tolist() == multipliers([]).tolist() == []


@pytest.mark.parametrize("arms", [2, 3, 4, 5, 6, 7])
def test_multipliers_are_the_most_that_any_split_of_the_arms_leaves(arms):
    possible = {
        sum(len(group) * (len(group) - 1) // 2 for group in split)
        for split in partitions(list(range(arms)))
    }
    pairs = arms * (arms - 1) // 2
    expected = [max(it for it in possible if it <= pairs - step) for step in range(pairs)]
    assert multipliers([arms]).tolist() == expected


def test_groups_add_up():
    both = {a + b for a in (0, 1, 3) for b in (0, 1, 2, 3, 6)}
    expected = [max(it for it in both if it <= 9 - step) for step in range(9)]
    assert multipliers([3, 4]).tolist() == expected


def test_a_thousand_arms_have_multipliers():
    found = multipliers([1000])
    assert found[:2].tolist() == [499_500, 999 * 998 // 2]
    assert len(found) == 499_500


def test_step_down_by_hand():
    # Rising: 0.01 · 3, 0.02 · 1 (less than the one before), 0.6 · 1.
    assert step_down(np.array([0.02, 0.6, 0.01]), multipliers([3])) == pytest.approx(
        [0.03, 0.6, 0.03]
    )
    assert step_down(np.array([0.5, 0.9, 0.8]), multipliers([3])).tolist() == [1.0, 1.0, 1.0]


def test_of_three_arms_it_is_closed_testing_with_bonferroni():
    # A pair is rejected when every intersection that has it is: itself, and all three alike, since
    # two pairs that are alike make the third so.
    draw = np.random.default_rng(0)
    for p in draw.random((200, 3)) ** 3:
        corrected = step_down(p, multipliers([3]))
        expected = np.maximum(p, min(1.0, 3 * p.min()))
        assert corrected == pytest.approx(expected)


def test_it_corrects_many_families_at_once():
    draws = np.random.default_rng(0).random((5, 6))
    found = step_down(draws, multipliers([4]))
    for row, expected in zip(draws, found, strict=True):
        assert step_down(row, multipliers([4])).tolist() == expected.tolist()


def test_no_order_of_the_arms_matters():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.5, 0.2])
    corrected = step_down(p, multipliers([4]))
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 37):
        assert step_down(p[list(order)], multipliers([4])) == pytest.approx(corrected[list(order)])
