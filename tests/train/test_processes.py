"""Several processes that train one run together: the numbers of one, and an end for all."""

import json
import re
import signal
import socket
import time

import numpy as np
import pytest
import yaml
from command import ENVIRONMENT, normlab, started

from normlab.train.processes import SILENCE

STUDY = {
    "study": "together",
    "data": {"name": "digits", "train_examples": 64, "batch_size": 16},
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"epochs": 2},
    "variants": {"batch": {"layer": "batch_norm"}},
    "seeds": 1,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def two(folder, *changes, data=2):
    """Starts both processes, on one device each."""
    coordinator = f"127.0.0.1:{free_port()}"
    told = ["--coordinator", coordinator, "--num-processes", "2", "--out", "two", "--process-id"]
    command = ["train", "study.yaml", f"mesh.data={data}", *changes, *told]
    return [started(*command, number, folder=folder) for number in ("0", "1")]


def two_of_slurm(folder, monkeypatch):
    """Starts both as `srun` does, which tells them by the environment where the others are."""
    job = {"JOB_ID": free_port(), "NTASKS": 2, "STEP_NUM_NODES": 1, "STEP_NODELIST": "localhost"}
    command = ["train", "study.yaml", "mesh.data=2", "--coordinator", "auto", "--out", "two"]
    processes = []
    for number in (0, 1):
        for name, value in {**job, "PROCID": number, "LOCALID": number}.items():
            monkeypatch.setitem(ENVIRONMENT, f"SLURM_{name}", str(value))
        processes.append(started(*command, folder=folder))
    return processes


def result(folder):
    (file,) = folder.glob("runs/*.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize("by_slurm", [False, True], ids=["by hand", "slurm"])
def test_two_processes_train_and_evaluate_the_run_of_one_and_the_first_tells(
    folder, monkeypatch, by_slurm
):
    processes = two_of_slurm(folder, monkeypatch) if by_slurm else two(folder)
    told = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert len(re.findall(r"^step", told[0], re.MULTILINE)) == 2
    assert "step" not in told[1]
    normlab("train", "study.yaml", "--out", "one", folder=folder)
    one, other = result(folder / "one"), result(folder / "two")
    assert one["id"] == other["id"]
    for split in ("train", "validation"):
        for name, curve in one["curve"][split].items():
            np.testing.assert_allclose(other["curve"][split][name], curve, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(other["test"]["loss"], one["test"]["loss"], rtol=1e-4)


@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_process_is_killed_the_other_ends_with_a_message(folder, killed):
    processes = two(folder, "train.epochs=1000000")
    try:
        while not processes[0].stdout.readline().startswith("step"):
            assert processes[0].poll() is None
        processes[killed].send_signal(signal.SIGKILL)
        start = time.monotonic()
        told, _ = processes[1 - killed].communicate(timeout=300)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
    assert time.monotonic() - start < SILENCE + 30
    assert processes[1 - killed].returncode != 0
    assert "another" in told
    assert "Traceback" not in told
    assert not (folder / "two" / "runs").exists()


def test_a_mesh_is_of_all_their_devices(folder):
    processes = two(folder, data=1)
    told = [process.communicate(timeout=300)[0] for process in processes]
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
        (
            ["--coordinator", "127.0.0.1:1", "--save", "there"],
            "several processes save nothing yet",
        ),
    ],
    ids=["not all", "address", "number", "save"],
)
def test_what_is_no_process_of_several_is_refused(folder, given, told):
    assert told in " ".join(
        normlab("train", "study.yaml", *given, folder=folder, code=2).stderr.split()
    )
