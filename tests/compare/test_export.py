"""Tables for other programs: what they hold is what the results say."""

import subprocess
import sys

import polars as pl
import pytest
from compare.results import named

from normlab.compare.export import (
    curve_table,
    run_table,
    to_csv,
    to_latex,
    to_markdown,
    write_curves,
    write_tensorboard,
)
from normlab.compare.status import Count, failures_in_words, read_status
from normlab.compare.store import Curve, Failure, Label, NoStudyError, Result, Store

CONFIG = {
    "study": "small",
    "data": {"name": "digits"},
    "model": {"name": "mlp"},
    "optimizer": {"name": "sgd"},
    "train": {"epochs": 2},
    "baseline": "none",
    "variants": {"none": {"layer": "identity"}, "b&_%": {"layer": "batch_norm"}},
    "factors": {"data.batch_size": [16], "model.activation": ["relu"]},
    "tune": {"optimizer.learning_rate": [0.1, 1.0]},
    "seeds": 2,
}
LEVELS = {"data.batch_size": 16, "model.activation": "relu"}


def place(variant, phase="final", seed=0, rate=0.1):
    return {
        "id": f"{phase}-{variant.strip('&_%')}-{seed}-{rate}",
        "phase": phase,
        "arm": f"{variant}, batch_size=16, activation=relu",
        "levels": LEVELS,
        "seed": seed,
        "values": {"optimizer.learning_rate": rate},
    }


def result(variant, losses=(2.0, 0.5), status="finished", **where):
    standing = place(variant, **where)
    tested = status == "finished" and standing["phase"] == "final"
    accuracies = [0.25 * (epoch + 1) for epoch in range(len(losses))]
    made = Result(
        **standing,
        variant=variant,
        status=status,
        steps_per_epoch=10,
        curve=Curve(
            step=[10 * (epoch + 1) for epoch in range(len(losses))],
            train={"loss": [*losses], "accuracy": accuracies},
            validation={"loss": [*losses], "accuracy": accuracies},
        ),
        test={"loss": 0.75, "accuracy": 0.5} if tested else None,
        seconds=4.0,
        identity={},
    )
    return named(made)


RESULTS = [
    result("none", phase="tune", rate=1.0, losses=(float("nan"),), status="diverged"),
    result("none", phase="tune"),
    result("none"),
    result("b&_%", phase="tune"),
]
NAME = RESULTS[2].id
FAILURE = Failure(**place("b&_%", phase="tune", rate=1.0), message="out of memory")


@pytest.fixture
def folder(tmp_path):
    """A study of which four runs are done, one failed and three are left."""
    store = Store(tmp_path / "study")
    store.write_config(CONFIG)
    store.write_environment({"packages": {}, "command": "normlab compare small.yaml"})
    runs = [*RESULTS, FAILURE]
    store.write_plan({it.id: Label(arm=it.arm, levels=it.levels, task=it.task) for it in runs})
    for it in RESULTS:
        store.write(it)
    store.write(result("none", seed=7))  # left behind by an earlier configuration
    store.write_failure(FAILURE)
    return store.folder


def test_one_row_a_run_with_levels_values_metrics_and_status(folder):
    rows = {row["id"]: row for row in run_table(folder).iter_rows(named=True)}
    assert set(rows) == {it.id for it in [*RESULTS, FAILURE]}
    assert rows[NAME] == {
        "id": NAME,
        "phase": "final",
        "arm": "none, batch_size=16, activation=relu",
        "task": "",
        "seed": 0,
        "data.batch_size": 16,
        "model.activation": "relu",
        "optimizer.learning_rate": 0.1,
        "train_loss": 0.5,
        "train_accuracy": 0.5,
        "validation_loss": 0.5,
        "validation_accuracy": 0.5,
        "test_loss": 0.75,
        "test_accuracy": 0.5,
        "steps": 20,
        "epochs": 2,
        "seconds": 4.0,
        "status": "finished",
    }
    diverged, failed = rows[RESULTS[0].id], rows[FAILURE.id]
    assert (diverged["status"], diverged["train_loss"], diverged["epochs"]) == ("diverged", None, 1)
    assert (failed["status"], failed["test_accuracy"], failed["epochs"]) == ("failed", None, None)


def test_values_of_several_kinds_share_a_column(folder):
    for seed, value in enumerate([1, "word", None, [8, 8]]):
        it = result("mixed", seed=seed).model_copy(update={"values": {"mixed": value}})
        Store(folder).write(named(it))
    (folder / "plan.json").unlink()
    written = run_table(folder).filter(pl.col("id").str.contains("^final-mixed"))
    assert written["mixed"].to_list() == ["1", '"word"', None, "[8, 8]"]


def test_names_and_messages_command_no_terminal(folder):
    """`status` and `export` printed names and messages of a stored study as they were."""
    where = place("none", phase="tune") | {"id": "tune-none-9", "arm": "\x1b[2J"}
    told = Failure(**where, message="\x1b]0;x\x07")
    Store(folder).write_failure(told)
    (folder / "plan.json").unlink()
    table = to_csv(run_table(folder))
    words = [*failures_in_words([told]), *read_status(folder).arms, table]
    assert not any("\x1b" in it or "\x07" in it for it in words), words
    assert any("\\x1b[2J" in it for it in words)


def test_a_number_that_no_table_has_is_text(folder):
    """A seed of 10^30 in the record of a failed run ended `export` in a traceback."""
    where = place("none", phase="tune", seed=10**30) | {"id": FAILURE.id}
    Store(folder).write_failure(Failure(**where, message="x"))
    written = run_table(folder).filter(pl.col("status") == "failed")
    assert written["seed"].to_list() == [str(10**30)]


def test_curves_have_a_row_an_epoch_and_come_back_from_parquet(folder):
    table = curve_table(folder)
    assert len(table) == 1 + 2 + 2 + 2
    of_run = table.filter(pl.col("id") == NAME)
    assert of_run["step"].to_list() == [10, 20]
    assert of_run["train_loss"].to_list() == [2.0, 0.5]
    write_curves(folder)
    assert pl.read_parquet(folder / "metrics.parquet").equals(table)
    lines = pl.read_ndjson(folder / f"runs/{NAME}.jsonl")
    assert lines.equals(of_run.select(lines.columns))


def test_a_curve_under_way_grows_line_by_line_and_begins_anew(tmp_path):
    store, path = Store(tmp_path), tmp_path / "runs/run.jsonl"
    for epoch, loss in ((1, 2.0), (2, float("inf")), (1, 3.0)):
        store.write_point("run", 10 * epoch, 10, {"train_loss": loss}, first=epoch == 1)
        lines = path.read_text().splitlines()
        assert len(lines) == epoch
        told = "null" if loss == float("inf") else loss
        assert lines[-1] == f'{{"epoch": {epoch}, "step": {10 * epoch}, "train_loss": {told}}}'


def test_latex_escapes_what_means_something_to_it(folder):
    latex = to_latex(run_table(folder).select("arm", "seed", "optimizer.learning_rate"))
    assert latex.splitlines()[0] == r"\begin{tabular}{lrr}"
    assert r"optimizer.learning\_rate \\" in latex
    assert r"b\&\_\%, batch\_size=16, activation=relu & 0 & 0.1 \\" in latex
    assert latex.count(r"\\") == 1 + 5


def test_latex_takes_no_cell_for_an_argument_of_the_row_before():
    # After the end of a row, [ and * belong to that end: "[a]" would be a height that is no number.
    latex = to_latex(pl.DataFrame({"[a]": ["[b]", "*", "c--d"]}))
    assert latex.splitlines()[2:7] == [
        r"{}[a] \\",
        r"\midrule",
        r"{}[b] \\",
        r"{}* \\",
        r"c-{}-d \\",
    ]


def test_markdown_has_one_cell_a_value_and_shows_it_as_it_is():
    names = ["a|b", "a\\|b", "<b>_x_</b>", "[x](y)", "two\nlines"]
    head, line, *rows = to_markdown(pl.DataFrame({"arm": names, "n": range(5)})).splitlines()
    assert (head, line) == ("| arm | n |", "| --- | ---: |")
    assert [row.removeprefix("| ").rpartition(" | ")[0] for row in rows] == [
        r"a\|b",
        r"a\\\|b",
        r"&lt;b>\_x\_&lt;/b>",
        r"[x]\(y)",
        "two lines",
    ]


def test_a_spreadsheet_finds_no_formula_in_csv():
    names = ["=1+1", "+x", "-x", "@SUM(A1)", "\t=1", "plain"]
    table = pl.DataFrame({"=arm": names, "number": [-1.5, 2.0, None, 3.0, 4.0, 5.0]})
    told = pl.read_csv(to_csv(table).encode())
    assert told.columns == ["'=arm", "number"]
    assert told["'=arm"].to_list() == [*(f"'{name}" for name in names[:5]), "plain"]
    assert told["number"].to_list() == table["number"].to_list()


def test_tensorboard_gets_every_finite_metric_at_its_step(folder, tmp_path):
    pytest.importorskip("tensorboardX", reason="comes with the extra `tensorboard`")
    from tensorboardX.proto.event_pb2 import Event

    write_tensorboard(folder, tmp_path / "events")
    once = {it: it.read_bytes() for it in (tmp_path / "events").rglob("*") if it.is_file()}
    write_tensorboard(folder, tmp_path / "events")  # Not added to what is there: the same again.
    assert once == {it: it.read_bytes() for it in (tmp_path / "events").rglob("*") if it.is_file()}
    (file,) = (tmp_path / "events" / NAME).iterdir()
    content, found = file.read_bytes(), {}
    while content:  # length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    assert found[("train_loss", 10)] == 2.0
    assert found[("validation_accuracy", 20)] == 0.5
    assert len(found) == 4 * 2


def test_status_counts_by_arm_and_estimates_what_is_left(folder):
    status = read_status(folder)
    assert list(status.arms.values()) == [Count(4, 3, 1, 0, 0), Count(4, 1, 0, 1, 0)]
    assert [it.left for it in status.arms.values()] == [1, 3]
    assert status.seconds_left == 4 * 4.0
    assert status.failures == [FAILURE]


def test_a_claim_counts_as_running_as_long_as_its_process_lives(folder):
    program = (
        "import sys, time\n"
        "from normlab.compare.store import Store\n"
        f"claims = Store({str(folder)!r}).claim([{FAILURE.id!r}])\n"
        "print('claimed', flush=True)\n"
        "time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "claimed\n"
    assert read_status(folder).total == Count(8, 4, 1, 0, 1)
    assert Store(folder).claim(["another", FAILURE.id]) is None
    holder.kill()
    holder.wait()
    assert read_status(folder).total == Count(8, 4, 1, 1, 0)
    held = Store(folder).claim(["another", FAILURE.id])
    assert held is not None
    assert len(held) == 2


@pytest.mark.parametrize("command", ["status", "export"])
def test_reading_a_folder_never_imports_jax(folder, command):
    program = (
        "import sys\n"
        f"sys.argv = ['normlab', {command!r}, {str(folder)!r}]\n"
        "from normlab.cli import main\n"
        "main()\n"
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "b&_%, batch_size=16" in done.stdout


def test_a_folder_without_a_study_is_told(tmp_path):
    for read in (run_table, curve_table, read_status):
        with pytest.raises(NoStudyError, match="holds no study"):
            read(tmp_path)
