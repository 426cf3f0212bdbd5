"""What the runs of a study say: against numbers by hand and against other formulations in scipy."""

import itertools
import math
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from compare.results import ACCURACY, RATE, finals, run
from scipy import stats

from normlab.compare.arm import arms
from normlab.compare.search import Range
from normlab.compare.store import StoreError
from normlab.compare.summary import summarize as summarize_measure
from normlab.inference import permutation
from normlab.inference.estimates import Estimate, estimate
from normlab.inference.pairs import all_pairs

summarize = partial(summarize_measure, measure=ACCURACY)


def summed(results, variants, baseline, **options):
    """The summary of a study without factors and tasks."""
    return summarize(results, arms(variants, {}, []), baseline, **options)


def reached(arm):
    """The median of the steps to the target, and how many runs reached it."""
    return arm.time_to_target.median, arm.time_to_target.arrived


def test_accuracy_and_loss_are_those_of_the_test_split():
    results = finals("a", [0.7, 0.8, 0.9])
    results = [
        it.model_copy(update={"test": {"loss": 0.1 * seed, "accuracy": 0.1 * seed}})
        for seed, it in enumerate(results)
    ]
    summary = summed(results, ["a"], "a")["a"]
    # Student's t reaches from -0.148 to 0.348, and no accuracy lies below 0.
    expected = estimate([[0.0, 0.1, 0.2]])
    assert expected.interval[0] < -0.1
    assert summary.mean == replace(expected, interval=(0.0, expected.interval[1]))
    assert summary.loss == estimate([[0.0, 0.1, 0.2]])


def test_differences_are_paired_by_seed_as_in_scipys_paired_test():
    draw = np.random.default_rng(0)
    of_seed = draw.normal(0.8, 0.05, 8)
    baseline, better = of_seed + draw.normal(0, 0.002, 8), of_seed + draw.normal(0.01, 0.002, 8)
    results = finals("base", baseline.tolist()) + finals("new", better.tolist())
    random.Random(0).shuffle(results)
    summary = summed(results, ["base", "new"], "base")
    expected = stats.ttest_rel(better, baseline).confidence_interval(0.95)
    comparison = summary["new"].comparison
    assert comparison.difference.interval == pytest.approx(expected, rel=1e-9)
    assert comparison.verdict == "better"
    assert stats.ttest_ind(better, baseline).pvalue > 0.05  # unpaired, the same data show nothing
    assert summary["base"].comparison is None
    assert summary["base"].improvement is None


def test_only_seeds_that_both_have_are_compared():
    results = [
        run("final", "base", 0, 0.5),
        run("final", "base", 1, 0.6),
        run("final", "new", 1, 0.9),
        run("final", "new", 2, 0.1),
    ]
    comparison = summed(results, ["base", "new"], "base")["new"].comparison
    assert comparison.difference.value == pytest.approx(0.3)
    assert comparison.pairs == (1,)
    assert comparison.verdict == "undecided"
    assert summed(results[1:2] + results[3:], ["base", "new"], "base")["new"].comparison is None


def test_steps_to_target_are_those_of_the_first_epoch_end_that_reaches_it():
    results = finals("a", [[0.1, 0.5, 0.4, 0.9], [0.1, 0.2, 0.3, 0.5], [0.5, 0.0, 0.0, 0.0]])
    summary = summed(results, ["a"], "a", target=0.5)
    assert reached(summary["a"]) == (20.0, 3)  # the median of 20, 40 and 10
    assert summary.target_given


def test_runs_that_never_reach_the_target_are_censored():
    results = finals("a", [[0.9, 0.9], [0.1, 0.9], [0.1, 0.1]])
    summary = summed(results, ["a"], "a", target=0.5)["a"]
    assert reached(summary) == (20.0, 2)
    summary = summed(results[1:], ["a"], "a", target=0.5)["a"]
    assert summary.time_to_target.restricted_mean == 20.0  # the one at 20, the other at its end
    results = finals("a", [[0.9, 0.9], [0.1, 0.1], [0.1, 0.1]])
    summary = summed(results, ["a"], "a", target=0.5)["a"]
    assert reached(summary) == (math.inf, 1)


def test_a_run_that_diverges_has_not_reached_the_target():
    results = [run("final", "a", 0, [0.9, 0.9], diverged=True)]
    summary = summed(results, ["a"], "a", target=0.5)["a"]
    assert reached(summary) == (math.inf, 0)


def test_the_default_target_is_95_percent_of_the_best_final_validation_accuracy():
    results = finals("a", [[0.99, 0.6], [0.99, 0.8]]) + finals("b", [[0.5, 0.5], [0.5, 0.7]])
    summary = summed(results, ["a", "b"], "a")
    assert summary.target == pytest.approx(0.95 * 0.7)
    assert not summary.target_given
    assert reached(summary["b"]) == (20.0, 1)


def test_diverged_final_runs_count_as_the_worst_outcome_and_are_counted():
    results = finals("a", [0.9, 0.9], seconds=3.0)
    results += [run("final", "a", 2, [0.9], diverged=True, seconds=0.1)]
    summary = summed(results, ["a"], "a")["a"]
    expected = estimate([[0.9, 0.9, 0.0]])
    assert summary.mean == replace(expected, interval=(0.0, 1.0))
    assert summary.loss == Estimate(math.inf, None, 3)
    assert (summary.runs, summary.diverged) == (3, (("", 2),))
    assert summary.seconds == 3.0  # stopping early is no speed


def test_a_metric_that_overflowed_is_the_worst_one_too():
    results = [run("final", "a", 0, 0.9, loss=math.inf), run("final", "a", 1, 0.9)]
    summary = summed(results, ["a"], "a")["a"]
    assert summary.loss.value == math.inf
    assert summary.mean.value == 0.9


@pytest.mark.parametrize(
    ("best", "at_edge"), [(0.01, True), (0.1, False), (0.3, False), (1.0, True)]
)
def test_a_chosen_value_at_the_edge_of_its_grid_is_flagged(best, at_edge):
    results = [
        run("tune", "a", 0, 0.9 if rate == best else 0.5, rate=rate)
        for rate in (0.1, 1.0, 0.01, 0.3)
    ]
    results += [run("final", "a", 0, rate=best)]
    assert summed(results, ["a"], "a")["a"].at_edge == ((RATE,) if at_edge else ())


@pytest.mark.parametrize("tried", [[0.1], ["sgd", "adam"], [True, False], [0, 0.1, 1]])
def test_words_switches_single_values_and_zero_are_no_edge(tried):
    results = [run("tune", "a", 0, 1 / (3 + i), rate=it) for i, it in enumerate(tried)]
    found = summed(results, ["a"], "a")["a"]
    assert found.values == {RATE: tried[0]}
    assert found.at_edge == ()


def test_the_best_variant_has_the_highest_accuracy_and_leads_seed_by_seed():
    accuracies = {"a": [0.5, 0.6, 0.7], "b": [0.6, 0.8, 0.7], "c": [0.9, 0.6, 0.5]}
    results = [it for name, values in accuracies.items() for it in finals(name, values)]
    summary = summed(results, ["a", "b", "c"], "a")
    assert summary.best == "b"
    (contest,) = summary.contests
    assert (contest.best, contest.name) == ("b", "")
    assert list(contest.leads) == ["a", "c"]
    assert contest.leads["a"].difference.value == pytest.approx(0.1)
    assert contest.leads["c"].difference.value == pytest.approx(0.1 / 3)


def test_at_equal_accuracy_the_lower_loss_is_best():
    results = finals("a", [0.5], loss=0.3) + finals("b", [0.5], loss=0.2)
    assert summed(results, ["a", "b"], "a").best == "b"


def test_a_study_without_final_runs_has_values_so_far_and_nothing_else():
    results = [run("tune", "a", 0, 0.5, rate=0.1), run("tune", "a", 0, 0.6, rate=0.2)]
    summary = summed(results, ["a", "b"], "a")
    assert summary.best is None
    assert summary.target is None
    assert summary["a"].values == {RATE: 0.2}
    assert summary["b"].values == {}
    for arm in summary.arms:
        assert arm.mean is None
        assert arm.loss is None
        assert arm.time_to_target is None
        assert arm.seconds is None
        assert arm.runs == 0


def test_when_every_final_run_diverged_there_is_no_best():
    results = finals("a", [[], []], diverged=True)
    summary = summed(results, ["a"], "a")
    assert summary.best is None
    assert summary.target is None
    assert len(summary["a"].diverged) == 2


def test_final_runs_of_values_that_no_longer_win_do_not_count():
    # A study run again with a wider grid: 0.3 wins now, and the runs at 0.1 are history.
    results = [
        run("tune", "a", 0, accuracy, rate=rate) for rate, accuracy in ((0.1, 0.8), (0.3, 0.9))
    ]
    results += finals("a", [0.8, 0.8], rate=0.1) + finals("a", [0.9, 0.9], rate=0.3)
    summary = summed(results, ["a"], "a")["a"]
    assert summary.mean == estimate([[0.9, 0.9]])
    assert summary.values == {RATE: 0.3}


@pytest.mark.parametrize("phase", ["tune", "final"])
def test_runs_of_two_configurations_are_not_averaged(phase):
    results = [run(phase, "a", 3, 0.5), run(phase, "a", 3, 0.9)]
    with pytest.raises(StoreError, match=f"2 {phase} runs with seed 3 .* folder of its own"):
        summed(results, ["a"], "a")


def test_variants_that_are_not_asked_for_are_left_out():
    results = finals("a", [0.5]) + finals("gone", [0.9])
    summary = summed(results, ["a"], "a")
    assert summary.best == "a"
    assert [it.name for it in summary.arms] == ["a"]


def test_an_unknown_baseline_is_an_error():
    with pytest.raises(ValueError, match="baseline 'c' is none of the variants a, b"):
        summed([], ["a", "b"], "c")


def test_an_arm_is_told_by_mean_median_and_middle_half():
    summary = summed(finals("a", [0.1, 0.5, 0.6, 0.7, 0.9]), ["a"], "a")["a"]
    assert summary.mean.value == pytest.approx(0.56)
    assert summary.median.value == 0.6
    assert summary.interquartile_mean.value == pytest.approx(0.6)  # of 0.5, 0.6 and 0.7
    assert summary.profile is None


def test_over_tasks_an_arm_has_a_profile():
    results = finals("a", [0.1, 0.5, 0.6, 0.7, 0.9], task="x") + finals("a", [0.1], task="y")
    profile = summarize(results, arms(["a"], {}, ["x", "y"]), "a")["a"].profile
    assert profile.share[0] == 0.4  # of x all but the worst lie above the worst, of y none
    assert profile.share[-1] == 0.0


def test_improvement_counts_the_pairs_of_runs_that_are_won():
    results = finals("base", [0.5, 0.7]) + finals("new", [0.6, 0.8])
    assert summed(results, ["base", "new"], "base")["new"].improvement.value == 0.75


def test_three_seeds_show_a_large_difference_among_six_arms_and_eight_a_smaller_one():
    names = ["base", "a", "b", "c", "d", "e"]
    for seeds, step, verdict in ((3, 0.0005, "undecided"), (3, 0.1, "better"), (8, 0.01, "better")):
        noise = np.random.default_rng(0).normal(0, 0.001, (6, seeds)).tolist()
        results = [
            it
            for place, name in enumerate(names)
            for it in finals(name, [0.4 + step * place + own for own in noise[place]])
        ]
        summary = summed(results, names, "base")
        comparisons = [summary[name].comparison for name in names[1:]]
        assert {it.verdict for it in comparisons} == {verdict}
        assert {it.comparisons for it in comparisons} == {15}


def test_within_the_margin_arms_are_equivalent_and_without_one_they_are_not():
    base = [0.90, 0.91, 0.92, 0.93, 0.94, 0.95]
    new = [it + d for it, d in zip(base, [0.002, 0.001, 0.002, 0.001, 0.002, 0.001], strict=True)]
    results = finals("base", base) + finals("new", new)
    verdicts = [
        summed(results, ["base", "new"], "base", margin=margin)["new"].comparison.verdict
        for margin in (0.005, None)
    ]
    assert verdicts == ["equivalent", "better"]


def test_intervals_have_the_confidence_that_the_significance_asks():
    results = finals("a", [0.7, 0.8, 0.9])
    found = summed(results, ["a"], "a", significance=0.1)["a"].mean
    assert found == estimate([[0.7, 0.8, 0.9]], confidence=0.9)


def test_who_reaches_the_target_first_is_counted_by_pairs():
    results = finals("base", [[0.1, 0.9], [0.9, 0.9], [0.1, 0.1]])
    results += finals("new", [[0.9, 0.9], [0.1, 0.9], [0.9, 0.9]])
    found = summed(results, ["base", "new"], "base", target=0.5)["new"].first_to_target
    assert (found.first, found.second, found.undecided) == (2, 1, 0)


def test_a_target_is_waited_for_when_every_run_diverged_at_once():
    results = finals("a", [[], []], diverged=True)
    summary = summed(results, ["a"], "a", target=0.5)["a"]
    assert reached(summary) == (math.inf, 0)


def test_the_budget_is_the_expected_best_of_so_many_trials():
    results = [
        run("tune", "a", 0, accuracy, rate=rate)
        for rate, accuracy in ((0.1, 0.6), (0.2, 0.9), (0.3, 0.3))
    ]
    budget = summed(results, ["a"], "a")["a"].budget
    # The pairs have 0.9, 0.9 and 0.6 as their best.
    assert budget.validation == pytest.approx([0.6, 0.8, 0.9])


def test_the_edge_of_a_range_is_its_outermost_twentieth():
    drawn = Range(low=0.01, high=1.0)
    for rate, at_edge in ((0.0125, True), (0.02, False), (0.5, False), (0.81, True)):
        results = [run("tune", "a", 0, rate=rate), run("tune", "a", 0, 0.1, rate=0.1)]
        found = summed(results, ["a"], "a", ranges={RATE: drawn})["a"]
        assert found.at_edge == ((RATE,) if at_edge else ()), rate


def test_any_arm_can_be_the_one_that_the_others_are_compared_with():
    accuracies = {"a": [0.5, 0.6, 0.7], "b": [0.6, 0.8, 0.7], "c": [0.9, 0.6, 0.5]}
    results = [it for name, values in accuracies.items() for it in finals(name, values)]
    summary = summed(results, ["a", "b", "c"], "a")
    found = summary.against(dict.fromkeys("abc", "b"))
    assert list(found) == ["a", "c"]
    assert found["a"] == summed(results, ["a", "b", "c"], "b")["a"].comparison
    assert found["a"].difference.value == pytest.approx(-0.1)
    assert found["c"].comparisons == 3


def of_task(task, name, accuracies, **changes):
    return finals(name, accuracies, task=task, **changes)


def test_two_tasks_weigh_the_same_and_pairs_stay_within_a_task():
    results = of_task("digits", "base", [0.90, 0.92]) + of_task("digits", "new", [0.92, 0.94])
    results += of_task("fashion", "base", [0.70, 0.72, 0.74])
    results += of_task("fashion", "new", [0.76, 0.77, 0.78], steps_per_epoch=99)
    summary = summarize(results, arms(["base", "new"], {}, ["digits", "fashion"]), "base")
    assert summary["base"].mean.value == pytest.approx((0.91 + 0.72) / 2)
    comparison = summary["new"].comparison
    assert comparison.pairs == (2, 3)
    assert comparison.difference.value == pytest.approx((0.02 + 0.05) / 2)
    assert summary["new"].by_seed == {0: pytest.approx(0.84), 1: pytest.approx(0.855)}
    assert summary.target is None
    assert summary["new"].time_to_target is None
    assert list(summary.tasks) == ["digits", "fashion"]
    fashion = summary.tasks["fashion"]
    assert fashion["new"].comparison.difference.value == pytest.approx(0.05)
    assert fashion.target == pytest.approx(0.95 * 0.77)
    assert reached(fashion["new"]) == (99.0, 3)
    assert summary.ranking.ranks == {"new": 1.0, "base": 2.0}
    assert summary.best == "new"


def test_tuned_values_of_tasks_are_their_own():
    names = arms(["a"], {}, ["digits", "fashion"])
    results = [
        run(phase, "a", 0, rate=rate, task=task)
        for phase in ("tune", "final")
        for task, rate in (("digits", 0.1), ("fashion", 0.3))
    ]
    summary = summarize(results, names, "a")
    assert summary["a"].values == {}
    assert summary.tasks["digits"]["a"].values == {RATE: 0.1}
    assert summary.tasks["fashion"]["a"].values == {RATE: 0.3}
    assert [trial.values for trial in summary.tasks["digits"]["a"].trials] == [{RATE: 0.1}]


def test_as_long_as_a_task_has_no_run_nothing_is_said_over_all():
    names = arms(["base", "new"], {}, ["digits", "fashion"])
    results = of_task("digits", "base", [0.9]) + of_task("digits", "new", [0.8])
    results += of_task("fashion", "base", [0.7])
    summary = summarize(results, names, "base")
    assert summary["new"].mean is None
    assert summary["new"].comparison is None
    assert summary.ranking is None
    assert summary.best == "base"
    assert summary.tasks["digits"]["new"].comparison.pairs == (1,)


def test_with_factors_arms_compete_and_are_compared_at_their_own_levels():
    names = arms(["base", "new"], {"data.batch_size": [16, 64]}, [])
    accuracies = {
        "base, batch_size=16": [0.5, 0.6],
        "new, batch_size=16": [0.7, 0.9],
        "base, batch_size=64": [0.8, 0.9],
        "new, batch_size=64": [0.7, 0.7],
    }
    results = [
        it
        for name, values in accuracies.items()
        for it in finals(name.split(",")[0], values, arm=name)
    ]
    summary = summarize(results, names, "base")
    assert [it.name for it in summary.arms] == list(accuracies)
    assert summary["new, batch_size=16"].levels == {"data.batch_size": 16}
    differences = [it.comparison.difference.value for it in summary.arms if it.comparison]
    assert differences == pytest.approx([0.25, -0.15])
    assert {it.comparison.comparisons for it in summary.arms if it.comparison} == {2}
    small, large = summary.contests
    assert (small.name, small.levels) == ("batch_size=16", {"data.batch_size": 16})
    assert (small.best, large.best) == ("new, batch_size=16", "base, batch_size=64")
    assert large.leads["new, batch_size=64"].difference.value == pytest.approx(0.15)
    assert summary.best == "base, batch_size=64"


def test_a_pair_has_one_comparison_whoever_asks():
    accuracies = {"a": [0.5, 0.6, 0.7], "b": [0.6, 0.8, 0.7], "c": [0.9, 0.6, 0.5]}
    results = [it for name, values in accuracies.items() for it in finals(name, values)]
    summary = summed(results, ["a", "b", "c"], "a")
    assert summary.contests[0].leads["a"] == summary["b"].comparison
    assert summary.against({"b": "a"})["b"] == summary["b"].comparison
    turned = summary.against({"a": "b"})["a"]
    assert turned.adjusted_p == summary["b"].comparison.adjusted_p
    assert turned.difference.value == -summary["b"].comparison.difference.value


def test_without_a_difference_the_best_arm_seldom_seems_to_win():
    draw = np.random.default_rng(0)
    names = [f"arm {place}" for place in range(10)]
    won = 0
    for _ in range(200):
        scores = 0.9 + 0.005 * (draw.normal(size=8) + draw.normal(size=(10, 8)))
        best = names[int(np.argmax(scores.mean(1)))]
        by_arm = {name: [dict(enumerate(row))] for name, row in zip(names, scores, strict=True)}
        found = all_pairs(by_arm, [names]).compare([(best, it) for it in names])
        won += any(it.verdict == "better" for it in found.values())
    # With a true level of 5%, more than 18 of 200 have a probability below 0.5%.
    assert won <= 18


def test_arms_that_tie_are_all_first():
    accuracies = {"a": [1.0, 0.9], "b": [0.9, 1.0], "c": [0.9, 0.9]}
    results = [it for name, values in accuracies.items() for it in finals(name, values)]
    (contest,) = summed(results, ["a", "b", "c"], "a").contests
    assert (contest.best, contest.first) == ("a", ("a", "b"))


def test_the_pairs_of_three_hundred_arms_share_their_random_signs():
    """Signs drawn anew for each of the 44,850 pairs took minutes."""
    draw = np.random.default_rng(0)
    names = [f"arm{place}" for place in range(300)]
    results = [it for name in names for it in finals(name, (0.9 + 0.01 * draw.random(30)).tolist())]
    permutation._drawn_signs.cache_clear()
    summary = summed(results, names, names[0])
    assert permutation._drawn_signs.cache_info().misses == 1
    assert summary.pairs.comparisons == 300 * 299 // 2


def test_arms_have_names_of_their_own_however_variants_levels_and_tasks_are_called():
    """A level 16 and a level "16", or a variant `a, x=1`, gave two arms one name.

    So did a variant `a on` with a task `c`, and `a` with `on c`.
    """
    names = [
        "a",
        "a, x=1",
        "a, x=2",
        '"a',
        "a on b",
        "b",
        "b on c",
        '"a on b"',
        "x=1",
        "a on",
        "on c",
        "c",
    ]
    levels = [1, "1", True, "true", None, "null", "", [1], "[1]", "1, y=1", '"1"', "b on c", 1.0]
    combinations = [{}, *({"model.x": it} for it in levels), {"model.x": 1, "model.y": 1}]
    for factors, tasks in itertools.product([{}, combinations], [[], names]):
        made = arms(names, factors, tasks)
        assert len({it.title for it in made}) == len({it.key for it in made}) == len(made)
        assert len({(it.name, it.task) for it in made}) == len(made)
        assert len({it.place for it in made}) == (len(combinations) if factors else 1)


def test_contests_of_levels_that_look_alike_stay_apart():
    made = arms(["none", "batch"], {"model.x": [16, "16"]}, [])
    results = [
        run("final", it.variant, seed, 0.9 - 0.1 * (it.levels["model.x"] == 16), arm=it.name)
        for it in made
        for seed in range(3)
    ]
    said = summarize(results, made, "none")
    assert [(it.name, len(it.arms)) for it in said.contests] == [("x=16", 2), ('x="16"', 2)]
    assert [it.mean.value for it in said.arms] == pytest.approx([0.8, 0.8, 0.9, 0.9])
