"""Estimates: hand-computed values, SciPy, and how often intervals cover the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from normlab.inference.estimates import (
    Estimate,
    bootstrap_interval,
    estimate,
    interquartile_mean,
    mean,
    median,
    standard_error,
    student_interval,
)
from normlab.inference.resampling import expanded_tail
from normlab.inference.scores import paired_differences


def test_each_task_weighs_the_same_in_a_mean_and_each_run_in_the_others():
    tasks = [[0.0, 1.0, 2.0, 3.0], [10.0, 20.0]]
    assert estimate(tasks).value == pytest.approx((1.5 + 15) / 2)
    assert estimate(tasks, median).value == pytest.approx(2.5)
    # Six runs: floor(6 / 4) = 1 goes at each end.
    assert estimate(tasks, interquartile_mean).value == pytest.approx((1 + 2 + 3 + 10) / 4)
    assert estimate(tasks).count == 6


def test_the_interval_of_a_mean_is_scipys_for_one_task():
    samples = np.random.default_rng(0).normal(0.9, 0.01, 7)
    expected = stats.ttest_1samp(samples, 0).confidence_interval(0.9)
    assert student_interval([samples], confidence=0.9) == pytest.approx(expected, rel=1e-9)


def test_the_interval_over_two_tasks_is_welchs():
    # The mean of two tasks is half the difference of one from the other's negative.
    draw = np.random.default_rng(0)
    first, second = draw.normal(0.9, 0.01, 5), draw.normal(0.5, 0.1, 8)
    welch = stats.ttest_ind(first, -second, equal_var=False).confidence_interval(0.95)
    assert student_interval([first, second]) == pytest.approx([it / 2 for it in welch], rel=1e-9)


@pytest.mark.parametrize("count", range(1, 20))
def test_the_interquartile_mean_is_scipys_trimmed_mean(count):
    runs = np.random.default_rng(count).normal(size=(3, count))
    expected = stats.trim_mean(runs, 0.25, axis=1)
    assert interquartile_mean(runs) == pytest.approx(expected, rel=1e-12)
    assert interquartile_mean(runs.T, axis=0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("statistic", [mean, median, interquartile_mean])
def test_bootstrap_intervals_are_the_same_each_time_and_move_with_the_data(statistic):
    tasks = [np.random.default_rng(0).normal(0.9, 0.01, 8), np.random.default_rng(1).random(5)]
    interval = bootstrap_interval(tasks, statistic)
    assert bootstrap_interval(tasks, statistic) == interval
    assert bootstrap_interval([it + 1 for it in tasks], statistic) == pytest.approx(
        np.add(interval, 1)
    )


def test_bootstrap_percentiles_are_expanded_to_the_width_of_students_t():
    samples = np.random.default_rng(0).normal(0, 1, 40)
    low, high = bootstrap_interval([samples])
    student = student_interval([samples])
    plain = 2 * 1.96 * np.std(samples) / math.sqrt(40)
    assert high - low == pytest.approx(student[1] - student[0], rel=0.03)
    assert high - low > 1.02 * plain


@pytest.mark.parametrize(
    ("count", "student", "tail"), [(5, 2.776, 0.00095), (8, 2.365, 0.00573), (20, 2.093, 0.0159)]
)
def test_tails_are_those_of_the_normal_table_at_the_expanded_quantile(count, student, tail):
    found = expanded_tail(count - 1.0, math.sqrt(count / (count - 1)), 0.95)
    assert found == pytest.approx(tail, rel=0.01)
    assert found == pytest.approx(stats.norm.sf(student * math.sqrt(count / (count - 1))), rel=0.01)


def test_resamples_keep_to_their_task():
    # Tasks without any spread of their own: however unlike, nothing varies.
    assert bootstrap_interval([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]]) == pytest.approx((0.5, 0.5))
    assert student_interval([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9]]) == pytest.approx((0.5, 0.5))


def test_too_few_or_infinite_runs_have_no_interval():
    assert estimate([[0.5]]) == Estimate(0.5, None, 1)
    assert estimate([[0.5, 0.6], [0.5]]).interval is None
    assert estimate([[0.5, math.inf]]) == Estimate(math.inf, None, 2)
    assert estimate([[0.1, 0.2, 0.3, 0.4]], median).interval is None
    infinite = estimate([[0.1, 0.2, 0.3, 0.4, math.inf]], interquartile_mean)
    assert infinite.value == pytest.approx(0.3)
    assert infinite.interval is None


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "no task"),
        ([[0.5], []], r"task 1 has scores of shape \(0,\)"),
        ([[0.5, math.nan]], "not a number; give a diverged run the worst score"),
    ],
)
def test_scores_that_cannot_be_used_are_named(tasks, message):
    with pytest.raises(ValueError, match=message):
        estimate(tasks)


def test_differences_are_taken_pair_by_pair():
    found = paired_differences([[0.5, 0.7], [0.9]], [[0.4, 0.9], [0.9]])
    assert [it.tolist() for it in found] == [[pytest.approx(0.1), pytest.approx(-0.2)], [0.0]]


def test_runs_that_are_infinitely_bad_alike_do_not_differ():
    found = paired_differences([[-math.inf, -math.inf]], [[-math.inf, -1.0]])
    assert found[0].tolist() == [0.0, -math.inf]


def test_unequal_numbers_of_runs_make_no_pairs():
    with pytest.raises(ValueError, match=r"\[2\] and \[1\]; pairs need equal numbers"):
        paired_differences([[0.5, 0.6]], [[0.5]])


SKEWED = np.random.default_rng(9).lognormal(0, 0.75, 1_000_000)


def normal(draw, count):
    return draw.normal(0, 1, count)


def difference_of_skewed(draw, count):
    return draw.choice(SKEWED, count) - draw.choice(SKEWED, count)


def skewed(draw, count):
    return draw.choice(SKEWED, count)


@pytest.mark.parametrize("count", [5, 8, 20])
@pytest.mark.parametrize(
    ("scores", "expected"), [(normal, 0.95), (difference_of_skewed, 0.95), (skewed, 0.87)]
)
def test_intervals_of_means_cover_the_truth(scores, expected, count):
    # Of paired differences, whose skewness cancels, and of a mean of skewed scores less often,
    # which the docstring says.
    simulations = 2000
    draw = np.random.default_rng(0)
    truth = np.mean(SKEWED) if scores is skewed else 0.0
    intervals = [student_interval([scores(draw, count)]) for _ in range(simulations)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert covered > expected - 3 * math.sqrt(expected * (1 - expected) / simulations)
    assert covered < 0.985


@pytest.mark.parametrize("count", [5, 8, 20])
@pytest.mark.parametrize("scores", [normal, skewed])
@pytest.mark.parametrize("statistic", [median, interquartile_mean])
def test_bootstrap_intervals_cover_the_truth(statistic, scores, count):
    # With five runs the widest interval is the range of the data, which holds the true median with
    # a probability of 1 - 2 / 2^5 only.
    simulations, expected = 400, 1 - 2 / 2**5 if count == 5 else 0.95
    draw = np.random.default_rng(0)
    truth = float(statistic(SKEWED)) if scores is skewed else 0.0
    intervals = [
        bootstrap_interval([scores(draw, count)], statistic, resamples=999)
        for _ in range(simulations)
    ]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert covered > expected - 3 * math.sqrt(expected * (1 - expected) / simulations)


def test_intervals_over_tasks_of_unlike_spread_cover_the_truth():
    simulations, draw = 2000, np.random.default_rng(0)
    intervals = [
        student_interval([draw.normal(0, 1, 4), draw.normal(0, 0.1, 4), draw.normal(0, 0.1, 6)])
        for _ in range(simulations)
    ]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.935 < covered < 0.97


@pytest.mark.parametrize("statistic", [mean, median, interquartile_mean])
@pytest.mark.parametrize("counts", [(5,), (8,), (21,), (5, 3), (4, 9, 6)])
def test_bootstrap_intervals_are_those_of_scipy(statistic, counts):
    # The same draws, so that no figure depends on how the resamples are summed up.
    draw = np.random.default_rng(sum(counts))
    tasks = [np.round(draw.gamma(1.0, 1.0, count), 1 + place) for place, count in enumerate(counts)]
    error, freedom = standard_error(tasks)
    of_resamples = np.sqrt(sum(np.var(it) / len(it) for it in tasks)) / len(tasks)
    tail = expanded_tail(freedom, error / of_resamples, 0.95)
    expected = stats.bootstrap(
        tasks,
        statistic,
        n_resamples=999,
        confidence_level=1 - 2 * tail,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(3),
    ).confidence_interval
    found = bootstrap_interval(tasks, statistic, resamples=999, seed=3)
    assert found == pytest.approx(tuple(expected), rel=1e-12)
