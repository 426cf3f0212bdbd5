"""Studies as real processes that are killed, stopped, or two at a time in one folder."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from command import ENVIRONMENT, normlab, started, table, wait_for_results

STUDY = {
    "study": "small",
    "data": {"name": "digits", "batch_size": 32, "train_examples": 320},
    "model": {"name": "mlp", "hidden": [16]},
    "train": {"epochs": 40},
    "variants": {"none": {"layer": "identity"}, "batch": {"layer": "batch_norm"}},
    "tune": {"optimizer.learning_rate": [0.01, 0.1]},
    "seeds": 8,
}
RUNS = 2 * (2 + 8)
KILLED = STUDY | {"train": {"epochs": 10}, "seeds": 4}

# Each life of the study is a fork, which need not import everything anew.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import sklearn.datasets  # of digits
import normlab.compare.run, normlab.report  # JAX too, but no device, which a fork would not bear
from command import table
from normlab.cli import compare

config, folder = Path(sys.argv[1]), Path(sys.argv[2])
draw = random.Random(0)

def live(name, seconds):
    "Runs the study for some seconds at most; returns whether it came to its end."
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        compare(config, out=folder / name)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, code = os.waitpid(child, os.WNOHANG)
        if pid:
            assert code == 0, code
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False

live("first", 200)  # compiles the programs
start = time.monotonic()
live("whole", 200)
whole, took = table(folder / "whole"), time.monotonic() - start
assert len(whole) == int(sys.argv[3])
kills = finished = 0
while kills < 20:
    name = f"killed{finished}"
    if not live(name, draw.uniform(0.1, 0.8) * took):
        kills += 1
        assert [it for it in whole if it in table(folder / name)] == table(folder / name)
        continue
    assert table(folder / name) == whole
    finished += 1
assert live("last", 0.6 * took) or live("last", 200)
assert live(f"killed{finished}", 200)
assert table(folder / f"killed{finished}") == table(folder / "last") == whole
print(kills, "kills,", finished + 2, "tables")
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return path


def test_twenty_kills_at_random_times_change_no_bit_of_the_table(config, tmp_path):
    tests = Path(__file__).parents[1]
    config.write_text(yaml.safe_dump(KILLED, sort_keys=False))
    done = subprocess.run(
        [sys.executable, "-c", KILLS, config, tmp_path, str(2 * (2 + 4))],
        cwd=tmp_path,
        env=ENVIRONMENT
        | {
            "PYTHONPATH": f"{tests}:{tests.parent}",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "GLIBC_TUNABLES": "",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("20 kills, ")


def children(process):
    """The ids of the processes that a process started."""
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() + [
        child
        for thread in Path(f"/proc/{process.pid}/task").iterdir()
        if thread.name != str(process.pid)
        for child in (thread / "children").read_text().split()
    ]


def gone(pid, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # dead, and its new parent has not asked yet
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_worker_processes_end_with_the_study_and_it_goes_on_to_the_same_end(config, how):
    folder = config.parent
    normlab("compare", config.name, "--out", "local", folder=folder)
    overrides = ["executor=processes", "executor.workers=2", "--out", "parts"]
    process = started("compare", config.name, *overrides, folder=folder, start_new_session=True)
    wait_for_results(process, folder / "parts", 3)
    process.send_signal(signal.SIGSTOP)  # Its claims stay, whatever time it takes to look at them.
    workers = children(process)
    assert len(workers) >= 2
    now = normlab("status", "parts", folder=folder).stdout
    row = re.search(r"^all +(\d+) +(\d+) +0 +0 +(\d+) +(\d+)$", now, re.MULTILINE)
    planned, done, running, left = map(int, row.groups())
    assert planned == RUNS == done + left
    assert (done >= 3, 1 <= running <= 2) == (True, True)
    assert "time left: about" in now
    if how == signal.SIGINT:  # Ctrl-C goes to all processes of the terminal.
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    process.send_signal(signal.SIGCONT)
    printed = process.communicate(timeout=60)[0]
    assert all(map(gone, workers))
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "runs are done and kept. To go on:\n  normlab compare small.yaml exec" in printed
        assert "Traceback" not in printed
    assert re.search(
        r"^all +20 +\d+ +0 +0 +0 +", normlab("status", "parts", folder=folder).stdout, re.MULTILINE
    )
    normlab("compare", config.name, *overrides, folder=folder)
    assert table(folder / "parts") == table(folder / "local")


def test_two_processes_on_one_folder_make_each_run_once_and_end_alike(config):
    folder = config.parent
    both = [started("compare", config.name, "--out", "both", folder=folder) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    made = [re.search(r"(\d+) of (\d+) runs are done; (\d+) made", it).groups() for it in printed]
    assert [(int(done), int(planned)) for done, planned, _ in made] == [(RUNS, RUNS)] * 2
    assert sum(int(here) for *_, here in made) == RUNS
    normlab("compare", config.name, "--out", "alone", folder=folder)
    assert table(folder / "both") == table(folder / "alone")


def test_failed_runs_give_exit_code_1_and_are_listed_and_tried_again(config):
    folder = config.parent
    (folder / "layers.py").write_text(
        "import os, normlab\n"
        "from flax import linen as nn\n\n\n"
        "@normlab.register('faulty')\n"
        "class Faulty(nn.Module):\n"
        "    @nn.compact\n"
        "    def __call__(self, x, use_running_average=None):\n"
        "        if 'MENDED' not in os.environ:\n"
        "            raise RuntimeError('out of [/order]')\n"
        "        return x\n"
    )
    study = STUDY | {"modules": ["layers.py"], "seeds": 1, "tune": None}
    study["variants"] = {"none": {"layer": "identity"}, "faulty": {"layer": "faulty"}}
    config.write_text(yaml.safe_dump(study, sort_keys=False))
    done = normlab("compare", config.name, folder=folder, code=1)
    assert "1 of 2 runs are done; 1 made just now." in done.stdout
    assert "1 run failed" in done.stdout
    where = "(layers.py:10 in __call__)"
    assert f"(faulty): RuntimeError: out of [/order] {where}" in done.stdout
    (failed,) = (folder / "runs/small/failed").glob("*.json")
    told = json.loads(failed.read_text())
    assert told["message"] == "RuntimeError: out of [/order]"
    assert told["traceback"].splitlines() == [
        "Traceback (most recent call last):",
        f'  File "{folder / "layers.py"}", line 10, in __call__',
        "    raise RuntimeError('out of [/order]')",
        "RuntimeError: out of [/order]",
    ]
    shown = normlab("status", "runs/small", folder=folder).stdout
    assert re.search(r"^faulty +1 +0 +0 +1 +0 +1$", shown, re.MULTILINE)
    assert f"out of [/order] {where}" in shown
    done = normlab("compare", config.name, folder=folder, MENDED="1")
    assert "2 of 2 runs are done; 1 made just now." in done.stdout
    assert not failed.exists()
