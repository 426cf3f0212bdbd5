"""Time to a target with late and diverged runs."""

import math

import numpy as np
import pytest
from scipy import stats

from normlab.inference.survival import arrivals, first_to_target, time_to_target

INF = math.inf


def reached(times, budget=10.0, diverged=()):
    lost = [index in diverged for index in range(len(times))]
    return arrivals(times, [budget] * len(times), lost, horizon=10.0)


def test_kaplan_meier_by_hand_with_a_run_censored_in_between():
    # 6 runs; one ends at 3 without the target. At 1: 5/6 go on, at 4: 5/6 · 3/4, at 5: · 2/3,
    # at 9: · 1/2, and one is late.
    runs = arrivals([1, INF, 4, 5, 9, INF], [10, 3, 10, 10, 10, 10], [False] * 6, horizon=10.0)
    found = time_to_target(runs)
    assert found.times.tolist() == [1, 4, 5, 9]
    assert found.remaining == pytest.approx([5 / 6, 5 / 8, 5 / 12, 5 / 24])
    assert found.median == 5
    assert found.restricted_mean == pytest.approx(1 + 3 * 5 / 6 + 5 / 8 + 4 * 5 / 12 + 5 / 24)
    assert (found.arrived, found.count) == (4, 6)


def test_without_censoring_it_is_the_sample():
    times = [7.0, 1.0, 3.0, 9.0, 4.0]
    found = time_to_target(reached(times))
    assert found.median == np.median(times)
    assert found.restricted_mean == pytest.approx(np.mean(times))
    assert found.remaining == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])


def test_late_runs_count_as_the_horizon_in_the_restricted_mean():
    found = time_to_target(reached([2.0, 4.0, INF, INF]))
    assert found.restricted_mean == pytest.approx((2 + 4 + 10 + 10) / 4)
    assert found.median == 4.0


def test_when_fewer_than_half_arrive_the_median_is_infinite():
    assert time_to_target(reached([2.0, INF, INF])).median == INF
    never = time_to_target(reached([INF, INF]))
    assert (never.median, never.restricted_mean, never.arrived) == (INF, 10.0, 0)
    assert never.interval is None


def test_a_single_run_bounds_the_median_from_below_only():
    found = time_to_target(reached([3.0]))
    assert (found.median, found.interval) == (3.0, (3.0, INF))


def test_a_diverged_run_never_arrives_however_early_it_broke_off():
    # Censored at its end, 1, it would leave the rest to count for it: the median would be 3.
    times, ends = [2.0, 3.0, 4.0, INF, INF], [10.0, 10.0, 10.0, 1.0, 1.0]
    late = time_to_target(arrivals(times, ends, [False] * 5, horizon=10.0))
    diverged = time_to_target(arrivals(times, ends, [False] * 3 + [True] * 2, horizon=10.0))
    assert (late.median, diverged.median) == (3.0, 4.0)
    assert diverged.restricted_mean == pytest.approx((2 + 3 + 4 + 10 + 10) / 5)
    assert diverged.restricted_mean > late.restricted_mean


def test_a_run_that_diverges_after_the_target_has_not_arrived():
    assert time_to_target(reached([2.0, 3.0], diverged=[0])).arrived == 1


def test_an_arrival_after_the_budget_is_late():
    assert time_to_target(reached([5.0, 3.0], budget=4.0)).arrived == 1


def test_the_medians_interval_holds_it_as_often_as_it_says():
    draw, simulations = np.random.default_rng(0), 1000
    covered = 0
    for _ in range(simulations):
        times = draw.exponential(6.0, 20)
        low, high = time_to_target(reached(np.where(times > 10, INF, times))).interval
        covered += low <= 6 * math.log(2) <= high
    assert 0.93 < covered / simulations < 0.98


def test_the_faster_arm_of_each_pair_is_counted():
    ours = reached([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, INF, 8.0])
    theirs = reached([2.0, 3.0, 4.0, INF, 6.0, 6.0, INF, 7.0])
    found = first_to_target(ours, theirs)
    assert (found.first, found.second, found.undecided) == (5, 1, 2)
    assert first_to_target(theirs, ours).first == 1


def test_censoring_before_the_others_arrival_decides_nothing():
    short = arrivals([INF, INF], [3.0, 5.0], [False, False], horizon=10.0)
    found = first_to_target(reached([5.0, 5.0]), short)
    assert (found.first, found.second, found.undecided) == (1, 0, 1)


def test_a_diverged_run_loses_to_every_arrival():
    ours = reached([10.0] * 6)
    theirs = arrivals([INF] * 6, [1.0] * 6, [True] * 6, horizon=10.0)
    found = first_to_target(ours, theirs)
    assert (found.first, found.second, found.undecided) == (6, 0, 0)


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="expected one of each for every run"):
        arrivals([1.0], [1.0, 2.0], [False], horizon=5.0)
    with pytest.raises(ValueError, match="6 is beyond the horizon 5"):
        arrivals([1.0], [6.0], [False], horizon=5.0)
    with pytest.raises(ValueError, match="1 and 2 runs"):
        first_to_target(reached([1.0]), reached([1.0, 2.0]))


@pytest.mark.filterwarnings("ignore:The confidence interval is undefined:RuntimeWarning")
@pytest.mark.parametrize("seed", range(100))
def test_curve_and_interval_are_scipys(seed):
    """Many runs arrive or end at one time, all or none arrive."""
    draw = np.random.default_rng(seed)
    times, horizon = draw.integers(1, 9, draw.integers(1, 40)).astype(float), 10.0
    arrived = draw.random(len(times)) < draw.choice([0, 0.3, 0.8, 1])
    found = time_to_target(
        arrivals(np.where(arrived, times, INF), times, np.zeros(len(times)), horizon)
    )
    curve = stats.ecdf(stats.CensoredData.right_censored(times, ~arrived)).sf
    falls = np.diff(curve.probabilities, prepend=1.0) < 0
    assert found.times.tolist() == curve.quantiles[falls].tolist()
    assert found.remaining == pytest.approx(curve.probabilities[falls], abs=1e-12)
    if not arrived.any():
        assert found.interval is None
        return
    band = curve.confidence_interval(0.95, method="log-log")
    for end, share in zip(found.interval, (band.low, band.high), strict=True):
        undefined = 0.0 if share is band.low else 1.0
        half = np.nan_to_num(share.probabilities[falls], nan=undefined) <= 0.5 + 1e-12
        assert end == (found.times[half][0] if half.any() else INF)
