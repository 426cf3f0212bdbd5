"""Several processes that train one run together: the numbers of one, and an end for all."""

import json
import re
import socket
import time
from functools import partial
from signal import SIGABRT, SIGKILL, SIGTERM

import jax
import numpy as np
import pytest
import yaml
from command import normlab, started

from normlab import load
from normlab.train.processes import SILENCE

EPOCHS = 5

# Has a process of a run end as it is told by the environment, where it saves for the second time.
ENDING = """
import os
import signal
from normlab.train import Checkpoints

save, calls = Checkpoints.save, []

def save_and_end(self, moment, runs):
    save(self, moment, runs)
    calls.append(moment.step)
    if "ENDED_BY" in os.environ and len(calls) == 2:
        os.kill(os.getpid(), int(os.environ["ENDED_BY"]))

Checkpoints.save = save_and_end
"""

STUDY = {
    "study": "together",
    "modules": ["ending"],
    "data": {"name": "digits", "train_examples": 64, "batch_size": 16},
    "model": {"name": "mlp", "hidden": [8]},
    "optimizer": {"name": "sgd", "learning_rate": 0.01},
    "train": {"epochs": EPOCHS},
    "variants": {"batch": {"layer": "batch_norm"}},
    "seeds": 1,
    "keep": "best",
}


def with_study(folder):
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    (folder / "ending.py").write_text(ENDING)
    return folder


@pytest.fixture
def folder(tmp_path):
    return with_study(tmp_path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the run as one process makes it on one device."""
    folder = with_study(tmp_path_factory.mktemp("alone"))
    normlab("train", "study.yaml", "--out", "out", "--save", "saved", folder=folder)
    return folder


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def several(folder, count, *changes, options=(), devices=1, ended=None):
    """Starts the processes of a run by hand, on so many devices each.

    Args:
        ended: The number of one and the signal that it gets as it saves; None for none.
    """
    command = ["train", "study.yaml", *changes, "--out", "out", *options]
    coordinator = f"127.0.0.1:{free_port()}"
    processes = []
    for number in range(count):
        environment = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        if ended is not None and ended[0] == number:
            environment["ENDED_BY"] = str(int(ended[1]))
        told = ["--coordinator", coordinator, "--num-processes", count, "--process-id", number]
        whose = told if count > 1 else []
        processes.append(started(*command, *whose, folder=folder, **environment))
    return processes


def environments_of_slurm(count):
    """What `srun` tells its processes, by which they find each other."""
    job = {"JOB_ID": free_port(), "NTASKS": count, "STEP_NUM_NODES": 1}
    for number in range(count):
        told = {**job, "STEP_NODELIST": "localhost", "PROCID": number, "LOCALID": number}
        yield {f"SLURM_{name}": str(value) for name, value in told.items()}


def told_by(processes, timeout=300):
    return [process.communicate(timeout=timeout)[0] for process in processes]


def result(folder):
    (file,) = folder.glob("out/runs/*.json")
    return json.loads(file.read_text())


def assert_the_run_of(alone, folder):
    one, other = result(alone), result(folder)
    assert one["id"] == other["id"]
    assert one["curve"]["step"] == other["curve"]["step"]
    for split in ("train", "validation"):
        losses = [it["curve"][split]["loss"] for it in (other, one)]
        np.testing.assert_allclose(*losses, rtol=1e-4, err_msg=split)
    np.testing.assert_allclose(other["test"]["loss"], one["test"]["loss"], rtol=1e-4)
    assert_same_variables(*(it / "out" / "weights" / one["id"] for it in (alone, folder)))


def assert_same_variables(*folders):
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, *(load(it)[1] for it in folders))


def test_two_processes_of_slurm_train_and_evaluate_the_run_of_one_and_the_first_tells(
    folder, alone
):
    """Of streamed data each reads the examples of its own device."""
    changes = ["mesh.data=2", "data.stream=true"]
    command = ["train", "study.yaml", *changes, "--coordinator", "auto", "--out", "out"]
    processes = [started(*command, folder=folder, **it) for it in environments_of_slurm(2)]
    told = told_by(processes)
    assert [process.returncode for process in processes] == [0, 0], told
    assert len(re.findall(r"^step", told[0], re.MULTILINE)) == EPOCHS
    assert "step" not in told[1]
    assert_the_run_of(alone, folder)


SAVED = ("--save", "saved")


@pytest.mark.parametrize(
    ("ended", "last"),
    [
        ([(2, 1, SIGKILL, 0), (2, 1, SIGTERM, 1)], 1),
        ([(1, 1, SIGTERM, 0), (2, 2, SIGKILL, 1)], 4),
    ],
    ids=["two, then one", "one, two, four"],
)
def test_a_run_whose_processes_end_goes_on_in_another_number_of_them(folder, alone, ended, last):
    """Where one is killed the others end with a message; where one is to stop, all save and stop.

    What they saved together is taken up by other processes on other devices.
    """
    for count, devices, by, number in ended:
        mesh = f"mesh.data={count * devices}"
        start = time.monotonic()
        processes = several(folder, count, mesh, options=SAVED, devices=devices, ended=(number, by))
        told = told_by(processes)
        codes = [process.returncode for process in processes]
        if by == SIGTERM:
            assert codes == [128 + SIGTERM] * count, told
            assert "it is saved up to step" in told[0]
        else:
            assert time.monotonic() - start < SILENCE + 60
            assert codes[number] == -SIGKILL
            # By itself, or by JAX, which aborts it as soon as it has lost the first one.
            assert codes[1 - number] in (1, -SIGABRT)
            assert "another" in told[1 - number]
        assert "Traceback" not in "".join(told)
        assert not (folder / "out" / "runs").exists()
    processes = several(folder, last, f"mesh.data={last}", options=SAVED)
    told = told_by(processes)
    assert {process.returncode for process in processes} == {0}, told
    assert "There are checkpoints in saved" in told[0]
    assert_the_run_of(alone, folder)
    assert_same_variables(alone / "saved", folder / "saved")


def test_a_mesh_is_of_all_their_devices(folder):
    processes = several(folder, 2, "mesh.data=1")
    told = told_by(processes)
    assert [process.returncode for process in processes] == [2, 2], told
    remedy = "mesh.data=1, but the 2 processes of the run have 2 devices together; set mesh.data=2"
    assert all(remedy in " ".join(it.split()) for it in told)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--num-processes", "2"], "some were given; expected all three"),
        (
            ["--coordinator", "here", "--num-processes", "2", "--process-id", "0"],
            "'here' is no address and port",
        ),
        (
            ["--coordinator", "127.0.0.1:1", "--num-processes", "2", "--process-id", "2"],
            "--process-id: 2 is none of 0 to 1",
        ),
    ],
    ids=["not all", "address", "number"],
)
def test_what_is_no_process_of_several_is_refused(folder, given, told):
    assert told in " ".join(
        normlab("train", "study.yaml", *given, folder=folder, code=2).stderr.split()
    )
