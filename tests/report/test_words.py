"""What a study says in words."""

import math

import pytest
from report.studies import QUICKSTART, draw_study

from normlab.compare.statistics import Estimate, Summary, VariantSummary
from normlab.report import read_study
from normlab.report.words import conclude, listed, loss, number, percent, points, tuned_value

TWO = {name: QUICKSTART[name] for name in ("none", "batch")}


def variant(name, accuracy, difference=None, **changes):
    fields = {
        "name": name,
        "seeds": 8,
        "diverged": 0,
        "accuracy": Estimate(accuracy, (accuracy - 0.01, accuracy + 0.01), 8),
        "loss": Estimate(0.1, (0.05, 0.15), 8),
        "difference": difference,
        "steps_to_target": 100.0,
        "reached": 8,
        "values": {"optimizer.learning_rate": 0.1},
        "at_edge": (),
        "seconds": 1.0,
    }
    return VariantSummary(**(fields | changes))


def study(*variants, leads, best="a"):
    return Summary(variants, "base", {}, 0.9, True, best, leads)


def difference(mean, low, high, count=8):
    return Estimate(mean, (low, high), count)


CLEAR = difference(0.02, 0.01, 0.03)
UNCLEAR = difference(0.002, -0.01, 0.014)


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


def test_a_clear_winner_won():
    found = conclude(study(variant("base", 0.9), variant("a", 0.92, CLEAR), leads={"base": CLEAR}))
    assert found.headline == "a won with 92.00% test accuracy."
    (fact,) = found.facts
    assert (fact.label, fact.belief) == ("above base, the baseline", "yes")
    assert found.comparisons == {"a": "better than base by 2.00 points [1.00, 3.00]"}
    assert found.remarks == ()


def test_a_lead_over_few_seeds_is_not_called_a_win():
    few = difference(0.02, 0.01, 0.03, count=3)
    found = conclude(study(variant("base", 0.90), variant("a", 0.92, few), leads={"base": few}))
    expected = "a came first with 92.00% test accuracy, but 3 seeds are too few to be sure."
    assert found.headline == expected


def test_a_winner_that_may_be_lucky_only_came_first():
    found = conclude(
        study(
            variant("base", 0.9),
            variant("a", 0.92, CLEAR),
            variant("b", 0.918, difference(0.018, 0.008, 0.028)),
            leads={"base": CLEAR, "b": UNCLEAR},
        )
    )
    assert found.headline == (
        "a came first with 92.00% test accuracy, but its lead over b may be chance."
    )
    assert [fact.label for fact in found.facts] == [
        "above base, the baseline",
        "above b, the runner-up",
    ]
    assert [fact.belief for fact in found.facts] == ["yes", "no"]
    assert "2 comparisons" in found.remarks[0]


def test_a_baseline_that_wins_is_held_against_the_runner_up():
    worse = difference(-0.02, -0.03, -0.01)
    found = conclude(
        study(variant("base", 0.9), variant("a", 0.88, worse), leads={"a": CLEAR}, best="base")
    )
    assert found.headline == "base won with 90.00% test accuracy."
    assert [fact.label for fact in found.facts] == ["above a, the runner-up"]
    assert found.comparisons == {"a": "worse than base by 2.00 points [1.00, 3.00]"}


def test_an_interval_that_covers_0_shows_no_difference():
    found = conclude(study(variant("base", 0.9), variant("a", 0.902, UNCLEAR), leads={}))
    assert found.comparisons["a"] == (
        "no difference to base shown (+0.20 points [\N{MINUS SIGN}1.00, +1.40])"
    )


@pytest.mark.parametrize(("seeds", "belief"), [(1, "open"), (5, "open"), (6, "yes")])
def test_too_few_seeds_are_said_to_be_too_few(tmp_path, seeds, belief):
    found = conclude(read_study(draw_study(tmp_path, TWO, seeds=seeds)).summary)
    assert [fact.belief for fact in found.facts] == [belief]
    text = " ".join(found.remarks)
    assert ("nothing here can be told from chance" in text) == (seeds == 1)
    assert ("smallest two-sided p-value is 0.0625. Take at least 6" in text) == (seeds == 5)


def test_diverged_runs_and_values_at_the_edge_are_remarked():
    edge = {"at_edge": ("optimizer.learning_rate",)}
    remarks = conclude(
        study(
            variant("base", 0.9, diverged=3, **edge),
            variant("a", 0.92, CLEAR, **edge),
            leads={"base": CLEAR},
        )
    ).remarks
    assert remarks == (
        "3 of 8 final runs of base diverged. They count as accuracy 0 and infinite loss.",
        "The chosen learning_rate of base (0.1) and a (0.1) lies at the edge of its grid; "
        "a better one may lie beyond.",
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
