"""What a study says in words."""

import math

import pytest
from compare.results import RATE, finals, run
from report.studies import QUICKSTART, draw_study

from normlab.compare.arm import arms
from normlab.compare.summary import summarize
from normlab.report import read_study
from normlab.report.words import (
    conclude,
    interval,
    listed,
    loss,
    number,
    percent,
    points,
    tuned_value,
)

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
    assert points(-0.0123) == "\N{MINUS SIGN}1.23"
    assert points(0.0123) == "+1.23"
    assert points(-0.00001) == "+0.00"
    assert number(1234.5) == "1,234"
    assert number(0.081234) == "0.0812"
    assert loss(0.1) == "0.100"
    assert loss(math.inf) == "∞"
    assert tuned_value(1e-5) == "1e-05"
    assert tuned_value("cosine") == "cosine"
    assert listed(["a"]) == "a"
    assert listed("abc") == "a, b and c"


def test_a_clear_winner_won_and_is_to_be_believed():
    found = said({"base": BASE, "a": above(0.02)})
    assert found.headline == (
        "a won with 93.20% test accuracy, 2.20 points above base, the baseline."
    )
    assert found.belief == "Believe that it beats base."
    assert found.verdict == f"{found.headline} {found.belief}"
    (fact,) = found.facts
    assert (fact.label, fact.belief) == ("above base, the baseline", "yes")
    assert found.comparisons == {
        "a": "a is better than base by 2.20 points [2.14, 2.26] (8 paired seeds, p = 0.0078)."
    }
    assert found.remarks == ()


def test_five_seeds_are_said_to_be_too_few_before_any_p_value():
    found = said({"base": BASE[:5], "a": above(0.02, 5)})
    assert found.headline.startswith("a came first with")
    assert found.belief == (
        "Do not rely on it: 5 pairs are too few to show any difference, whatever the data; "
        "that takes 6."
    )
    sentence = found.comparisons["a"]
    assert sentence.startswith("It is undecided whether a differs from base: +2.18 points [")
    assert sentence.index("Whatever the data, 5 pairs cannot show") < sentence.index("p = 0.062")
    assert found.remarks[0] == (
        "5 pairs cannot reach p = 0.05, whatever the data: the smallest p-value of the exact "
        "sign-flip test is 0.062 then. Take at least 6."
    )
    assert sentence.endswith("A difference of this size and spread takes about 6 pairs to show.")
    assert [fact.belief for fact in found.facts] == ["open"]


def test_five_comparisons_over_eight_seeds_are_corrected_by_holm():
    noises = [NOISE[k:] + NOISE[:k] for k in range(5)]
    accuracies = {f"a{k}": above(0.01 * (k + 1), noise=noise) for k, noise in enumerate(noises)}
    found = said({"base": BASE, **accuracies})
    assert found.headline.startswith("a4 won with")
    assert found.belief == "Believe that it beats every other arm."
    for sentence in found.comparisons.values():
        assert "(8 paired seeds, p = 0.039 after Holm's correction for 5 comparisons)" in sentence
    assert (
        "The p-values of 5 comparisons are corrected together by Holm's method; each 95% interval "
        "holds by itself."
    ) in found.remarks


def test_a_lead_that_may_be_chance_is_no_win():
    found = said({"base": BASE, "a": above(0.03), "b": above(0.03, noise=WAVERING)})
    assert found.headline == (
        "a came first with 94.20% test accuracy, 3.20 points above base, the baseline."
    )
    assert found.belief == "Believe that it beats base. Its lead over b may be chance."
    assert [(fact.label, fact.belief) for fact in found.facts] == [
        ("above base, the baseline", "yes"),
        ("above b, the runner-up", "open"),
    ]
    assert found.facts[1].comparison.sentence.startswith("It is undecided whether a differs from b")
    assert any("picked by the same runs" in it for it in found.remarks)


def test_a_lead_within_the_margin_is_no_difference():
    found = said({"base": BASE, "a": above(0)}, margin=0.005)
    assert found.belief == "It is no different from base within 0.50 points."
    assert [fact.belief for fact in found.facts] == ["no"]
    assert found.comparisons["a"].startswith(
        "a is no different from base within 0.50 points: +0.20"
    )


def test_a_baseline_that_wins_is_held_against_the_runner_up():
    found = said({"base": BASE, "a": above(-0.02)})
    assert found.headline == (
        "base won with 91.00% test accuracy, 1.80 points above a, the runner-up."
    )
    assert [fact.label for fact in found.facts] == ["above a, the runner-up"]
    assert found.comparisons["a"].startswith("a is worse than base by 1.80 points [")


def test_one_seed_is_no_evidence():
    found = said({"base": BASE[:1], "a": above(0.02, 1)})
    assert found.belief == (
        "Do not rely on it: one seed shows no spread, so all of this may be chance."
    )


def test_of_one_seed_nothing_is_said_of_corrections_and_intervals():
    found = said({"base": BASE[:1], "a": above(0.02, 1), "b": above(0.01, 1)})
    assert found.remarks == (
        "The best arm was picked by the same runs that compare it, which flatters its lead.",
    )


def test_diverged_runs_are_listed_by_seed():
    results = finals("base", BASE) + finals("a", above(0.02)[:6])
    results += [run("final", "a", seed, [], diverged=True) for seed in (6, 7)]
    found = conclude(summarize(results, arms(["base", "a"], {}, []), "base"))
    assert found.headline.startswith("base came first")
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
        "a better one may lie beyond."
    )


def test_unequal_numbers_of_runs_are_remarked():
    found = said({"base": BASE, "a": above(0.02)[:7]})
    assert (
        "The arms have unequal numbers of final runs: base 8 and a 7. The best is picked over the "
        "seeds that all have, where there are such."
    ) in found.remarks


def test_while_runs_lack_the_best_is_picked_over_the_seeds_that_all_have():
    base = [0.95, 0.96, 0.95, 0.96, 0.80, 0.81, 0.80, 0.81]
    found = said({"base": base, "a": [0.94, 0.95, 0.94, 0.95]})
    assert found.headline == (
        "base came first with 88.00% test accuracy, 1.00 points above a, the runner-up."
    )


def test_a_lead_that_is_none_over_more_seeds_is_no_negative_lead():
    accuracies = {"base": [0.90] * 2 + [0.95] * 6, "a": [0.92] * 2 + [0.91] * 6, "b": [0.80] * 2}
    found = said(accuracies)
    assert found.headline == (
        "a came first with 91.25% test accuracy, 2.50 points below base, the baseline."
    )
    (fact,) = found.facts
    assert fact.label == "against base, the baseline"
    assert points(fact.comparison.difference.value) == "\N{MINUS SIGN}2.50"


def test_accuracies_of_diverged_runs_have_no_interval_beyond_a_hundred_percent():
    results = finals("base", BASE) + finals("a", [0.99] * 6)
    results += [run("final", "a", seed, [], diverged=True) for seed in (6, 7)]
    results += [run("tune", "a", seed, it) for seed, it in ((8, 0.9), (9, 1.0))]
    summary = summarize(results, arms(["base", "a"], {}, []), "base")
    accuracy = summary["a"].accuracy
    assert accuracy.interval[1] == 1
    assert interval(accuracy, percent) == f"[{percent(accuracy.interval[0])}, 100.00%]"
    assert summary["a"].trials[0].accuracy.interval[1] == 1
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
        "The p-values of 2 comparisons are corrected together by Holm's method; those on each task "
        "are, and those over all tasks, by themselves; each 99% interval holds by itself."
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
    assert "(16 pairs over 2 tasks, p < 0.001)" in found.comparisons["a"]
    assert list(found.tasks) == ["digits", "fashion"]
    assert found.tasks["fashion"] == (
        "a won with 95.20% test accuracy, 4.20 points above base, the baseline. "
        "Believe that it beats base."
    )


@pytest.mark.parametrize(
    ("at_64", "headline", "belief"),
    [
        (
            0.02,
            "a came first at both combinations of levels.",
            "Believe it: each of them is shown to be better than every other arm there.",
        ),
        (
            -0.02,
            "No variant came first everywhere: a at batch_size=16; base at batch_size=64.",
            "Believe it: each of them is shown to be better than every other arm there.",
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
        "Believe that it beats base."
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
