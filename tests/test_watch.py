"""Watching studies and runs: what is shown, that it ends, and that nothing is locked or written."""

import io
import json
import re
import signal
import urllib.error
import urllib.request

import pytest
from command import started
from report.studies import QUICKSTART, draw_study
from rich.console import Console

from normlab.checksum import sealed
from normlab.compare import store as stores
from normlab.compare.store import Failure, Label, NoStudyError, Store
from normlab.compare.under_way import last_course
from normlab.serve import served
from normlab.watch import Watched, curve, page_of, watch

VARIANTS = {name: QUICKSTART[name] for name in ("none", "batch")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    draw_study(folder, VARIANTS, tune={}, seeds=2, epochs=3)
    labels = {it.id: Label(arm=it.arm) for it in Store(folder).results()}
    Store(folder).write_plan(labels)
    return folder


def watched(folder, **options):
    console = Console(file=io.StringIO(), width=120, **options)
    watch(folder, console, every=0.01)
    return console.file.getvalue()


def listed(folder):
    return {it: it.lstat().st_mtime_ns for it in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("terminal", [False, True])
def test_a_study_that_is_finished_is_shown_and_left(whole, monkeypatch, terminal):
    (whole / "claims").mkdir(exist_ok=True)
    (whole / "claims" / "final-none-0.lock").touch()
    monkeypatch.setattr(stores, "_is_held", None)  # whoever tries a lock takes it for a moment
    before = listed(whole)
    told = watched(whole, force_terminal=terminal)
    assert "4 of 4 runs are done" in told
    assert told.rstrip().endswith("The study is finished.")
    assert listed(whole) == before
    if terminal:
        assert re.search(r"batch +2 of 2 +final 1 +54 ", told), told
        assert "█" in told


def test_a_run_under_way_is_shown_and_the_study_ends_with_its_last_result(whole, tmp_path):
    store, last = Store(tmp_path / "study"), Store(whole).results()[-1]
    store.folder.mkdir()
    for name in ("config.yaml", "environment.json", "plan.json"):
        (store.folder / name).write_bytes((whole / name).read_bytes())
    for it in Store(whole).results()[:-1]:
        store.write(it)
    for step, loss in ((18, 2.0), (36, 1.5)):
        store.write_point(last.id, step, 18, {"train_loss": loss}, first=step == 18)
    with (store.folder / "runs" / f"{last.id}.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')  # A line that is being written.
    seen = Watched(store.folder)
    now = seen.look()
    row = next(it for it in now.rows if it[0] == last.arm)
    assert row[1:4] == ("1 of 2", "", "")
    assert row[4:7] == ("final 1", "36", "1.5000")
    assert row[8] == "█▁"
    assert not now.end
    assert "3 of 4 runs are done" in now.summary
    where = {key: getattr(last, key) for key in ("id", "phase", "arm", "seed", "values")}
    store.write_failure(Failure(**where, message="x"))
    assert seen.look().end == "The runs that are left have failed, and no other is left."
    store.write(last)
    assert seen.look().end == "The study is finished."


@pytest.mark.parametrize(
    "damaged", ["[" * 100_000, f'{{"step": 1, "train_loss": {"9" * 400}}}', '{"step": true}', None]
)
def test_curves_that_are_damaged_end_no_watch(tmp_path, damaged):
    """Numbers that no float holds, levels without end, and a folder for a file ended it."""
    path = tmp_path / "runs" / "final-a-0.jsonl"
    path.mkdir(parents=True)
    if damaged is not None:
        path.rmdir()
        path.write_text(f"{damaged}\n")
    course = last_course(tmp_path, ["final-a-0"])
    assert course is None or course.metrics in ({}, {"train_loss": [None]})


def saved(folder, step, losses):
    study = {
        "study": "small",
        "train": {"epochs": 3, "steps": None},
        "metric": {"name": "accuracy", "higher_is_better": True, "share": True},
    }
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(sealed({"runs": ["final-a-0"], "study": study, "seed": 0}))
    record = folder / f"{step:010d}" / "record"
    record.mkdir(parents=True)
    curve = [
        {"step": 10 * place, "train": {"loss": loss}, "validation": {"accuracy": 0.5}}
        for place, loss in enumerate(losses, 1)
    ]
    told = {"runs": ["final-a-0"], "step": step, "seconds": 1.0, "curves": [curve], "arrays": {}}
    (record / "metadata").write_text(json.dumps(told))


def test_a_run_that_is_saved_is_shown_until_its_last_step(tmp_path):
    saved(tmp_path, 20, [2.0])
    seen = Watched(tmp_path)
    now = seen.look()
    assert now.summary == "small: saved up to step 20 of 30"
    assert now.rows[0][:5] == ("final-a-0", "20", "2.0000", "50.00%", "▁")
    assert not now.end
    (tmp_path / "0000000030" / "record").mkdir(parents=True)  # which is being written
    assert seen.look().summary == now.summary
    (tmp_path / "0000000030" / "record").rmdir()
    saved(tmp_path, 30, [2.0, 1.0])
    assert seen.look().end == "The run is finished."
    assert watched(tmp_path).splitlines()[0] == "small: saved up to step 30 of 30"
    page = page_of(tmp_path)
    assert page.count("<svg") == 2
    assert "saved up to step 30 of 30" in page


def test_what_is_neither_is_told(tmp_path):
    with pytest.raises(NoStudyError, match="holds no study"):
        watched(tmp_path)


def test_a_curve_is_a_line_of_bars():
    assert curve([]) == curve([None]) == ""
    assert curve([1.0, None, 3.0, 2.0]) == "▁ █▅"
    assert curve([2.0, 2.0]) == "▁▁"
    assert len(curve(list(map(float, range(1000))))) == 24


def answer(address, host=None):
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request) as reply:
        return reply.read().decode()


def test_the_page_is_made_anew_as_results_come_in_and_for_this_machine_alone(whole):
    seen = Watched(whole)
    made = []

    def make():
        made.append(1)
        return page_of(whole)

    before = listed(whole)
    with served(make, seen.state) as there:
        assert there.address.startswith("http://127.0.0.1:")
        now = json.loads(answer(f"{there.address}now"))
        page = answer(there.address)
        assert json.dumps(now) in page
        assert "connect-src 'self'" in page
        assert answer(there.address) == page
        assert len(made) == 1
        for address, host, code in (
            (there.address, "elsewhere.example", 403),
            (f"{there.address}config.yaml", None, 404),
        ):
            with pytest.raises(urllib.error.HTTPError) as error:
                answer(address, host)
            assert error.value.code == code
        assert listed(whole) == before
        (whole / "runs" / ".new").touch()
        assert json.loads(answer(f"{there.address}now")) != now
        assert answer(there.address) != page
        assert len(made) == 2
        (whole / "runs" / ".new").unlink()


def test_the_page_of_what_is_finished_stays_until_ctrl_c(whole):
    """The command ended at once, and its address with it."""
    process = started("watch", whole, "--page", folder=whole)
    while "until Ctrl-C" not in (line := process.stdout.readline()):
        assert line, process.wait()
    address = re.search(r"http://\S+", line)[0]
    assert "<svg" in answer(address) or "vega" in answer(address)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told
