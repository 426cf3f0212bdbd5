"""What is tried: draws that stay what they are, and grids that go on where the best value ends."""

import math

import numpy as np
import pytest
from scipy import stats

from normlab.compare.search import Range, at_edge, points, values_beyond

RATE, DECAY, SCHEDULE = "optimizer.learning_rate", "optimizer.weight_decay", "optimizer.schedule"
SPACE = {RATE: Range(low=1e-4, high=1.0), SCHEDULE: ("constant", "cosine", "step")}


def test_a_grid_is_full_and_nothing_tuned_has_no_points():
    assert points({RATE: (0.1, 0.2), DECAY: (0, 1)}, None) == [
        {RATE: rate, DECAY: decay} for rate in (0.1, 0.2) for decay in (0, 1)
    ]
    assert points({}, None) == []


def test_a_draw_stays_what_it_is_when_trials_or_paths_are_added():
    few = points(SPACE, 5)
    assert points(SPACE, 50)[:5] == few
    wider = points({DECAY: Range(low=0, high=1, scale="linear"), **SPACE}, 5)
    assert [{path: point[path] for path in SPACE} for point in wider] == few
    assert len({point[RATE] for point in points(SPACE, 50)}) == 50


def test_equal_draws_from_lists_are_one_point():
    drawn = points({RATE: (0.01, 0.1), DECAY: (0, 1)}, 50)
    assert sorted(map(tuple, (it.values() for it in drawn))) == [
        (0.01, 0),
        (0.01, 1),
        (0.1, 0),
        (0.1, 1),
    ]
    assert points({RATE: (0.01, 0.1)}, 50)[0] == points({RATE: (0.01, 0.1)}, 1)[0]


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_draws_are_uniform_on_their_scale(scale):
    tried = [it[RATE] for it in points({RATE: Range(low=0.01, high=100, scale=scale)}, 2000)]
    assert 0.01 <= min(tried) < max(tried) <= 100
    shares = {"log": (np.log10(tried) + 2) / 4, "linear": (np.array(tried) - 0.01) / 99.99}[scale]
    assert stats.kstest(shares, "uniform").pvalue > 0.01


def test_listed_values_beside_a_range_are_drawn_alike():
    drawn = [it[SCHEDULE] for it in points(SPACE, 3000)]
    counts = [drawn.count(it) for it in SPACE[SCHEDULE]]
    assert sum(counts) == 3000
    assert stats.chisquare(counts).pvalue > 0.01
    rates = [math.log(it[RATE]) for it in points(SPACE, 3000)]
    codes = [SPACE[SCHEDULE].index(it) for it in drawn]
    assert abs(np.corrcoef(rates, codes)[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"low": 1, "high": 1}, "low=1 must be less than high=1"),
        ({"low": 0, "high": 1}, "low=0 has no logarithm"),
    ],
)
def test_what_is_no_range_is_told(given, told):
    with pytest.raises(ValueError, match=told):
        Range(**given)


@pytest.mark.parametrize(
    ("value", "edge"), [(1e-4, True), (1.5e-4, True), (1.7e-4, False), (0.6, False), (0.7, True)]
)
def test_the_edge_of_a_range_is_its_outer_twentieth_on_its_scale(value, edge):
    # The twentieth of four decades is a factor of 10 ** 0.2 = 1.58.
    assert Range(low=1e-4, high=1.0).at_edge(value) == edge


@pytest.mark.parametrize(
    ("grid", "best", "beyond"),
    [
        ((0.003, 0.01, 0.03, 0.1, 0.3), [0.03, 0.1], []),
        ((0.003, 0.01, 0.03, 0.1, 0.3), [0.03, 0.3], [0.9]),
        ((0.003, 0.01, 0.03, 0.1, 0.3), [0.003, 0.3], [0.0009, 0.9]),
        ((0.1, 0.01), [0.1], [1.0]),
        ((0.8, 0.9), [0.9], [1.0]),
        ((0.0, 0.1, 0.2), [0.2], [0.3]),
        ((1, 2, 3, 4), [1], [0.0]),
        (("sgd", "adam"), ["sgd"], []),
        ((False, True), [True], []),
        ((0.1,), [0.1], []),
    ],
)
def test_a_grid_goes_on_beyond_the_best_value(grid, best, beyond):
    assert values_beyond(grid, best) == pytest.approx(beyond)


@pytest.mark.parametrize(
    ("values", "best", "tried", "edge"),
    [
        ((0.01, 0.1, 1.0), 0.1, (0.01, 0.1, 1.0), False),
        ((0.01, 0.1, 1.0), 1.0, (1.0, 0.01, 0.1), True),
        ((0.01, 0.1, 1.0), 0.01, (0.01, 0.1, 1.0), True),
        # The grid went on.
        ((0.01, 0.1, 1.0), 1.0, (0.01, 0.1, 1.0, 10.0), False),
        ((0.01, 0.1, 1.0), 10.0, (0.01, 0.1, 1.0, 10.0), True),
        # Of draws from a list, what was drawn counts.
        ((1, 2, 3, 4), 3, (2, 3, 3), True),
        # What is tuned ends at 0.
        ((0.0, 0.1), 0.0, (0.0, 0.1), False),
        ((0.1,), 0.1, (0.1,), False),
        (("relu", "gelu"), "relu", ("relu", "gelu"), False),
        ((True, False), True, (True, False), False),
        # 5% of two decades is a factor of 10 ** 0.1 = 1.26.
        (Range(low=0.01, high=1), 0.0125, (0.0125, 0.5), True),
        (Range(low=0.01, high=1), 0.0127, (0.0127, 0.5), False),
        (Range(low=0.01, high=1), 0.8, (0.8, 0.5), True),
        (Range(low=0, high=1, scale="linear"), 0.94, (0.94, 0.5), False),
        (Range(low=0, high=1, scale="linear"), 0.96, (0.96, 0.5), True),
    ],
)
def test_the_best_value_at_an_edge_is_told(values, best, tried, edge):
    assert at_edge(best, tried, values if isinstance(values, Range) else None) is edge
