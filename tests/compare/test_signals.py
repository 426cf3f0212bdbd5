"""Commands that are told to stop, at whatever moment and however often: a word and a code."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from command import ENVIRONMENT, NORMLAB, normlab, started, table, wait_for_results

from normlab.compare.store import Store

STUDY = {
    "study": "small",
    "data": {"name": "digits", "batch_size": 32, "train_examples": 320},
    "model": {"name": "mlp", "hidden": [16]},
    "train": {"epochs": 40},
    "variants": {"none": {"layer": "identity"}, "batch": {"layer": "batch_norm"}},
    "tune": {"optimizer.learning_rate": [0.01, 0.1]},
    "seeds": 8,
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return path


def wait_until_it_listens(process):
    """Waits until the process has the command's handler of signals, or holds signals back."""
    bit = 1 << (signal.SIGTERM - 1)
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        masks = {it[:6]: int(it.split()[1], 16) for it in lines if it[:6] in ("SigBlk", "SigCgt")}
        if any(mask & bit for mask in masks.values()):
            return
        time.sleep(0.001)


def stopped(process, number):
    """What a process printed that was told to stop, and must end so."""
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, printed
    assert "Traceback" not in printed
    assert printed.count("Stopped; ") == 1, printed
    assert "o go on:\n  normlab compare small.yaml" in printed
    return printed


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_stops_a_study_with_the_same_word_and_its_own_code(config, number):
    """SIGTERM and SIGHUP ended a study without a word."""
    folder = config.parent
    process = started("compare", config.name, folder=folder)
    wait_for_results(process, folder / "runs/small", 3)
    process.send_signal(number)
    printed = stopped(process, number)
    assert "of 20 runs are done and kept. To go on:" in printed


@pytest.mark.parametrize("seed", range(6))
def test_signals_at_any_moment_and_twice_end_it_with_a_word(config, seed):
    """A second Ctrl-C within 50 ms, or one while modules were imported, printed a traceback."""
    draw, folder = random.Random(seed), config.parent / "runs/small"
    amid_training = seed % 2  # to which few moments by chance belong
    process = started(
        "compare", config.name, folder=config.parent, from_the_start=not amid_training
    )
    wait_until_it_listens(process)
    if amid_training:
        wait_for_results(process, folder, draw.randint(1, 15))
        time.sleep(draw.uniform(0, 0.1))
    else:
        time.sleep(draw.choice([0, 0.1, 0.5, 2, 6]) * draw.random())
    number = draw.choice(SIGNALS)
    process.send_signal(number)
    for _ in range(draw.randint(0, 2)):
        time.sleep(draw.uniform(0, 0.05))
        process.send_signal(number)
    stopped(process, number)
    store = Store(folder)
    assert len(store.finished()) == len([*folder.glob("runs/*.json")])
    assert not store.left_aside


def test_what_is_ignored_stays_ignored(config):
    """As under `nohup`."""
    folder = config.parent
    command = ["nohup", *NORMLAB, "compare", config.name, "seeds=3"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_results(process, folder / "runs/small", 1)
    process.send_signal(signal.SIGHUP)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert "10 of 10 runs are done" in printed


FROM_PYTHON = """
import signal, threading, time, sys, json
from pathlib import Path
import normlab

before = [signal.getsignal(it) for it in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
study = json.loads(sys.argv[1])

def stop():
    while len(list(Path("runs/small/runs").glob("*.json"))) < 2:
        time.sleep(0.01)
    signal.raise_signal(signal.SIGINT)

threading.Thread(target=stop).start()
try:
    normlab.compare(study)
except KeyboardInterrupt:
    print("interrupted")
assert before == [signal.getsignal(it) for it in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

made = []
other = threading.Thread(target=lambda: made.append(normlab.compare(study, seeds=3)))
other.start()
other.join()
print(len(made[0].runs), "runs from another thread")
"""


def test_from_python_ctrl_c_is_an_interrupt_and_handlers_are_as_before(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FROM_PYTHON, json.dumps(STUDY)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Stopped; ") == 1
    assert "\ninterrupted\n" in done.stdout
    assert "10 runs from another thread" in done.stdout


def test_a_study_that_nobody_reads_stops_with_a_word(config):
    """`normlab compare ... | head -1` stopped in silence."""
    folder = config.parent
    command = " ".join([sys.executable, "-c", "'from normlab.start import main; main()'"])
    done = subprocess.run(
        ["bash", "-c", f"{command} compare small.yaml | head -1; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert done.stdout == "small: 2 arms, 20 runs, in runs/small\n"
    assert done.stderr.startswith("Nobody reads what is printed. Stopped; ")
    assert "To go on:\n  normlab compare small.yaml\n" in done.stderr
    listed = subprocess.run(
        ["bash", "-c", f"{command} list | head -1; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (listed.returncode, listed.stderr) in ((1, ""), (0, ""))


def test_what_was_being_written_is_swept_but_never_what_another_writes(config):
    """Temporary files of processes that were killed stayed for ever."""
    folder = config.parent / "runs/small"
    for name in ("runs", "charts", "former/.0123456789abcdef0123456789abcdef.tmp"):
        (folder / name).mkdir(parents=True)
    left = [".config.yaml.{}.tmp", "runs/.final-none-0.json.{}.tmp", "charts/.a.svg.{}.tmp"]
    dead = [folder / it.format("0123456789abcdef" * 2) for it in left]
    living, mine = folder / f"runs/.x.json.{'1' * 32}.tmp", folder / "runs/.notes.tmp"
    for path in (*dead, living, mine):
        path.write_text("{")
    with living.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        normlab("compare", config.name, "seeds=3", "train.epochs=1", folder=config.parent)
    assert {*folder.rglob(".*.tmp")} == {living, mine}
    assert len(table(folder)) == 10


WRITES = """
import os, sys
from pathlib import Path
from normlab.compare.store import Store, write_whole

folder = Path(sys.argv[1])
writer = os.fork()
if not writer:
    for number in range(1500):
        write_whole(folder / "runs" / "a.json", str(number))
    os._exit(0)
store = Store(folder)
while not os.waitpid(writer, os.WNOHANG)[0]:
    store.sweep()
assert (folder / "runs" / "a.json").read_text() == "1499"
assert len(list((folder / "runs").iterdir())) == 1
"""


def test_a_sweep_disturbs_no_writer(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WRITES, str(tmp_path)],
        env=ENVIRONMENT | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
