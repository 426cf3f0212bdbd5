"""The table in a terminal."""

import io

import pytest
from report.studies import QUICKSTART, RATES, draw_study
from rich.console import Console

from normlab import cli
from normlab.compare.status import read_status
from normlab.compare.store import NoStudyError
from normlab.report import print_table, read_study
from normlab.report.view import joined

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
    table = printed(quickstart, 80).partition("No variant is shown best")[0]
    for arm in read_study(quickstart).summary.arms:
        (row,) = [line.split() for line in table.splitlines() if line.startswith(f"{arm.name} ")]
        low, high = arm.mean.interval
        assert row[1:4] == [
            f"{100 * arm.mean.value:.2f}",
            f"[{100 * low:.2f},",
            f"{100 * high:.2f}]",
        ]
        if arm.comparison:
            assert row[4] == f"{100 * arm.comparison.difference.value:+.2f}"
        verdict = arm.comparison.verdict if arm.comparison else "baseline"
        steps = f"{arm.time_to_target.median:g}"
        assert row[-3:] == [verdict, steps, f"{arm.values['optimizer.learning_rate']:g}"]


def test_where_intervals_do_not_fit_half_their_width_stands(quickstart):
    accuracy = read_study(quickstart).summary["batch"].mean
    half = accuracy.interval[1] - accuracy.value
    assert f"{100 * accuracy.value:.2f} ±{100 * half:.2f}" in printed(quickstart, 70)


def test_the_conclusion_stands_below_the_table(quickstart):
    text = printed(quickstart, 100)
    _, below = text.split("ghost16 came first")
    assert "Its lead over batch may be chance." in below
    assert "batch is better than none by" in below


def test_names_are_printed_as_they_are(tmp_path):
    text = printed(draw_study(tmp_path, {"[red]a[/red]": QUICKSTART["batch"]}), 100)
    assert "[red]a[/red]" in text


def report(monkeypatch, *arguments):
    """What the command prints on a wide terminal."""
    console = Console(file=io.StringIO(), width=200, markup=False, highlight=False)
    monkeypatch.setattr(cli, "console", console)
    cli.app.cli(args=["report", *map(str, arguments)], prog="normlab")
    return console.file.getvalue()


def test_joined_studies_have_the_joint_table_of_the_page(tmp_path, monkeypatch):
    two = {name: QUICKSTART[name] for name in ("none", "batch")}
    folders = [
        draw_study(tmp_path / name, two, tune={}, study=name, epochs=4) for name in ("one", "other")
    ]
    printed = report(monkeypatch, *folders, "--out", tmp_path / "joint.html")
    _, summary = joined([read_study(it) for it in folders])
    console = Console(file=io.StringIO(), width=200, markup=False, highlight=False)
    print_table(summary, console)
    titles = [
        line for line in printed.splitlines() if line in ("all studies together", "one", "other")
    ]
    assert titles == ["all studies together", "one", "other"]
    assert console.file.getvalue() in printed
    apart = draw_study(tmp_path / "third", two, tune={}, epochs=4, baseline="batch")
    printed = report(monkeypatch, folders[0], apart, "--out", tmp_path / "joint.html")
    assert "Each study stands by itself, since their baselines differ: none, batch." in printed


def test_a_folder_of_studies_is_listed(tmp_path, monkeypatch):
    for name, final in (("done", True), ("begun", False)):
        draw_study(tmp_path / name, epochs=2, final=final)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.yaml").write_text("[")
    (tmp_path / "empty").mkdir()
    printed = report(monkeypatch, tmp_path)
    assert "108 of 108" in printed
    assert "60 of 108" in printed
    assert "ghost16 came first" in printed
    assert "is damaged" in printed
    assert "empty" not in printed
    assert not list(tmp_path.glob("*/report.html"))
    with pytest.raises(NoStudyError, match=r"holds no study, but the folders of 3: .*begun, "):
        read_status(tmp_path)
