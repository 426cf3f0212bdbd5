"""Where runs are made: the same numbers everywhere, whatever dies, whatever fails."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, wait

import numpy as np
import pytest
from command import ENVIRONMENT, table

from normlab.compare.environment import environment
from normlab.compare.executors.local import LocalExecutor
from normlab.compare.run import run_study
from normlab.compare.status import read_status
from normlab.compare.store import Store
from normlab.compare.study import StudyError, study_type
from normlab.errors import UserError
from normlab.modules import import_modules

CONFIG = {
    "study": "small",
    "data": {"name": "digits", "batch_size": 32, "train_examples": 128},
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"epochs": 3},
    "variants": {"none": {"layer": "identity"}, "batch": {"layer": "batch_norm"}},
    "tune": {"optimizer.learning_rate": [0.01, 0.1]},
    "seeds": 4,
}


def study(**changes):
    return study_type().model_validate({**CONFIG, **changes})


def run(folder, made):
    return run_study(made, Store(folder), environment("test"), lambda *_: None)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """What the study comes to in this process."""
    folder = tmp_path_factory.mktemp("local")
    run(folder, study())
    return table(folder)


def test_the_executor_is_no_part_of_what_a_run_is(tmp_path, local):
    made = study(executor={"width": 2})
    assert made.executor.name == "local"
    run(tmp_path, made)
    assert [it["id"] for it in table(tmp_path)] == [it["id"] for it in local]
    # A folder filled by another executor has nothing left to do.
    assert run(tmp_path, study(executor="processes")).here == 0


def metrics(folder):
    return np.array(
        [
            [*it["curve"]["train"].values(), *it["curve"]["validation"].values()]
            for it in table(folder)
        ]
    )


def test_going_on_with_a_width_gives_the_same_bits_and_no_width_other_numbers(tmp_path):
    # 2 runs of tuning and 4 of each arm: groups of 3 are filled up.
    made = study(executor={"width": 3}, model={"name": "mlp", "hidden": [40, 40]})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, made)
    seconds = {it.id: it.seconds for it in Store(whole).results()}
    together = [len([it for it in seconds.values() if it == own]) for own in seconds.values()]
    assert sorted(together) == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]
    run(parts, made)
    for place, file in enumerate(sorted((parts / "runs").glob("*.json"))):
        if place % 2:
            file.unlink()
    ending = run(parts, made)
    assert 0 < ending.here < ending.done == 12
    assert table(parts) == table(whole)
    alone = tmp_path / "alone"
    run(alone, study(model={"name": "mlp", "hidden": [40, 40]}))
    np.testing.assert_allclose(metrics(whole), metrics(alone), rtol=1e-4)


def kill_a_worker(folder, results):
    """Kills one of the workers as soon as there are so many results."""
    while len(list(folder.glob("runs/*.json"))) < results:
        time.sleep(0.01)
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid, signal.SIGKILL)


def test_processes_give_the_same_bits_though_one_of_them_is_killed(tmp_path, local):
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path, 2))
    killer.start()
    ending = run(tmp_path, study(executor={"name": "processes", "workers": 2}))
    killer.join()
    assert (ending.done, ending.here, ending.failures) == (12, 12, ())
    assert table(tmp_path) == local
    assert multiprocessing.active_children() == []
    # The curves are there line by line as well.
    for it in local:
        lines = (tmp_path / f"runs/{it['id']}.jsonl").read_text().splitlines()
        assert [json.loads(line)["train_loss"] for line in lines] == it["curve"]["train"]["loss"]


LAYERS = """
import multiprocessing, os, signal
import normlab
from flax import linen as nn

@normlab.register("deadly")
class Deadly(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average=None):
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

@normlab.register("faulty")
class Faulty(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average=None):
        if "MENDED" not in os.environ:
            raise RuntimeError("out of order: [/b] <b>")
        return x
"""


@pytest.fixture
def layers(tmp_path):
    """Registers the layers above, from a file beside the study."""
    (tmp_path / "failing_layers.py").write_text(LAYERS)
    (module,), _ = import_modules(["failing_layers.py"], tmp_path)
    yield module
    import_modules([], tmp_path)


def test_a_run_whose_process_dies_again_and_again_is_given_up_and_the_others_go_on(
    tmp_path, layers
):
    variants = {"none": {"layer": "identity"}, "deadly": {"layer": "deadly"}}
    made = study(
        modules=[layers],
        variants=variants,
        tune=None,
        seeds=1,
        executor={"name": "processes", "workers": 1},
    )
    ending = run(tmp_path / "runs_of_it", made)
    assert (ending.done, ending.planned) == (1, 2)
    (failure,) = ending.failures
    assert failure.arm == "deadly"
    assert failure.message == "its process died 3 times, at last with exit code -9"
    assert Store(tmp_path / "runs_of_it").failures() == [failure]


def test_a_run_that_fails_is_recorded_and_tried_again_next_time(tmp_path, layers, monkeypatch):
    folder = tmp_path / "runs_of_it"
    variants = {"none": {"layer": "identity"}, "faulty": {"layer": "faulty"}}
    made = study(modules=[layers], variants=variants)
    ending = run(folder, made)
    # What is not tuned cannot be repeated.
    assert (ending.done, ending.planned, len(ending.failures)) == (6, 12, 2)
    assert {it.message for it in ending.failures} == {"RuntimeError: out of order: [/b] <b>"}
    counts = read_status(folder).arms
    assert (counts["faulty"].failed, counts["faulty"].left, counts["none"].left) == (2, 6, 0)
    monkeypatch.setenv("MENDED", "")
    ending = run(folder, made)
    assert (ending.done, ending.here, ending.failures) == (12, 6, ())
    assert Store(folder).failures() == []
    assert read_status(folder).total.failed == 0


class _SecondBreaks(LocalExecutor):
    """Trains the first group, and breaks at the second once that is done."""

    slots = 2
    taken = 0

    def submit(self, group):
        self.taken += 1
        if self.taken == 1:
            made = super().submit(group)
            wait([made])
            return made
        broken = Future()
        broken.set_exception(UserError("the machine is gone"))
        return broken


def test_what_ended_beside_a_group_that_broke_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "normlab.compare.run.start_executor",
        lambda study, bench, environment, store: _SecondBreaks(
            bench, store, saves=False, alone=False
        ),
    )
    with pytest.raises(UserError, match="the machine is gone"):
        run(tmp_path, study(tune=None, seeds=1, train={"epochs": 1}))
    assert [it.arm for it in Store(tmp_path).results()] == ["none"]


def test_a_module_that_the_workers_do_not_find_is_told(tmp_path, layers):
    made = study(variants={"faulty": {"layer": "faulty"}}, executor={"name": "processes"})
    with pytest.raises(ValueError, match="list your modules in `modules`"):
        run(tmp_path / "runs_of_it", made)


SCRIPT = """
import pathlib
import normlab

with pathlib.Path("started").open("a") as file:
    file.write("once\\n")
normlab.compare({study!r}, out="results")
"""


def test_a_script_without_a_main_guard_is_told_at_once(tmp_path):
    """Each worker ran the script, which started the study anew, and died three times."""
    executor = {"name": "processes", "workers": 1}
    (tmp_path / "script.py").write_text(SCRIPT.format(study={**CONFIG, "executor": executor}))
    ended = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 1
    assert "outside of `if __name__ == '__main__':`" in ended.stderr
    assert (tmp_path / "started").read_text() == "once\n" * 2
    assert not (tmp_path / "results/failed").exists()


def test_an_unknown_executor_is_refused():
    with pytest.raises(ValueError, match="'rai'"):
        study(executor="rai")


@pytest.mark.ray
def test_no_cluster_is_told(tmp_path):
    pytest.importorskip("ray", reason="Ray comes with the extra `ray`")
    with pytest.raises(StudyError, match="no Ray cluster is there; start one with"):
        run(tmp_path, study(executor="ray"))


@pytest.mark.ray
class TestRay:
    """A real cluster of two nodes on this machine."""

    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls):
        pytest.importorskip("ray", reason="Ray comes with the extra `ray`")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        yield cluster
        cluster.shutdown()

    def test_the_results_are_those_of_this_process_though_a_worker_and_a_node_are_killed(
        self, tmp_path, local, cluster
    ):
        import psutil

        too_many = study(executor={"name": "ray", "address": cluster.address}, mesh={"data": 2})
        with pytest.raises(StudyError, match=r"has more than 1 \(CPU\); set the mesh to at most 1"):
            run(tmp_path / "many", too_many)
        node = cluster.add_node(num_cpus=1)
        killed = []

        def kill():
            while len(list(tmp_path.glob("runs/*.json"))) < 2:
                time.sleep(0.02)
            workers = [
                it
                for it in psutil.process_iter(["cmdline"])
                if (it.info["cmdline"] or [""])[0].startswith("ray::work")
            ]
            workers[0].kill()
            killed.append("worker")
            while len(list(tmp_path.glob("runs/*.json"))) < 5:
                time.sleep(0.02)
            cluster.remove_node(node, allow_graceful=False)
            killed.append("node")

        killer = threading.Thread(target=kill)
        killer.start()
        ending = run(tmp_path, study(executor={"name": "ray", "address": cluster.address}))
        killer.join()
        assert killed == ["worker", "node"]
        assert (ending.done, ending.failures) == (12, ())
        assert table(tmp_path) == local

    def test_runs_that_are_spread_over_devices_get_them_from_ray(self, tmp_path, local, cluster):
        node = cluster.add_node(num_cpus=4)
        spread = {"executor": {"name": "ray", "address": cluster.address}, "mesh": {"data": 4}}
        ending = run(tmp_path, study(**spread))
        cluster.remove_node(node)
        assert (ending.done, ending.failures) == (12, ())
        assert [it["id"] for it in table(tmp_path)] == [it["id"] for it in local]
        losses = [[it["curve"]["train"]["loss"] for it in its] for its in (table(tmp_path), local)]
        np.testing.assert_allclose(*losses, rtol=1e-4)
