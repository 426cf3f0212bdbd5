"""A run over several devices gives the numbers of one, whatever the variant."""

import re
from contextlib import closing
from functools import partial

import jax
import numpy as np
import pytest
from small_runs import programs_of, run, small_dataset

import normlab
from normlab.compare.executors.local import LocalExecutor
from normlab.compare.store import Store
from normlab.compare.workbench import Workbench
from normlab.config import ConfigError, make_study
from normlab.errors import UserError
from normlab.interrupts import StoppedError
from normlab.models import CNN, MLP
from normlab.train import Checkpoints, MeshSpec, SGDSpec, TrainSpec, fit
from normlab.variants import VARIANTS

EIGHT = MeshSpec(data=8)
BOTH = MeshSpec(data=2, model=4)

# Where a layer's defaults do not suit a tiny network.
FIELDS = {
    "ghost_batch_norm": {"ghost_batch_size": 2},
    "group_norm": {"num_groups": 2},
    "evonorm_s0": {"num_groups": 2},
    "batch_group_norm": {"num_groups": 2},
    "proxy_norm": {"num_groups": 2, "samples": 16},
    "local_response_norm": {"size": 3},
    # From the first step on.
    "batch_renorm": {"start_steps": 0, "r_steps": 1, "d_steps": 1},
}


def assert_alike(one, other, rtol=2e-4, atol=2e-5):
    close = partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    jax.tree.map(close, jax.device_get(one), jax.device_get(other))


def told(outcome):
    state = outcome.state
    curve = [(it.train, it.validation) for it in outcome.curve]
    return state.params, state.batch_stats, state.opt_state, curve, outcome.test


def network(variant, channels=64):
    norm = VARIANTS[variant].layer
    fields = FIELDS.get(variant, {})
    return CNN(channels=(channels,), classes=3, norm=partial(norm, **fields), head="global_average")


@pytest.mark.parametrize(
    ("variant", "mesh", "batch_size", "stream"),
    [
        *[(it, BOTH, 16, False) for it in sorted(VARIANTS)],
        ("batch_norm", EIGHT, 18, False),
        ("ghost_batch_norm", EIGHT, 18, True),
    ],
    ids=str,
)
def test_eight_devices_give_the_numbers_of_one(variant, mesh, batch_size, stream):
    """Weights, velocities, statistics, and evaluation with a short last batch.

    Also of batches that devices do not divide.
    """
    options = {"batch_size": batch_size, "train": TrainSpec(steps=3, evaluate_every=3)}
    dataset, model = small_dataset(), network(variant)
    options |= {"optimizer": SGDSpec(learning_rate=0.05)}
    alone, spread = (
        run(programs_of(model, dataset, mesh=it, stream=stream, **options), 1, test=True)
        for it in (None, mesh)
    )
    assert_alike(told(spread), told(alone))
    state = spread.state
    for leaf in jax.tree.leaves((state.params, state.batch_stats, state.opt_state)):
        assert len(leaf.devices()) == 8
        wide = mesh == BOTH and leaf.shape[-1:] == (64,)
        part = (*leaf.shape[:-1], 16) if wide else leaf.shape
        assert leaf.addressable_data(0).shape == part


def sizes_of_batches(programs):
    """The leading sizes of all arrays of images in the program that trains."""
    _, advance, _ = programs.compile()
    shapes = re.findall(r"f32\[(\d+),4,4,1\]", advance.as_text())
    return {int(size) for size in shapes} - {84}  # those of the whole data set


@pytest.mark.parametrize(
    ("mesh", "batch_size", "accumulate", "size"),
    [(None, 16, 1, 16), (EIGHT, 16, 1, 2), (EIGHT, 16, 2, 1), (EIGHT, 18, 1, 3)],
    ids=str,
)
def test_each_device_computes_with_its_part_of_the_batch(mesh, batch_size, accumulate, size):
    """All of them with the whole batch would give the same numbers."""
    train = TrainSpec(steps=3, augment="flip", accumulate=accumulate)
    model = network("layer_norm", channels=4)
    made = programs_of(model, small_dataset(), batch_size, train=train, mesh=mesh)
    assert size in sizes_of_batches(made)
    assert max(sizes_of_batches(made)) == -(-batch_size // (mesh or MeshSpec()).data)


def test_each_device_computes_with_its_part_of_the_channels():
    train = TrainSpec(steps=3)
    made = programs_of(network("batch_norm"), small_dataset(), 16, train=train, mesh=BOTH)
    _, advance, _ = made.compile()
    channels = {int(it) for it in re.findall(r"f32\[\d+,4,4,(\d+)\]", advance.as_text())}
    assert 16 in channels
    assert max(channels) == 16


def test_several_runs_micro_batches_and_what_is_drawn_are_those_of_one_device():
    train = TrainSpec(steps=7, accumulate=2, augment="crop_flip")
    model = MLP(hidden=(64,), classes=3, norm=normlab.BatchNorm, dropout=0.3)
    alone, spread = (
        fit(
            programs_of(model, small_dataset(), 16, train=train, width=2, mesh=mesh, stream=stream),
            [1, 2],
            test=True,
        )
        for mesh, stream in ((None, False), (MeshSpec(data=2, model=2), True))
    )
    for one, other in zip(spread, alone, strict=True):
        assert_alike(told(one), told(other))


def test_a_run_that_was_saved_on_eight_devices_goes_on_on_four_and_on_one(tmp_path):
    def made(mesh):
        train = TrainSpec(steps=6, evaluate_every=3)
        return programs_of(network("batch_norm"), small_dataset(), 16, train=train, mesh=mesh)

    whole = run(made(BOTH), 1, test=True)
    saving = closing(Checkpoints(tmp_path))
    with saving as there, pytest.raises(StoppedError):
        run(made(BOTH), 1, hooks=[there.hook(["a run"], 3, lambda: True)])
    for mesh in (MeshSpec(data=4), None):
        programs = made(mesh)
        with closing(Checkpoints(tmp_path)) as there:
            start = there.newest(programs, ["a run"])
        assert start.step == 3
        assert_alike(told(run(programs, 1, test=True, start=start)), told(whole))


STUDY = {
    "study": "spread",
    "data": {"name": "digits", "train_examples": 64, "batch_size": 16},
    "model": {"name": "mlp", "hidden": (8,)},
    "train": {"epochs": 2},
    "variants": {"batch": {"layer": "batch_norm"}},
    "seeds": 1,
}


def test_a_study_on_a_mesh_has_the_runs_of_one_device(tmp_path):
    alone, spread = (
        normlab.compare(STUDY, out=tmp_path / name, **changes)
        for name, changes in [("alone", {}), ("spread", {"mesh": {"data": 8}})]
    )
    assert alone.hash == spread.hash
    (one,), (other,) = (Store(it.folder).results() for it in (alone, spread))
    assert (one.id, one.identity) == (other.id, other.identity)
    np.testing.assert_allclose(other.curve.train["loss"], one.curve.train["loss"], rtol=1e-4)
    np.testing.assert_allclose(other.test["loss"], one.test["loss"], rtol=1e-4)
    assert other.test["accuracy"] == one.test["accuracy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"executor": "processes"},
            "mesh spreads each run over 8 devices of one process, but executor=processes gives "
            "each of its processes one; set executor=local, or ray, or leave out mesh",
        ),
        (
            {"mesh.data": 16},
            "mesh.data=16 asks for 16 devices, but there are 8 (cpu); set mesh.data to at most 8; "
            "to try a mesh on a CPU, set the environment variable "
            "XLA_FLAGS=--xla_force_host_platform_device_count=16",
        ),
        (
            {"mesh.model": 3},
            "mesh.data=8 times mesh.model=3 asks for 24 devices, but there are 8 (cpu); set the "
            "product to at most 8",
        ),
    ],
    ids=["executor", "devices", "devices of both"],
)
def test_what_a_mesh_cannot_do_is_refused_at_load_with_the_remedy(changes, message):
    make_study(STUDY, {"mesh.data": 8})
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_study(STUDY, {"mesh.data": 8, **changes})


def test_devices_are_those_of_the_process_that_makes_the_runs():
    elsewhere = make_study(STUDY, {"mesh.data": 16, "executor": "ray"})
    assert elsewhere.mesh.size == 16


def test_layers_that_are_too_narrow_for_a_mesh_are_told_before_any_run(tmp_path):
    message = (
        "mesh.model=4 spreads arrays whose channels it divides and that have at least 64, but "
        "those of this model have 8, 10"
    )
    with pytest.raises(UserError, match=message):
        normlab.compare(STUDY, out=tmp_path / "study", mesh={"model": 4})
    assert not (tmp_path / "study").exists()


def test_programs_that_share_devices_run_one_at_a_time(tmp_path):
    """Two whose devices wait for each other in another order never end."""
    bench = Workbench({"packages": {}, "device": "", "git_revision": None})
    bench.seconds_of_step = 1e-6
    for alone in (False, True):
        executor = LocalExecutor(bench, Store(tmp_path), saves=False, alone=alone)
        assert (executor.slots == 1) == alone
        executor.close()
