"""Ranks over tasks: hand-computed values."""

import numpy as np
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


def test_arms_that_tie_everywhere_share_their_rank():
    assert rank({name: [0.5, 0.6] for name in "abc"}).ranks == {"a": 2.0, "b": 2.0, "c": 2.0}


@pytest.mark.parametrize("seed", range(20))
def test_ranks_are_scipys_with_many_ties(seed):
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, 4, (draw.integers(2, 12), 5)) / 7
    found = rank({str(arm): of_arm.tolist() for arm, of_arm in enumerate(scores)})
    expected = np.mean(stats.rankdata(-scores, axis=0), axis=1)
    assert [found.ranks[str(arm)] for arm in range(len(scores))] == pytest.approx(expected)


@pytest.mark.parametrize(
    "scores", [{"a": [0.5, 0.6]}, {"a": [0.5], "b": [0.6]}, {"a": [0.5, 0.6], "b": [0.6]}]
)
def test_too_few_arms_or_tasks_have_no_ranks(scores):
    with pytest.raises(ValueError, match="at least two arms"):
        rank(scores)
