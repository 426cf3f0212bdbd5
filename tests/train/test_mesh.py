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


def network(variant):
    norm = VARIANTS[variant].layer
    fields = FIELDS.get(variant, {})
    return CNN(channels=(4,), classes=3, norm=partial(norm, **fields), head="global_average")


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_eight_devices_give_the_numbers_of_one(variant):
    """Weights, velocities, statistics, and evaluation with a short last batch."""
    options = {"batch_size": 16, "train": TrainSpec(steps=3, evaluate_every=3)}
    dataset, model = small_dataset(), network(variant)
    optimizer = SGDSpec(learning_rate=0.05)
    alone, spread = (
        run(programs_of(model, dataset, optimizer=optimizer, mesh=mesh, **options), 1, test=True)
        for mesh in (None, EIGHT)
    )
    assert_alike(told(spread), told(alone))
    kept = jax.tree.leaves((spread.state.params, spread.state.batch_stats))
    assert all(len(leaf.devices()) == 8 and leaf.is_fully_replicated for leaf in kept)


def sizes_of_batches(programs):
    """The leading sizes of all arrays of images in the program that trains."""
    _, advance, _ = programs.compile()
    shapes = re.findall(r"f32\[(\d+),4,4,1\]", advance.as_text())
    return {int(size) for size in shapes} - {84}  # those of the whole data set


@pytest.mark.parametrize(
    ("mesh", "accumulate", "size"), [(None, 1, 16), (EIGHT, 1, 2), (EIGHT, 2, 1)], ids=str
)
def test_each_device_computes_with_its_part_of_the_batch(mesh, accumulate, size):
    """All of them with the whole batch would give the same numbers."""
    train = TrainSpec(steps=3, augment="flip", accumulate=accumulate)
    made = programs_of(
        network("layer_norm"), small_dataset(), batch_size=16, train=train, mesh=mesh
    )
    assert size in sizes_of_batches(made)
    assert max(sizes_of_batches(made)) == 16 // (mesh or MeshSpec()).data


def test_several_runs_micro_batches_and_what_is_drawn_are_those_of_one_device():
    train = TrainSpec(steps=7, accumulate=2, augment="crop_flip")
    model = MLP(hidden=(16,), classes=3, norm=normlab.BatchNorm, dropout=0.3)
    alone, spread = (
        fit(
            programs_of(model, small_dataset(), 16, train=train, width=2, mesh=mesh),
            [1, 2],
            test=True,
        )
        for mesh in (None, MeshSpec(data=4))
    )
    for one, other in zip(spread, alone, strict=True):
        assert_alike(told(one), told(other))


def test_a_run_that_was_saved_on_eight_devices_goes_on_on_four_and_on_one(tmp_path):
    def made(mesh):
        train = TrainSpec(steps=6, evaluate_every=3)
        return programs_of(network("batch_norm"), small_dataset(), 16, train=train, mesh=mesh)

    whole = run(made(EIGHT), 1, test=True)
    saving = closing(Checkpoints(tmp_path))
    with saving as there, pytest.raises(StoppedError):
        run(made(EIGHT), 1, hooks=[there.hook(["a run"], 3, lambda: True)])
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
            {"data.batch_size": 20},
            "a batch of 20 examples cannot be cut over mesh.data=8 devices; set "
            "data.batch_size=24, or mesh.data to a number that divides 20",
        ),
        (
            {"train.accumulate": 4},
            "a batch of 16 examples cannot be cut into train.accumulate=4 equal micro-batches "
            "over mesh.data=8 devices; set data.batch_size=32, or mesh.data times "
            "train.accumulate to a number that divides 16",
        ),
        (
            {"executor": "processes"},
            "mesh.data=8 spreads each run over the devices of this process, but "
            "executor=processes makes runs in others; set executor=local, or leave out mesh",
        ),
    ],
    ids=["batch", "micro-batches", "executor"],
)
def test_what_a_mesh_cannot_do_is_refused_at_load_with_the_remedy(changes, message):
    make_study(STUDY, {"mesh.data": 8})
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_study(STUDY, {"mesh.data": 8, **changes})


def test_devices_that_are_not_there_are_told_before_any_run(tmp_path):
    with pytest.raises(UserError, match="asks for 16 devices, but there are 8") as error:
        normlab.compare(STUDY, out=tmp_path / "study", mesh={"data": 16})
    assert "XLA_FLAGS=--xla_force_host_platform_device_count=16" in str(error.value)
    assert not (tmp_path / "study").exists()


def test_programs_that_share_devices_run_one_at_a_time(tmp_path):
    """Two whose devices wait for each other in another order never end."""
    bench = Workbench({"packages": {}, "device": "", "git_revision": None})
    bench.seconds_of_step = 1e-6
    for alone in (False, True):
        executor = LocalExecutor(bench, Store(tmp_path), saves=False, alone=alone)
        assert (executor.slots == 1) == alone
        executor.close()
