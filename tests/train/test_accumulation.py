"""Gradient accumulation: a step over micro-batches is the step over the batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_runs import programs_of, run, small_dataset

import normlab
from normlab.config import ConfigError, make_study
from normlab.models import MLP
from normlab.objectives import Classification
from normlab.train import TrainSpec
from normlab.train.accumulation import cut


def programs(norm, **options):
    return programs_of(MLP(hidden=(16,), classes=3, norm=norm), small_dataset(), **options)


close = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)


def outcome(norm, accumulate=1):
    return run(programs(norm, train=TrainSpec(steps=7, accumulate=accumulate)), 3, test=True)


def assert_alike(one, other):
    for part in ("params", "batch_stats", "opt_state"):
        jax.tree.map(close, getattr(one.state, part), getattr(other.state, part))
    assert len(one.curve) == len(other.curve)
    for mine, its in zip(one.curve, other.curve, strict=True):
        assert mine.train.keys() == its.train.keys()
        for name, value in mine.train.items():
            close(value, its.train[name])
        close(mine.validation["loss"], its.validation["loss"])
    close(one.test["loss"], other.test["loss"])


@pytest.mark.parametrize("norm", [normlab.LayerNorm, normlab.Identity], ids=["layer", "identity"])
@pytest.mark.parametrize("accumulate", [2, 8])
def test_without_batch_statistics_accumulation_changes_no_number(norm, accumulate):
    assert_alike(outcome(norm, accumulate), outcome(norm))


def test_batch_statistics_are_those_of_each_micro_batch_and_running_ones_move_once_a_step():
    """Four micro-batches of two are the four ghost batches of a whole batch.

    Statistics that moved with each micro-batch would be far from these after 7 steps.
    """
    fields = {"ghost_batch_size": 2, "grouping": "strided", "running": "average"}
    ghosts = partial(normlab.GhostBatchNorm, momentum=0.9, **fields)
    assert_alike(outcome(partial(normlab.BatchNorm, momentum=0.9), 4), outcome(ghosts))


@pytest.mark.parametrize("fields", [{"momentum": None}, {"debias": True}], ids=str)
def test_a_step_is_one_update_for_layers_that_count_them(fields):
    ghosts = partial(
        normlab.GhostBatchNorm,
        **fields,
        ghost_batch_size=2,
        grouping="strided",
        running="average",
    )
    accumulating = outcome(partial(normlab.BatchNorm, **fields), 4)
    assert_alike(accumulating, outcome(ghosts))
    counts = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(accumulating.state.batch_stats)
        if path[-1].key == "count"
    ]
    assert counts == [7]


class Counting(nn.Module):
    """Keeps an integer, and a number that all micro-batches make the same of."""

    @nn.compact
    def __call__(self, x, *, train):
        calls = self.variable("batch_stats", "calls", jnp.zeros, (), jnp.int32)
        third = self.variable("batch_stats", "third", lambda: jnp.float32(1))
        if train and not self.is_initializing():
            calls.value = calls.value + 1
            third.value = third.value / 3
        return nn.Dense(3)(x.reshape(len(x), -1))


def test_other_state_moves_once_a_step_to_the_bit():
    def state(accumulate):
        train = TrainSpec(steps=5, accumulate=accumulate)
        return run(programs_of(Counting(), small_dataset(), train=train), 0).state.batch_stats

    assert int(state(8)["calls"]) == 5
    np.testing.assert_array_equal(state(8)["third"], state(1)["third"])


def test_what_is_left_out_weighs_nothing_however_it_lies_in_the_micro_batches():
    """A mean over micro-batches of their means would weigh the examples unlike."""

    class Half(Classification):
        def examples(self, inputs, targets):
            given, wanted, _ = super().examples(inputs, targets)
            return given, wanted, (wanted > 0).astype(jnp.float32)

    def made(accumulate):
        train = TrainSpec(steps=5, accumulate=accumulate)
        return run(programs(normlab.LayerNorm, train=train, objective=Half()), 1, test=True)

    assert_alike(made(4), made(1))


def test_micro_batches_draw_each_for_itself():
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            kept = nn.Dropout(0.5, deterministic=not train)(jnp.ones((len(x), 16)))
            seen = self.variable("batch_stats", "kept", jnp.zeros, (16,))
            if train and not self.is_initializing():
                seen.value = kept[0]
            return nn.Dense(3)(x.reshape(len(x), -1))

    made = programs_of(Dropping(), small_dataset(), train=TrainSpec(steps=1, accumulate=2))
    kept = run(made, 0).state.batch_stats["kept"]
    # The average of two patterns of 0 and 2: what one alone kept is 1.
    assert set(np.unique(kept)) == {0.0, 1.0, 2.0}


def test_a_device_keeps_its_examples_when_a_batch_is_cut():
    parts = cut({"x": jnp.arange(12).reshape(6, 2)}, 3)["x"]
    np.testing.assert_array_equal(parts[..., 0], [[0, 6], [2, 8], [4, 10]])


STUDY = {
    "study": "cut",
    "data": {"name": "digits", "batch_size": 32},
    "model": {"name": "mlp"},
    "variants": {"batch": {"layer": "batch_norm"}},
    "seeds": 1,
}


def test_a_batch_that_cannot_be_cut_is_refused_with_the_remedy():
    told = (
        "a batch of 32 examples cannot be cut into train.accumulate=3 equal micro-batches; set "
        "data.batch_size=33, or train.accumulate to a number that divides 32"
    )
    with pytest.raises(ConfigError, match=told):
        make_study(STUDY, {"train.accumulate": 3})
    with pytest.raises(ValueError, match="a batch of 8 examples cannot be cut into"):
        programs(normlab.LayerNorm, train=TrainSpec(accumulate=3))


def test_of_batch_sizes_that_vary_each_is_checked_with_its_arm():
    make_study(STUDY, {"train.accumulate": 3, "factors": {"data.batch_size": [33, 66]}})
    with pytest.raises(ConfigError, match="a batch of 32 examples cannot be cut into"):
        make_study(STUDY, {"train.accumulate": 3, "factors": {"data.batch_size": [33, 32]}})
    sizes = {"data.batch_size": 33, "tune": {"data.batch_size": [33, 64]}}
    with pytest.raises(ConfigError, match="a batch of 64 examples cannot be cut into"):
        make_study(STUDY, {"train.accumulate": 3, **sizes})
