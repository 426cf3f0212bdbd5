"""Statistics of a study: against numbers by hand and against other formulations in scipy."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from normlab.compare.statistics import (
    Estimate,
    best_values,
    estimate,
    paired_differences,
    smallest_sign_flip_p,
    summarize,
    trials,
)
from normlab.compare.store import Curve, Evaluation, Result, StoreError

RATE = "optimizer.learning_rate"


def run(phase, variant, seed, accuracy=0.9, loss=0.3, *, rate=0.1, diverged=False, **changes):
    """A run whose validation accuracy is `accuracy`, or the curve given."""
    curve = accuracy if isinstance(accuracy, list) else [accuracy]
    fields = {
        "id": f"{phase}-{variant}-{seed}-{random.getrandbits(64)}",
        "phase": phase,
        "variant": variant,
        "arm": variant,
        "seed": seed,
        "values": {RATE: rate},
        "status": "diverged" if diverged else "finished",
        "steps_per_epoch": 10,
        "curve": Curve(
            train_loss=curve,
            train_accuracy=curve,
            validation_loss=[loss] * len(curve),
            validation_accuracy=curve,
        ),
        "test": None if diverged or phase == "tune" else Evaluation(loss=loss, accuracy=curve[-1]),
        "seconds": 1.0,
        "identity": {},
    }
    return Result(**(fields | changes))


def finals(variant, accuracies, **changes):
    return [run("final", variant, seed, it, **changes) for seed, it in enumerate(accuracies)]


def test_an_estimate_by_hand():
    # t(2 degrees of freedom, 97.5%) = 4.302653; s = 1; 4.302653 / sqrt(3) = 2.484138.
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.interval == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert found.count == 3


@pytest.mark.parametrize("count", [2, 3, 8, 50])
def test_an_estimate_agrees_with_scipys_t_test(count):
    samples = np.random.default_rng(count).normal(0.9, 0.01, count)
    expected = stats.ttest_1samp(samples, 0).confidence_interval(0.95)
    assert estimate(samples.tolist()).interval == pytest.approx(expected, rel=1e-9)


def test_intervals_cover_the_truth_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 8))
    intervals = [estimate(row).interval for row in draws.tolist()]
    covered = np.mean([low <= 3.0 <= high for low, high in intervals])
    assert 0.94 < covered < 0.96


def test_one_sample_and_infinite_samples_have_no_interval():
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    assert estimate([0.5, math.inf]) == Estimate(math.inf, None, 2)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.1, 0.3), "better"),
        ((-0.3, -0.1), "worse"),
        ((-0.1, 0.3), "no difference shown"),
        ((0.0, 0.3), "no difference shown"),
        (None, "undecided"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(interval, verdict):
    assert Estimate(0.1, interval, 3).verdict == verdict


@pytest.mark.parametrize("pairs", [2, 5, 6, 8])
def test_the_smallest_sign_flip_p_is_that_of_the_most_one_sided_data(pairs):
    found = stats.permutation_test(
        (np.arange(1.0, pairs + 1),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert smallest_sign_flip_p(pairs) == pytest.approx(found.pvalue)


def test_five_pairs_cannot_reach_five_percent_and_six_can():
    assert smallest_sign_flip_p(5) == 0.0625
    assert smallest_sign_flip_p(6) == 0.03125


def test_the_highest_mean_validation_accuracy_of_the_last_epoch_wins():
    results = [
        run("tune", "a", 0, [0.99, 0.70], rate=0.01),
        run("tune", "a", 1, [0.99, 0.90], rate=0.01),
        run("tune", "a", 0, [0.10, 0.85], rate=0.1),
        run("tune", "a", 1, [0.10, 0.79], rate=0.1),
        run("tune", "b", 0, 0.99, rate=1.0),
        run("final", "a", 0, 0.99, rate=1.0),
    ]
    assert best_values(results, "a") == {RATE: 0.1}
    first, second = trials(results, "a")
    assert first.accuracy.mean == pytest.approx(0.82)
    assert second.accuracy.mean == pytest.approx(0.80)


def test_equal_accuracies_are_decided_by_loss_and_then_by_the_smaller_value():
    results = [
        run("tune", "a", 0, 0.8, loss=0.5, rate=0.01),
        run("tune", "a", 0, 0.8, loss=0.4, rate=0.3),
        run("tune", "a", 0, 0.8, loss=0.4, rate=0.1),
    ]
    assert best_values(results, "a") == {RATE: 0.1}


def test_a_diverged_tuning_run_counts_as_accuracy_0_and_infinite_loss():
    results = [
        run("tune", "a", 0, 0.99, rate=1.0),
        run("tune", "a", 1, 0.99, rate=1.0, diverged=True),
        run("tune", "a", 0, 0.50, rate=0.1),
        run("tune", "a", 1, 0.50, rate=0.1),
    ]
    assert best_values(results, "a") == {RATE: 0.1}
    worst = trials(results, "a")[1]
    assert worst.accuracy.mean == 0.495
    assert worst.loss == math.inf
    assert worst.diverged == 1


def test_when_all_diverge_the_smallest_values_win():
    results = [run("tune", "a", 0, [], rate=rate, diverged=True) for rate in (0.3, 0.01, 0.1)]
    assert best_values(results, "a") == {RATE: 0.01}


def test_the_winner_does_not_depend_on_the_order_of_the_results():
    results = [
        run("tune", "a", seed, 0.7 + 0.1 * seed, rate=rate)
        for rate in (0.3, 0.01, 0.1, 0.003)
        for seed in range(3)
    ]
    draw = random.Random(0)
    for _ in range(20):
        draw.shuffle(results)
        assert best_values(results, "a") == {RATE: 0.003}


def test_without_tuning_runs_nothing_is_chosen():
    assert best_values([run("final", "a", 0)], "a") == {}


def test_accuracy_and_loss_are_those_of_the_test_split():
    results = finals("a", [0.7, 0.8, 0.9])
    results = [
        it.model_copy(update={"test": Evaluation(loss=0.1 * seed, accuracy=0.1 * seed)})
        for seed, it in enumerate(results)
    ]
    summary = summarize(results, ["a"], "a")["a"]
    assert summary.accuracy == estimate([0.0, 0.1, 0.2])
    assert summary.loss == estimate([0.0, 0.1, 0.2])


def test_differences_are_paired_by_seed_as_in_scipys_paired_test():
    draw = np.random.default_rng(0)
    of_seed = draw.normal(0.8, 0.05, 8)
    baseline, better = of_seed + draw.normal(0, 0.002, 8), of_seed + draw.normal(0.01, 0.002, 8)
    results = finals("base", baseline.tolist()) + finals("new", better.tolist())
    random.Random(0).shuffle(results)
    summary = summarize(results, ["base", "new"], "base")
    expected = stats.ttest_rel(better, baseline).confidence_interval(0.95)
    difference = summary["new"].difference
    assert difference.interval == pytest.approx(expected, rel=1e-9)
    assert difference.verdict == "better"
    assert stats.ttest_ind(better, baseline).pvalue > 0.05  # unpaired, the same data show nothing
    assert summary["base"].difference is None


def test_only_seeds_that_both_have_are_compared():
    results = [
        run("final", "base", 0, 0.5),
        run("final", "base", 1, 0.6),
        run("final", "new", 1, 0.9),
        run("final", "new", 2, 0.1),
    ]
    assert paired_differences(results[2:], results[:2]) == {1: pytest.approx(0.3)}
    difference = summarize(results, ["base", "new"], "base")["new"].difference
    assert difference.mean == pytest.approx(0.3)
    assert difference.count == 1
    assert difference.verdict == "undecided"
    assert summarize(results[1:2] + results[3:], ["base", "new"], "base")["new"].difference is None


def test_steps_to_target_are_those_of_the_first_epoch_end_that_reaches_it():
    results = finals("a", [[0.1, 0.5, 0.4, 0.9], [0.1, 0.2, 0.3, 0.5], [0.5, 0.0, 0.0, 0.0]])
    summary = summarize(results, ["a"], "a", target_accuracy=0.5)
    assert summary["a"].steps_to_target == 20.0  # the median of 20, 40 and 10
    assert summary["a"].reached == 3
    assert summary.target_given


def test_runs_that_never_reach_the_target_count_as_infinite():
    results = finals("a", [[0.9, 0.9], [0.1, 0.9], [0.1, 0.1], [0.1, 0.1]])
    summary = summarize(results[:3], ["a"], "a", target_accuracy=0.5)["a"]
    assert (summary.steps_to_target, summary.reached) == (20.0, 2)
    summary = summarize(results, ["a"], "a", target_accuracy=0.5)["a"]
    assert (summary.steps_to_target, summary.reached) == (math.inf, 2)


def test_a_run_that_diverges_has_not_reached_the_target():
    results = [run("final", "a", 0, [0.9, 0.9], diverged=True)]
    summary = summarize(results, ["a"], "a", target_accuracy=0.5)["a"]
    assert (summary.steps_to_target, summary.reached) == (math.inf, 0)


def test_the_default_target_is_95_percent_of_the_best_final_validation_accuracy():
    results = finals("a", [[0.99, 0.6], [0.99, 0.8]]) + finals("b", [[0.5, 0.5], [0.5, 0.7]])
    summary = summarize(results, ["a", "b"], "a")
    assert summary.target_accuracy == pytest.approx(0.95 * 0.7)
    assert not summary.target_given
    assert summary["b"].reached == 1


def test_diverged_final_runs_count_as_the_worst_outcome_and_are_counted():
    results = finals("a", [0.9, 0.9], seconds=3.0)
    results += [run("final", "a", 2, [0.9], diverged=True, seconds=0.1)]
    summary = summarize(results, ["a"], "a")["a"]
    assert summary.accuracy == estimate([0.9, 0.9, 0.0])
    assert summary.loss == Estimate(math.inf, None, 3)
    assert (summary.seeds, summary.diverged) == (3, 1)
    assert summary.seconds == 3.0  # stopping early is no speed


def test_a_metric_that_overflowed_is_the_worst_one_too():
    results = [run("final", "a", 0, 0.9, loss=math.inf), run("final", "a", 1, 0.9)]
    summary = summarize(results, ["a"], "a")["a"]
    assert summary.loss.mean == math.inf
    assert summary.accuracy.mean == 0.9


@pytest.mark.parametrize(
    ("best", "at_edge"), [(0.01, True), (0.1, False), (0.3, False), (1.0, True)]
)
def test_a_chosen_value_at_the_edge_of_its_grid_is_flagged(best, at_edge):
    results = [
        run("tune", "a", 0, 0.9 if rate == best else 0.5, rate=rate)
        for rate in (0.1, 1.0, 0.01, 0.3)
    ]
    results += [run("final", "a", 0, rate=best)]
    assert summarize(results, ["a"], "a")["a"].at_edge == ((RATE,) if at_edge else ())


@pytest.mark.parametrize("tried", [[0.1], ["sgd", "adam"], [True, False], [0, 0.1, 1]])
def test_words_switches_single_values_and_zero_are_no_edge(tried):
    results = [run("tune", "a", 0, 1 / (3 + i), rate=it) for i, it in enumerate(tried)]
    found = summarize(results, ["a"], "a")["a"]
    assert found.values == {RATE: tried[0]}
    assert found.at_edge == ()


def test_the_best_variant_has_the_highest_accuracy_and_leads_seed_by_seed():
    accuracies = {"a": [0.5, 0.6, 0.7], "b": [0.6, 0.8, 0.7], "c": [0.9, 0.6, 0.5]}
    results = [it for name, values in accuracies.items() for it in finals(name, values)]
    summary = summarize(results, ["a", "b", "c"], "a")
    assert summary.best == "b"
    assert list(summary.leads) == ["a", "c"]
    assert summary.leads["a"] == estimate([0.6 - 0.5, 0.8 - 0.6, 0.0])
    assert summary.leads["c"].mean == pytest.approx(0.1 / 3)


def test_at_equal_accuracy_the_lower_loss_is_best():
    results = finals("a", [0.5], loss=0.3) + finals("b", [0.5], loss=0.2)
    assert summarize(results, ["a", "b"], "a").best == "b"


def test_a_study_without_final_runs_has_values_so_far_and_nothing_else():
    results = [run("tune", "a", 0, 0.5, rate=0.1), run("tune", "a", 0, 0.6, rate=0.2)]
    summary = summarize(results, ["a", "b"], "a")
    assert summary.best is None
    assert summary.target_accuracy is None
    assert summary["a"].values == {RATE: 0.2}
    assert summary["b"].values == {}
    for variant in summary.variants:
        assert variant.accuracy is None
        assert variant.loss is None
        assert variant.steps_to_target is None
        assert variant.seconds is None
        assert variant.seeds == 0


def test_when_every_final_run_diverged_there_is_no_best():
    results = finals("a", [[], []], diverged=True)
    summary = summarize(results, ["a"], "a")
    assert summary.best is None
    assert summary.target_accuracy is None
    assert summary["a"].diverged == 2


def test_final_runs_of_values_that_no_longer_win_do_not_count():
    # A study run again with a wider grid: 0.3 wins now, and the runs at 0.1 are history.
    results = [
        run("tune", "a", 0, accuracy, rate=rate) for rate, accuracy in ((0.1, 0.8), (0.3, 0.9))
    ]
    results += finals("a", [0.8, 0.8], rate=0.1) + finals("a", [0.9, 0.9], rate=0.3)
    summary = summarize(results, ["a"], "a")["a"]
    assert summary.accuracy == estimate([0.9, 0.9])
    assert summary.values == {RATE: 0.3}


@pytest.mark.parametrize("phase", ["tune", "final"])
def test_runs_of_two_configurations_are_not_averaged(phase):
    results = [run(phase, "a", 3, 0.5), run(phase, "a", 3, 0.9)]
    with pytest.raises(StoreError, match=f"2 {phase} runs with seed 3 .* folder of its own"):
        summarize(results, ["a"], "a")


def test_variants_that_are_not_asked_for_are_left_out():
    results = finals("a", [0.5]) + finals("gone", [0.9])
    summary = summarize(results, ["a"], "a")
    assert summary.best == "a"
    assert [it.name for it in summary.variants] == ["a"]


def test_an_unknown_baseline_is_an_error():
    with pytest.raises(ValueError, match="baseline 'c' is none of the arms a, b"):
        summarize([], ["a", "b"], "c")
