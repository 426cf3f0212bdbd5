"""Summaries of a metric of which the lower is the better, by hand."""

import math

import pytest
from compare.results import RATE, run

from normlab.compare.arm import arms
from normlab.compare.metric import margin_of, measures_of, target_of
from normlab.compare.selection import best_values, trials
from normlab.compare.store import Curve
from normlab.compare.summary import summarize
from normlab.inference.measure import LOSS, Measure
from normlab.report.words import conclude, selection_in_words

RMSE = Measure("rmse", higher_is_better=False, title="RMSE", unit="m")


def of(phase, arm, seed, rmse, loss=0.3, **changes):
    """A run whose RMSE on validation, or its curve, and on test is as given."""
    made = run(phase, arm, seed, **changes)
    curve = rmse if isinstance(rmse, list) else [rmse]
    measured = {"loss": [loss] * len(curve), "rmse": curve}
    steps = [10 * (place + 1) for place in range(len(curve))]
    test = None if made.test is None else {"loss": loss, "rmse": curve[-1]}
    changed = {"curve": Curve(step=steps, train=measured, validation=measured), "test": test}
    return made.model_copy(update=changed)


def summed(results, names, baseline="base", **options):
    return summarize(results, arms(names, {}, []), baseline, measure=RMSE, **options)


def test_the_lowest_mean_wins_and_the_conclusion_says_so():
    results = [of("final", "base", seed, 2.0 + 0.01 * (seed % 3)) for seed in range(6)]
    results += [of("final", "new", seed, 1.5 + 0.01 * (seed % 2)) for seed in range(6)]
    summary = summed(results, ["base", "new"])
    assert summary.best == "new"
    assert summary["new"].comparison.verdict == "better"
    assert summary["new"].improvement.value == 1.0
    found = conclude(summary)
    assert found.headline == (
        "new won with a test RMSE of 1.505 m, 0.505 m below base, the baseline."
    )
    assert found.facts[0].label == "below base, the baseline"
    assert "%" not in found.verdict
    assert "points" not in " ".join([found.verdict, *found.comparisons.values()])


def test_a_finished_run_without_the_metric_is_the_worst_and_is_told_as_such():
    """An R² or a perplexity that is not finite counted as the worst without a word."""
    results = [of("final", "base", seed, 2.0) for seed in range(4)]
    results += [of("final", "new", seed, 1.5) for seed in range(3)]
    lost = of("final", "new", 3, 1.5)
    results += [lost.model_copy(update={"test": {"loss": 0.3, "rmse": None}})]
    summary = summed(results, ["base", "new"])
    assert (summary["new"].diverged, summary["new"].unmeasured) == ((), (("", 3),))
    assert summary["new"].mean.value == math.inf
    assert summary.best == "base"
    assert (
        "1 of 4 final runs of new ended without a finite test RMSE (seed 3). They count as "
        "infinitely bad RMSE."
    ) in conclude(summary).remarks


def test_a_diverged_run_is_infinitely_bad_and_decides_nothing():
    results = [of("final", "base", seed, 2.0) for seed in range(4)]
    results += [of("final", "new", seed, 1.5) for seed in range(3)]
    results += [of("final", "new", 3, [], diverged=True)]
    summary = summed(results, ["base", "new"])
    assert summary["new"].measured[""][3] == math.inf
    assert summary["new"].mean.value == math.inf
    assert summary.best == "base"
    assert summary["new"].comparison.verdict == "undecided"
    assert any("count as infinitely bad RMSE" in it for it in conclude(summary).remarks)


def test_tuning_selects_the_lowest_or_by_another_metric():
    results = [
        of("tune", "a", 0, 1.0, loss=0.9, rate=0.1),
        of("tune", "a", 0, 2.0, loss=0.1, rate=0.2),
        of("tune", "a", 0, 3.0, loss=0.5, rate=0.3),
    ]
    assert best_values(results, "a", RMSE) == {RATE: 0.1}
    assert best_values(results, "a", LOSS) == {RATE: 0.2}
    assert [it.reached.value for it in trials(results, "a", RMSE)] == [1.0, 2.0, 3.0]
    summary = summed(results, ["a"], "a")
    assert summary["a"].budget.validation.tolist() == pytest.approx([2.0, 4 / 3, 1.0])
    other = summed(results, ["a"], "a", selected_by=LOSS)
    assert other["a"].values == {RATE: 0.2}
    assert selection_in_words(summary) == ""
    assert selection_in_words(other) == (
        "Tuning selects by the lowest validation loss; what is reported and tested is the RMSE."
    )
    assert other["a"].budget.validation.tolist()[-1] == pytest.approx(0.1)


def test_the_target_is_reached_from_above_and_counts_the_steps_of_the_curve():
    results = [of("final", "a", seed, [4.0, 2.0, 1.0]) for seed in range(3)]
    summary = summed(results, ["a"], "a", target=2.5)
    assert summary["a"].time_to_target.median == 20
    assert summed(results, ["a"], "a").target == pytest.approx(1.05)
    assert summed(results, ["a"], "a")["a"].time_to_target.median == 30


def test_several_tasks_rank_the_lowest_first():
    results = [
        of("final", arm, seed, value + 0.01 * seed, task=task)
        for arm, value in (("a", 1.0), ("b", 2.0))
        for task in ("x", "y")
        for seed in range(3)
    ]
    summary = summarize(results, arms(["a", "b"], {}, ["x", "y"]), "a", measure=RMSE)
    assert list(summary.ranking.ranks) == ["a", "b"]
    # Thresholds are scores, the higher the better: all runs of a are above the middle.
    middle = len(summary["a"].profile.thresholds) // 2
    assert (summary["a"].profile.share[middle], summary["b"].profile.share[middle]) == (1, 0)


def test_stored_configurations_of_all_times_say_what_they_measure():
    assert measures_of({}) == (Measure("accuracy", share=True),) * 2
    told = {"name": "rmse", "higher_is_better": False, "title": "RMSE", "unit": "m"}
    loss = {"name": "loss", "higher_is_better": False}
    assert measures_of({"metric": told}) == (RMSE, RMSE)
    assert measures_of({"metric": {**told, "select_by": loss}}) == (RMSE, LOSS)
    assert margin_of({"margin_points": 0.5}) == 0.005
    assert margin_of({"margin_points": None, "margin": 0.2}) == 0.2
    assert target_of({"target_accuracy": 0.9}) == 0.9
    assert target_of({"target": None, "target_accuracy": 0.9}) is None
