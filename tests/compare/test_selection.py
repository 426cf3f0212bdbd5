"""Which runs of a study count: against numbers by hand."""

import math
import random

import pytest
from compare.results import ACCURACY, RATE, run

from normlab.compare.selection import best_values, trials


def test_the_highest_mean_validation_accuracy_of_the_last_epoch_wins():
    results = [
        run("tune", "a", 0, [0.99, 0.70], rate=0.01),
        run("tune", "a", 1, [0.99, 0.90], rate=0.01),
        run("tune", "a", 0, [0.10, 0.85], rate=0.1),
        run("tune", "a", 1, [0.10, 0.79], rate=0.1),
        run("tune", "b", 0, 0.99, rate=1.0),
        run("final", "a", 0, 0.99, rate=1.0),
    ]
    assert best_values(results, "a", ACCURACY) == {RATE: 0.1}
    first, second = trials(results, "a", ACCURACY)
    assert first.reached.value == pytest.approx(0.82)
    assert second.reached.value == pytest.approx(0.80)


def test_equal_accuracies_are_decided_by_loss_and_then_by_the_smaller_value():
    results = [
        run("tune", "a", 0, 0.8, loss=0.5, rate=0.01),
        run("tune", "a", 0, 0.8, loss=0.4, rate=0.3),
        run("tune", "a", 0, 0.8, loss=0.4, rate=0.1),
    ]
    assert best_values(results, "a", ACCURACY) == {RATE: 0.1}


def test_a_diverged_tuning_run_counts_as_accuracy_0_and_infinite_loss():
    results = [
        run("tune", "a", 0, 0.99, rate=1.0),
        run("tune", "a", 1, 0.99, rate=1.0, diverged=True),
        run("tune", "a", 0, 0.50, rate=0.1),
        run("tune", "a", 1, 0.50, rate=0.1),
    ]
    assert best_values(results, "a", ACCURACY) == {RATE: 0.1}
    worst = trials(results, "a", ACCURACY)[1]
    assert worst.reached.value == 0.495
    assert worst.loss == math.inf
    assert worst.diverged == 1


def test_when_all_diverge_the_smallest_values_win():
    results = [run("tune", "a", 0, [], rate=rate, diverged=True) for rate in (0.3, 0.01, 0.1)]
    assert best_values(results, "a", ACCURACY) == {RATE: 0.01}


def test_the_winner_does_not_depend_on_the_order_of_the_results():
    results = [
        run("tune", "a", seed, 0.7 + 0.1 * seed, rate=rate)
        for rate in (0.3, 0.01, 0.1, 0.003)
        for seed in range(3)
    ]
    draw = random.Random(0)
    for _ in range(20):
        draw.shuffle(results)
        assert best_values(results, "a", ACCURACY) == {RATE: 0.003}


def test_without_tuning_runs_nothing_is_chosen():
    assert best_values([run("final", "a", 0)], "a", ACCURACY) == {}
