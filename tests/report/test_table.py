"""The table in a terminal."""

import io

import pytest
from report.studies import QUICKSTART, RATES, draw_study
from rich.console import Console

from normlab.report import print_table, read_study

UNLUCKY = {
    "none": QUICKSTART["none"],
    "ghost_of_batch_16": QUICKSTART["batch"] | {"diverges": range(5)},
}


def printed(folder, width):
    console = Console(file=io.StringIO(), width=width)
    print_table(read_study(folder).summary, console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"variants": UNLUCKY},
        {"tune": RATES | {"optimizer.weight_decay": [0.0, 0.0001]}},
        {"tune": {}},
        {"final": False},
    ],
    ids=["quickstart", "diverged", "two paths", "no tuning", "unfinished"],
)
def test_the_table_fits_the_terminal_and_nothing_is_cut(tmp_path, width, changes):
    text = printed(draw_study(tmp_path, **changes), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_the_numbers_are_those_of_the_summary(quickstart):
    text = printed(quickstart, 100)
    for variant in read_study(quickstart).summary.variants:
        (row,) = [
            line.split() for line in text.splitlines() if line.startswith(f" {variant.name} ")
        ]
        low, high = variant.accuracy.interval
        assert row[1:4] == [
            f"{100 * variant.accuracy.mean:.2f}",
            f"[{100 * low:.2f},",
            f"{100 * high:.2f}]",
        ]
        assert row[4] == f"{variant.loss.mean:#.3g}"
        assert f"{variant.values['optimizer.learning_rate']:g}" in row


def test_narrow_terminals_get_half_widths(quickstart):
    accuracy = read_study(quickstart).summary["batch"].accuracy
    half = accuracy.interval[1] - accuracy.mean
    assert f"{100 * accuracy.mean:.2f} ±{100 * half:.2f}" in printed(quickstart, 80)


def test_the_conclusion_stands_below_the_table(quickstart):
    text = printed(quickstart, 100)
    assert "ghost16 came first" in text
    assert "batch: better than none by" in text


def test_names_are_printed_as_they_are(tmp_path):
    text = printed(draw_study(tmp_path, {"[red]a[/red]": QUICKSTART["batch"]}), 100)
    assert "[red]a[/red]" in text
