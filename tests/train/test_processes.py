"""Several processes that train one run together: the numbers of one, and an end for all."""

import json
import random
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
from normlab.train.processes import SILENCE, ProcessesError, join

EPOCHS = 5

# Has a process of a run end as it is told by the environment, where it saves for the second time,
# or be late with what it writes.
ENDING = """
import os
import signal
import time
from normlab.train import Checkpoints

save, calls = Checkpoints.save, []

def save_and_end(self, moment, runs):
    save(self, moment, runs)
    calls.append(moment.step)
    if "ENDED_BY" in os.environ and len(calls) == 2:
        os.kill(os.getpid(), int(os.environ["ENDED_BY"]))

Checkpoints.save = save_and_end

if "LATE" in os.environ:
    from orbax.checkpoint._src.checkpointers import async_checkpointer

    complete = async_checkpointer._background_wait_for_commit_futures

    def complete_late(*args, **named):
        time.sleep(float(os.environ["LATE"]))
        complete(*args, **named)

    async_checkpointer._background_wait_for_commit_futures = complete_late
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


def is_free(port):
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def free_job():
    """The number of a job of which JAX makes a port that is free."""
    return next(it for it in random.sample(range(4096), 4096) if is_free(61440 + it))


def by_hand(count):
    told = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", count, "--process-id"]
    return [([*told, number], {}) for number in range(count)]


def by_slurm(count):
    job = {"JOB_ID": free_job(), "NTASKS": count, "STEP_NUM_NODES": 1, "STEP_NODELIST": "localhost"}
    told = [{**job, "PROCID": number, "LOCALID": number} for number in range(count)]
    return [(["--coordinator", "auto"], with_prefix("SLURM_", it)) for it in told]


def by_open_mpi(count):
    job = {"MCA_orte_hnp_uri": f"{free_job() * 4096}.0;tcp://127.0.0.1:1", "COMM_WORLD_SIZE": count}
    numbers = ("COMM_WORLD_RANK", "COMM_WORLD_LOCAL_RANK")
    told = [{**job, **dict.fromkeys(numbers, number)} for number in range(count)]
    return [(["--coordinator", "auto"], with_prefix("OMPI_", it)) for it in told]


def by_mpich(count):
    coordinator = f"127.0.0.1:{free_port()}"
    told = [{"SIZE": count, "RANK": number} for number in range(count)]
    return [(["--coordinator", coordinator], with_prefix("PMI_", it)) for it in told]


def by_cloud_tpu(count):
    """As on two slices of cloud TPUs of one machine each, which JAX is to believe."""
    slices = {"NUM_SLICES": count, "COORDINATOR_ADDRESS": "localhost"}
    machine = {"HOSTNAMES": "localhost", "ID": 0}
    rest = {"JAX_FORCE_TPU_INIT": "1", "JAX_COORDINATOR_PORT": str(free_port())}
    told = [{**slices, "SLICE_ID": number} for number in range(count)]
    machine = with_prefix("TPU_WORKER_", machine) | rest
    return [(["--coordinator", "auto"], with_prefix("MEGASCALE_", it) | machine) for it in told]


def with_prefix(prefix, variables):
    return {f"{prefix}{name}": str(value) for name, value in variables.items()}


def several(folder, told, *changes, options=(), devices=1, ended=None, late=None):
    """Starts the processes of a run, on so many devices each.

    Args:
        told: Options and environment of each, by which they find each other.
        ended: The number of one and the signal that it gets as it saves; None for none.
        late: The number of one that takes two seconds more to write; None for none.
    """
    command = ["train", "study.yaml", *changes, "--out", "out", *options]
    processes = []
    for number, (whose, variables) in enumerate(told):
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {**variables, "XLA_FLAGS": flags}
        if ended is not None and ended[0] == number:
            environment["ENDED_BY"] = str(int(ended[1]))
        if number == late:
            environment["LATE"] = "2"
        processes.append(started(*command, *whose, folder=folder, **environment))
    return processes


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


@pytest.mark.parametrize("by", [by_slurm, by_cloud_tpu], ids=lambda it: it.__name__)
def test_two_processes_train_and_evaluate_the_run_of_one_and_the_first_tells(folder, alone, by):
    """Of streamed data each reads the examples of its own device."""
    processes = several(folder, by(2), "mesh.data=2", "data.stream=true")
    told = told_by(processes)
    assert [process.returncode for process in processes] == [0, 0], told
    assert len(re.findall(r"^step", told[0], re.MULTILINE)) == EPOCHS
    assert "step" not in told[1]
    assert_the_run_of(alone, folder)


SAVED = ("--save", "saved")


def alone_by_hand(_):
    return [([], {})]


@pytest.mark.parametrize(
    ("ended", "last"),
    [
        ([(by_hand, 2, 1, SIGKILL, 0), (by_hand, 2, 1, SIGTERM, 1)], (alone_by_hand, 1)),
        ([(alone_by_hand, 1, 1, SIGTERM, 0), (by_open_mpi, 2, 2, SIGKILL, 1)], (by_mpich, 4)),
    ],
    ids=["two, then one", "one, two, four"],
)
def test_a_run_whose_processes_end_goes_on_in_another_number_of_them(folder, alone, ended, last):
    """Where one is killed the others end with a message; where one is to stop, all save and stop.

    What they saved together is taken up by other processes on other devices. Where one of these is
    slow to write, the checkpoint and the weights of a step took one meeting for the other, and all
    ended with "standard output cannot be used".
    """
    for by, count, devices, signal, number in ended:
        mesh = f"mesh.data={count * devices}"
        whose = {"options": SAVED, "devices": devices, "ended": (number, signal)}
        start = time.monotonic()
        processes = several(folder, by(count), mesh, **whose)
        told = told_by(processes)
        codes = [process.returncode for process in processes]
        if signal == SIGTERM:
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
    by, count = last
    late = count - 1 if count > 1 else None
    processes = several(folder, by(count), f"mesh.data={count}", options=SAVED, late=late)
    told = told_by(processes)
    assert not any(process.returncode for process in processes), "\n".join(told)
    assert "There are checkpoints in saved" in told[0]
    assert_the_run_of(alone, folder)
    assert_same_variables(alone / "saved", folder / "saved")


def test_sigterm_ends_a_process_that_saves_nothing_and_with_it_the_others(folder):
    """JAX took the signal for itself, and the run went on."""
    processes = several(folder, by_hand(2), "mesh.data=2", "train.epochs=1000000", "keep=none")
    while not (line := processes[0].stdout.readline()).startswith("step"):
        assert line or processes[0].poll() is None
    processes[1].terminate()
    told = told_by(processes)
    assert processes[1].returncode == 128 + SIGTERM, told
    assert "another" in told[0]


def test_a_mesh_is_of_all_their_devices(folder):
    processes = several(folder, by_hand(2), "mesh.data=1")
    told = told_by(processes)
    assert [process.returncode for process in processes] == [2, 2], told
    remedy = "mesh.data=1, but the 2 processes of the run have 2 devices together; set mesh.data=2"
    assert all(remedy in " ".join(it.split()) for it in told)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("", 2, None), "some were given; expected all three"),
        (("auto", 2, 0), "finds out --num-processes and --process-id itself"),
        (("here", 2, 0), "'here' is no address and port"),
        (("127.0.0.1:1", 2, 2), "--process-id: 2 is none of 0 to 1"),
    ],
    ids=["not all", "too much", "address", "number"],
)
def test_what_is_no_process_of_several_is_refused(given, told):
    with pytest.raises(ProcessesError, match=told):
        join(*given)


@pytest.mark.parametrize(
    ("coordinator", "remedy"),
    [
        ("auto", "Give the address of process 0 as --coordinator HOST:PORT"),
        ("127.0.0.1:1", "give --num-processes and --process-id"),
    ],
)
def test_where_no_launcher_says_what_is_needed_the_remedy_is_told(folder, coordinator, remedy):
    done = normlab("train", "study.yaml", "--coordinator", coordinator, folder=folder, code=2)
    assert remedy in " ".join(done.stderr.split())
