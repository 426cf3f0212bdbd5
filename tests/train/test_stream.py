"""A streamed data set gives the run of one that lies on the device, within less memory."""

import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
import yaml
from command import ENVIRONMENT
from small_runs import programs_of, small_dataset

import normlab
from normlab.models import MLP
from normlab.train import Checkpoints, TrainSpec, fit, stream
from normlab.train.checkpoint import remove

TRAIN = TrainSpec(epochs=3, augment="crop_flip", cutout=2, mixup=0.4)


@pytest.fixture(autouse=True)
def _two_batches_a_part(monkeypatch):
    """So that the 6 steps of an epoch, and its 2 or 3 batches to evaluate on, are several parts."""
    monkeypatch.setattr(stream, "PART_BYTES", 2 * 8 * 16)


def programs(dataset=None, **options):
    model = MLP(hidden=(8,), classes=3, norm=normlab.BatchNorm)
    return programs_of(model, dataset or small_dataset(), train=TRAIN, **options)


def told(outcomes):
    """All that came of runs, to the bit."""
    leaves = [jax.tree.leaves((it.state.params, it.state.batch_stats)) for it in outcomes]
    numbers = [np.asarray(leaf).tobytes() for of_run in leaves for leaf in of_run]
    return [it.curve for it in outcomes], [it.test for it in outcomes], numbers


@pytest.mark.parametrize("width", [1, 2])
def test_a_streamed_run_is_the_resident_one(width):
    """Order, augmentation, and evaluation with short last batches: to the bit."""
    seeds = range(3, 3 + width)
    one, other = (
        told(fit(programs(width=width, stream=it), seeds, test=True)) for it in (False, True)
    )
    assert one == other


def test_a_streamed_run_by_class_is_the_resident_one_but_for_rounding():
    """The programs of the two differ by what the compiler makes of the order."""
    dataset = small_dataset()
    dataset = replace(dataset, groups=dataset.labels[dataset.train])
    made = [programs(dataset), programs(dataset, stream=True), programs()]
    (one,), (other,), (shuffled,) = (fit(it, [3], test=True) for it in made)
    for way in ("params", "batch_stats"):
        leaves = (jax.tree.leaves(getattr(it.state, way)) for it in (one, other, shuffled))
        for first, second, third in zip(*leaves, strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
            assert not np.allclose(first, third, rtol=1e-3)


@pytest.mark.parametrize("step", [3, 6], ids=["within a part", "after an epoch"])
def test_a_streamed_run_goes_on_with_the_very_next_example(tmp_path, step):
    made, saved = programs(stream=True), Checkpoints(tmp_path, last=10)
    whole = told(fit(made, [3], hooks=[saved.hook(["run"], step)], test=True))
    saved.wait()
    for later in saved.steps():
        if later > step:
            remove(tmp_path / f"{later:010d}")
    start = saved.newest(made, ["run"])
    saved.close()
    assert start is not None
    assert start.step == step
    assert told(fit(made, [3], start=start, test=True)) == whole


# Trains on a set of a few examples, and then within a limit on what the large one may take beside:
# to be read, and again to be trained on. What the compiler takes between them is not counted.
WITHIN = """
import resource, sys, threading
from normlab.cli import _run
from normlab.train import Programs, stream

stream.AHEAD = 2  # As on two cores; each thread holds a part.
limit = int(sys.argv[1])
compile_programs = Programs.compile

def limited():
    told = dict(line.split(":", 1) for line in open("/proc/self/status"))
    taken = 1024 * int(told["VmData"].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (taken + limit, resource.RLIM_INFINITY))

def compiled(programs):
    if programs._compiled is None:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
        compile_programs(programs)
        limited()
    return compile_programs(programs)

def train(folder, streamed="true"):
    data = [f"data.folder={folder}", f"data.stream={streamed}"]
    sys.argv = ["normlab", "train", "study.yaml", "--out", f"runs/{folder}", *data]
    _run()

threading.stack_size(2**18)  # Stacks count as a whole.
train("small")
Programs.compile = compiled
limited()
train("large")
limited()
try:
    train("large", streamed="false")
except MemoryError:
    print("too large to be resident")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits are those of Linux")
def test_a_set_ten_times_as_large_as_the_memory_it_may_take_trains(tmp_path):
    limit, image = 3 * 2**24, (64, 64, 3)
    size = 4 * int(np.prod(image))
    for name, count in ("small", 64), ("large", 10 * limit // size):
        folder = tmp_path / name
        folder.mkdir()
        for split, part in ("train", count), ("test", 32):
            file = folder / f"{split}_images.npy"
            # A file of zeros that takes no room, but for its first images.
            images = np.lib.format.open_memmap(file, "w+", np.float32, (part, *image))
            images[:32] = np.random.default_rng(0).normal(size=(32, *image))
            np.save(folder / f"{split}_labels.npy", np.arange(part) % 3)
    study = {
        "study": "large",
        "data": {"name": "npz", "batch_size": 8},
        "model": {"name": "mlp", "hidden": [4]},
        "train": {"steps": 8, "evaluate_every": 8},
        "variants": {"batch": {"layer": "batch_norm"}},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-c", WITHIN, str(limit)]
    ended = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Result:") == 2
    assert "too large to be resident" in ended.stdout
