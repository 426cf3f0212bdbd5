"""What a study says in words."""

import math
from functools import partial

import pytest
from compare.results import ACCURACY, RATE, finals, run
from report.studies import QUICKSTART, draw_study

from normlab.compare.arm import arms
from normlab.compare.summary import summarize as summarize_measure
from normlab.report import read_study
from normlab.report.words import (
    conclude,
    difference,
    interval,
    listed,
    loss,
    number,
    percent,
    signed,
    tuned_value,
)

summarize = partial(summarize_measure, measure=ACCURACY)

BASE = [0.90, 0.91, 0.92, 0.90, 0.91, 0.92, 0.90, 0.92]
NOISE = [0.001, 0.003, 0.002, 0.001, 0.002, 0.003, 0.002, 0.002]
WAVERING = [0.03, -0.03, 0.02, -0.02, 0.03, -0.03, 0.02, -0.01]


def above(difference, seeds=8, noise=NOISE):
    return [base + difference + it for base, it in zip(BASE[:seeds], noise, strict=False)]


def said(accuracies, baseline="base", **options):
    """The conclusion of a study without factors and tasks: arm -> accuracies by seed."""
    results = [it for name, values in accuracies.items() for it in finals(name, values)]
    return conclude(summarize(results, arms(accuracies, {}, []), baseline, **options))


def test_numbers_are_short_and_have_real_minus_signs():
    assert percent(0.98123) == "98.12%"
    assert signed(-0.0123, 2, ACCURACY) == "\N{MINUS SIGN}1.23"
    assert signed(0.0123, 2, ACCURACY) == "+1.23"
    assert signed(-0.00001, 2, ACCURACY) == "+0.00"
    assert number(1234.5) == "1,234"
    assert number(0.081234) == "0.0812"
    assert loss(0.1) == "0.100"
    assert loss(math.inf) == "∞"
    assert tuned_value(1e-5) == "1e-05"
    assert tuned_value("cosine") == "cosine"
    assert listed(["a"]) == "a"
    assert listed("abc") == "a, b and c"


SIMULATED = (
    "In simulations with near normal, skewed and discrete scores, unequal spreads and a failed "
    "seed, hardly more than 1 study in 20 came to any wrong “better” or “worse” at a significance "
    "of 0.05; of scores that were skewed and of unequal spread at once, up to 1 in 10."
)


def test_a_clear_winner_won_and_is_shown_to():
    found = said({"base": BASE, "a": above(0.02)})
    assert found.headline == (
        "a won with 93.20% test accuracy, 2.20 points above base, the baseline."
    )
    assert found.belief == "It is shown to be better than base."
    assert found.verdict == f"{found.headline} {found.belief}"
    (fact,) = found.facts
    assert (fact.label, fact.belief) == ("above base, the baseline", "yes")
    assert found.comparisons == {
        "a": "a is better than base by 2.20 points [2.13, 2.27] (8 paired seeds; p < 0.001)."
    }
    assert found.remarks == (f"The p-value is of a paired t-test. {SIMULATED}",)


def test_six_clear_wins_of_six_are_shown_among_three_arms():
    # Exact tests by flips of signs, corrected for all, leave every one of them undecided.
    found = said({"base": BASE[:6], "a": above(0.02, 6), "b": above(0.01, 6)})
    assert found.headline.startswith("a won with 93.20% test accuracy")
    assert found.belief == "It is shown to be better than every other variant."
    assert [fact.belief for fact in found.facts] == ["yes", "yes"]
    assert {it.split(" by ")[0] for it in found.comparisons.values()} == {
        *("a is better than base", "b is better than base")
    }


def test_seeds_that_are_too_few_are_told_once_with_the_number_that_would_do():
    accuracies = {f"a{k}": above(0.0005 * k, 3, NOISE[k:] + NOISE[:k]) for k in range(5)}
    found = said({"base": BASE[:3], **accuracies}, margin=0.0001)
    assert found.headline.startswith(
        "No variant is shown best; 3 seeds can hardly show one: a4 came first with"
    )
    assert found.remarks[0] == (
        "With 3 seeds the clearest of 15 differences is shown only where its mean is at least 10.0 "
        "times its standard deviation over the seeds. Take 8: with these a true difference of 2 "
        "standard deviations is shown in 4 of 5 studies."
    )


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_show_nothing(seeds):
    found = said({name: above(0.02 * k, seeds) for k, name in enumerate(["base", "a", "b"])})
    assert found.headline.startswith(
        f"No variant is shown best; {seeds} seed{'s' * (seeds > 1)} cannot show one: b came first"
    )
    assert found.remarks == (
        f"With {seeds} seed{'s' * (seeds > 1)} no difference can be shown. Take 6: with these a "
        "true difference of 2 standard deviations is shown in 4 of 5 studies.",
    )
    assert {fact.belief for fact in found.facts} == {"open"}
    for sentence in found.comparisons.values():
        assert sentence.endswith("decide nothing; 6 seeds would show a clear difference.")


def test_where_all_arms_tie_no_winner_is_named():
    names = ["identity", "batch", "layer", "group", "rms_norm"]
    found = said(dict.fromkeys(names, [1.0] * 3), "identity", margin=0.005)
    assert found.headline == (
        "No variant is shown best; 3 seeds can hardly show one: all 5 tie at 100.00% test accuracy."
    )
    assert found.belief == ""
    for sentence in found.comparisons.values():
        assert "is equivalent to identity within 0.50 points: +0.00 points [0.00, 0.00]" in (
            sentence
        )
    found = said(dict.fromkeys(names, BASE), "identity", margin=0.005)
    assert found.headline == "No variant is shown best: all 5 tie at 91.00% test accuracy."


def test_arms_that_tie_for_the_first_place_are_both_named():
    found = said({"base": BASE, "x": above(0.02), "y": above(0.02)}, margin=0.005)
    assert found.headline == (
        "No variant is shown best: x and y tie for the first place with 93.20% test accuracy, 2.20 "
        "points above base, the baseline."
    )
    assert found.belief == "x is shown to be better than base."
    assert [(it.label, it.belief) for it in found.facts] == [
        ("above base, the baseline", "yes"),
        ("against y, tied with it", "no"),
    ]


def test_the_correction_is_told():
    noises = [NOISE[k:] + NOISE[:k] for k in range(5)]
    accuracies = {f"a{k}": above(0.01 * (k + 1), noise=noise) for k, noise in enumerate(noises)}
    found = said({"base": BASE, **accuracies})
    assert found.headline.startswith("a4 won with")
    assert found.belief == "It is shown to be better than every other variant."
    for sentence in found.comparisons.values():
        assert "corrected for 15 pairs of arms)" in sentence
    assert found.remarks == (
        "P-values and intervals of differences are corrected for all 15 pairs of arms, so that the "
        f"best one may be picked by the same runs. {SIMULATED}",
    )


def test_a_lead_that_may_be_chance_is_no_win():
    found = said({"base": BASE, "a": above(0.03), "b": above(0.03, noise=WAVERING)})
    assert found.headline == (
        "No variant is shown best: a came first with 94.20% test accuracy, 3.20 points above base, "
        "the baseline."
    )
    assert found.belief == "It is shown to be better than base. Its lead over b may be chance."
    assert [(fact.label, fact.belief) for fact in found.facts] == [
        ("above base, the baseline", "yes"),
        ("above b, the runner-up", "open"),
    ]
    assert found.facts[1].comparison.sentence.startswith("It is undecided whether a differs from b")


def test_facts_have_what_keeps_the_first_from_winning():
    # The runner-up lies closest, but what varies most, as by diverged runs, is what is not shown.
    wide = [0.1, 0.93, 0.92, 0.9, 0.1, 0.92, 0.9, 0.92]
    found = said({"base": BASE, "a": above(0.03), "b": wide})
    assert found.headline.startswith("No variant is shown best: a came first")
    assert [(fact.label, fact.belief) for fact in found.facts] == [
        ("above base, the baseline", "yes"),
        ("above b", "open"),
    ]


def test_a_lead_within_the_margin_is_no_difference():
    found = said({"base": BASE, "a": above(0)}, margin=0.005)
    assert found.belief == "It is equivalent to base within 0.50 points."
    assert [fact.belief for fact in found.facts] == ["no"]
    assert found.comparisons["a"].startswith("a is equivalent to base within 0.50 points: +0.20")


def test_a_baseline_that_wins_is_held_against_the_runner_up():
    found = said({"base": BASE, "a": above(-0.02)})
    assert found.headline == (
        "base won with 91.00% test accuracy, 1.80 points above a, the runner-up."
    )
    assert [fact.label for fact in found.facts] == ["above a, the runner-up"]
    assert found.comparisons["a"].startswith("a is worse than base by 1.80 points [")


def test_diverged_runs_are_listed_by_seed():
    results = finals("base", BASE) + finals("a", above(0.02)[:6])
    results += [run("final", "a", seed, [], diverged=True) for seed in (6, 7)]
    found = conclude(summarize(results, arms(["base", "a"], {}, []), "base"))
    assert found.headline.startswith("No variant is shown best: base came first")
    assert (
        "2 of 8 final runs of a diverged (seeds 6 and 7). They count as accuracy 0 and infinite "
        "loss."
    ) in found.remarks
    assert "Diverged, counted as the worst outcome: 2 runs of a" in found.comparisons["a"]


def test_chosen_values_at_the_edge_are_remarked_together():
    results = [
        it
        for name in ("base", "a")
        for it in [
            run("tune", name, 0, 0.9, rate=0.3),
            run("tune", name, 0, 0.8, rate=0.1),
            *finals(name, BASE, rate=0.3),
        ]
    ]
    summary = summarize(results, arms(["base", "a"], {}, []), "base")
    assert summary["a"].values == {RATE: 0.3}
    assert conclude(summary).remarks[-1] == (
        "The chosen learning_rate of base (0.3) and a (0.3) lies at the edge of what was tried; "
        "a better one may lie beyond. To look there, run the study again with further values or a "
        "wider range in tune, or with a larger tune.extend, as tune.extend=3, which grids have "
        "whose points all run to their end."
    )


def test_unequal_numbers_of_runs_are_remarked():
    found = said({"base": BASE, "a": above(0.02)[:7]})
    assert (
        "The arms have unequal numbers of final runs: 7 of a; 8 of base. The best is picked over "
        "the seeds that all have, where there are such."
    ) in found.remarks


def test_while_runs_lack_the_best_is_picked_over_the_seeds_that_all_have():
    base = [0.95, 0.96, 0.95, 0.96, 0.80, 0.81, 0.80, 0.81]
    found = said({"base": base, "a": [0.94, 0.95, 0.94, 0.96]})
    assert found.headline == (
        "No variant is shown best; 4 seeds can hardly show one: base came first with 88.00% test "
        "accuracy, 0.75 points above a, the runner-up."
    )


def test_a_lead_that_is_none_over_more_seeds_is_no_negative_lead():
    accuracies = {"base": [0.90] * 2 + [0.95] * 6, "a": [0.92] * 2 + [0.91] * 6, "b": [0.80] * 2}
    found = said(accuracies)
    assert found.headline == (
        "No variant is shown best; 2 seeds can hardly show one: a came first with 91.25% test "
        "accuracy, 2.50 points below base, the baseline."
    )
    assert found.belief == "Its lead over b may be chance. It is not shown to differ from base."
    (fact,) = found.facts
    assert fact.label == "against base, the baseline"
    assert difference(fact.comparison) == "\N{MINUS SIGN}2.50"


def test_a_tie_of_means_is_no_lead_that_may_be_chance():
    found = said({"base": [0.90, 0.91, 0.92], "a": [0.92, 0.91, 0.90]})
    assert found.headline.endswith(": base and a tie at 91.00% test accuracy.")
    assert found.belief == "base is not shown to differ from a."


def test_arms_without_a_seed_in_common_are_said_to_have_none():
    results = finals("base", BASE) + [run("final", "a", 20 + seed, 0.95) for seed in range(8)]
    found = conclude(summarize(results, arms(["base", "a"], {}, []), "base"))
    assert found.headline == (
        "a reached 95.00% test accuracy; no other variant has seeds in common with it, so that "
        "nothing can be compared."
    )


def test_of_unequal_numbers_of_seeds_the_fewest_are_said_to_be_too_few():
    # The pair of a and base is shown, so that 2 seeds must not be said of all pairs.
    found = said({"base": BASE, "a": above(0.02), "b": above(0.05, 2)})
    fewest = "Where arms share the fewest seeds: with 2 seeds no difference can be shown. Take 6:"
    assert found.comparisons["a"].startswith("a is better than base")
    assert found.remarks[0].startswith(fewest)
    found = said({"base": BASE, "a": above(0.05), "b": above(0.02, 2)})
    assert found.remarks[0].startswith(fewest)


def test_levels_at_which_an_arm_is_alone_have_no_first():
    names = arms(["base", "a"], {"data.batch_size": [16, 64]}, [])
    results = [
        it
        for name, scores in [("base", BASE), ("a", above(0.03))]
        for it in finals(name, scores, arm=f"{name}, batch_size=16")
    ]
    results += finals("base", BASE, arm="base, batch_size=64")
    found = conclude(summarize(results, names, "base"))
    assert found.headline == (
        "A variant is shown best only at batch_size=16: first came a at batch_size=16."
    )
    assert found.belief == "At batch_size=64 there is nothing to compare yet."


def test_accuracies_of_diverged_runs_have_no_interval_beyond_a_hundred_percent():
    results = finals("base", BASE) + finals("a", [0.99] * 6)
    results += [run("final", "a", seed, [], diverged=True) for seed in (6, 7)]
    results += [run("tune", "a", seed, it) for seed, it in ((8, 0.9), (9, 1.0))]
    summary = summarize(results, arms(["base", "a"], {}, []), "base")
    accuracy = summary["a"].mean
    assert accuracy.interval[1] == 1
    assert interval(accuracy, percent) == f"[{percent(accuracy.interval[0])}, 100.00%]"
    assert summary["a"].trials[0].reached.interval[1] == 1
    # A difference may lie beyond.
    assert summary["a"].comparison.difference.interval[0] < -0.5


def test_each_task_and_all_together_are_corrected_by_themselves():
    results = [
        it
        for task in ("digits", "fashion")
        for name, lift in {"base": 0, "a": 0.01, "b": 0.02}.items()
        for it in finals(name, above(lift), task=task)
    ]
    names = arms(["base", "a", "b"], {}, ["digits", "fashion"])
    assert (
        "P-values and intervals of differences are corrected for all 3 pairs of arms; each task's "
        "pairs, and those over all tasks, by themselves, so that the best one may be picked by the "
        f"same runs. {SIMULATED}"
    ) in conclude(summarize(results, names, "base", significance=0.01)).remarks


def test_of_two_tasks_the_aggregate_comes_first():
    results = [
        it
        for task, lift in (("digits", 0.02), ("fashion", 0.04))
        for name, values in {"base": BASE, "a": above(lift)}.items()
        for it in finals(name, values, task=task)
    ]
    found = conclude(summarize(results, arms(["base", "a"], {}, ["digits", "fashion"]), "base"))
    assert found.headline == (
        "a won with 94.20% mean test accuracy over 2 tasks, 3.20 points above base, the baseline."
    )
    assert "(16 pairs over 2 tasks; p < 0.001)" in found.comparisons["a"]
    assert list(found.tasks) == ["digits", "fashion"]
    assert found.tasks["fashion"] == (
        "a won with 95.20% test accuracy, 4.20 points above base, the baseline. "
        "It is shown to be better than base."
    )


@pytest.mark.parametrize(
    ("at_64", "headline", "belief"),
    [
        (
            0.02,
            "a won at both combinations of levels.",
            "Each of them is shown to be better than every other variant there.",
        ),
        (
            -0.02,
            "No variant won everywhere: first came a at batch_size=16; base at batch_size=64.",
            "Each of them is shown to be better than every other variant there.",
        ),
    ],
)
def test_with_factors_each_combination_of_levels_has_its_winner(at_64, headline, belief):
    names = arms(["base", "a"], {"data.batch_size": [16, 64]}, [])
    lift = {"base, batch_size=16": 0.0, "a, batch_size=16": 0.03, "base, batch_size=64": 0.0}
    lift["a, batch_size=64"] = at_64
    results = [
        it
        for name, difference in lift.items()
        for it in finals(
            name.split(",")[0],
            above(difference) if name.startswith("a") else BASE,
            arm=name,
        )
    ]
    found = conclude(summarize(results, names, "base"))
    assert found.headline == headline
    assert found.belief == belief
    assert found.facts == ()
    assert found.levels["batch_size=16"] == (
        "a won with 94.20% test accuracy, 3.20 points above base, the baseline. "
        "It is shown to be better than base."
    )


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({"final": False}, "No conclusion yet: no final run is done."),
        (
            {"variants": {"batch": QUICKSTART["batch"] | {"diverges": range(8)}}},
            "Nothing to conclude: every final run diverged.",
        ),
        ({"variants": {"batch": QUICKSTART["batch"]}}, "there is nothing to compare it with yet."),
    ],
)
def test_without_a_comparison_nothing_is_concluded(tmp_path, changes, headline):
    found = conclude(read_study(draw_study(tmp_path, **changes)).summary)
    assert found.headline.endswith(headline)
    assert found.facts == ()
    assert found.comparisons == {}
