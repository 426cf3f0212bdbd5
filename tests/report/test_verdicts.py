"""The table of verdicts: what the summary says, by the command, in every format."""

import io

import polars as pl
import pytest
from report.studies import QUICKSTART, WITH_TASKS, draw_study

from normlab.cli import app
from normlab.report import read_study, words
from normlab.report.verdicts import verdict_numbers, verdict_words


def export(*arguments):
    app.cli(args=["export", *map(str, arguments)], prog="normlab")


def test_the_numbers_are_those_of_the_summary(quickstart, capsys):
    export(quickstart, "--table", "csv")
    table = pl.read_csv(io.StringIO(capsys.readouterr().out))
    summary = read_study(quickstart).summary
    assert table["arm"].to_list()[0] == summary.best
    for row in table.iter_rows(named=True):
        arm = summary[row["arm"]]
        assert row["test_accuracy"] == arm.mean.value
        assert (row["test_accuracy_low"], row["test_accuracy_high"]) == arm.mean.interval
        assert row["optimizer.learning_rate"] == arm.values["optimizer.learning_rate"]
        if arm.comparison is None:
            assert (row["verdict"], row["difference"], row["p"]) == ("baseline", None, None)
        else:
            assert row["verdict"] == arm.comparison.verdict
            assert row["difference"] == arm.comparison.difference.value
            assert row["p"] == arm.comparison.adjusted_p


def test_words_are_rounded_with_intervals(quickstart):
    summary = read_study(quickstart).summary
    for row in verdict_words(summary).iter_rows(named=True):
        accuracy = summary[row["arm"]].mean
        told = f"{100 * accuracy.value:.2f} {words.interval(accuracy, words.hundredfold)}"
        assert row["test accuracy, %"] == told


def test_tasks_are_told_together_and_each(with_tasks):
    summary = read_study(with_tasks).summary
    table = verdict_numbers(summary)
    assert table["task"].unique(maintain_order=True).to_list() == ["", "digits", "fashion"]
    of_task = table.filter(pl.col("task") == "fashion", pl.col("arm") == "batch")
    assert of_task["test_accuracy"].item() == summary.tasks["fashion"]["batch"].mean.value


@pytest.mark.parametrize(
    ("form", "begins"), [("csv", "arm,"), ("latex", r"\begin{tabular}"), ("markdown", "| arm |")]
)
def test_each_format_is_printed_or_written_as_asked(quickstart, tmp_path, capsys, form, begins):
    export(quickstart, "--table", form)
    printed = capsys.readouterr().out
    assert printed.startswith(begins)
    for way in ("--table", "--format"):
        path = tmp_path / way.strip("-") / "table"
        export(quickstart, way, form, "--to", path)
        assert capsys.readouterr().out.split() == ["Written:", str(path)]
    assert (tmp_path / "table/table").read_text() == printed
    export(quickstart, "--format", form)
    assert (tmp_path / "format/table").read_text() == capsys.readouterr().out


def test_names_stand_in_tables_as_they_are_and_run_nowhere(tmp_path, capsys):
    arms = {"=cmd|a": QUICKSTART["none"], "[b]": QUICKSTART["batch"]}
    folder = draw_study(tmp_path, arms, tune={}, epochs=3)
    export(folder, "--table", "csv")
    assert "'=cmd|a,'=cmd|a," in capsys.readouterr().out
    export(folder, "--table", "markdown")
    assert r"| =cmd\|a |" in capsys.readouterr().out
    export(folder, "--table", "latex")
    assert "\n{}[b] & " in capsys.readouterr().out


def test_a_study_without_final_runs_has_a_table(tmp_path):
    summary = read_study(draw_study(tmp_path, **WITH_TASKS | {"final": False})).summary
    assert verdict_numbers(summary)["test_accuracy"].to_list() == [None] * 12
    assert len(verdict_words(summary)) == 12
