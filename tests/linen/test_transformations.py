"""Flax's lifted transformations; JAX's are in the contract suite."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normlab as nl

SHAPE = (8, 3, 4)

# For training; several of them declare variables in more places than their call.
LAYERS = {
    "BatchNorm": nl.BatchNorm(False, momentum=0.9),
    "BatchNorm counting": nl.BatchNorm(False, momentum=None),
    "GhostBatchNorm": nl.GhostBatchNorm(False, momentum=0.9, ghost_batch_size=4),
    "GhostBatchNorm strided": nl.GhostBatchNorm(
        False,
        momentum=0.9,
        ghost_batch_size=3,
        grouping="strided",
        remainder="merge_last",
        running="sequential",
    ),
    "BatchRenorm": nl.BatchRenorm(False, start_steps=0, r_steps=4, d_steps=4, momentum=0.9),
    "SwitchableNorm": nl.SwitchableNorm(False, momentum=0.9),
    "EvoNormB0": nl.EvoNormB0(False, momentum=0.9),
    "LayerNorm": nl.LayerNorm(),
    "RMSNorm": nl.RMSNorm(),
    "GroupNorm": nl.GroupNorm(2),
    "ProxyNorm": nl.ProxyNorm(samples=8),
}


def random_array(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1.5, shape).astype(np.float32)


def initialized(layer, x, seed=0):
    """Variables away from their initial values, so that all of them matter."""
    shapes = {"params": {}, **jax.eval_shape(layer.init, jax.random.key(0), x)}
    generator = np.random.default_rng(seed)

    def fill(path, leaf):
        counts = "count" in jax.tree_util.keystr(path)
        values = np.zeros(leaf.shape) if counts else 0.5 + generator.random(leaf.shape)
        return jnp.asarray(values.astype(leaf.dtype))

    return jax.tree.map_with_path(fill, shapes)


def assert_trees_close(ours, expected, tolerance=1e-5):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == other.dtype
        np.testing.assert_allclose(leaf, other, rtol=tolerance, atol=tolerance)


def training(layer):
    return partial(layer.apply, mutable=["batch_stats"])


def stacked(trees):
    # NumPy has nothing to compile.
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


class Call(nn.Module):
    """A model of one layer."""

    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.norm(x)


class InARow(nn.Module):
    """The body of a scan that feeds each layer's output to the next."""

    norm: nn.Module

    @nn.compact
    def __call__(self, carry, _):
        y = self.norm(carry)
        return y, y


class OverTime(nn.Module):
    """The body of a scan that feeds a layer one batch after the other."""

    norm: nn.Module

    @nn.compact
    def __call__(self, carry, x):
        return carry, self.norm(x)


EACH_ITS_OWN = {
    "variable_axes": {"params": 0, "batch_stats": 0},
    "split_rngs": {"params": True},
}


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "BatchNorm counting"])
def test_lifted_vmap_scan_remat_and_jit(name):
    """Three layers side by side, and three in a row, are three single ones."""
    layer = LAYERS[name]
    x = random_array((3, *SHAPE))
    models = [initialized(Call(layer), x[0], seed) for seed in range(3)]
    single = jax.jit(training(Call(layer)))

    side_by_side = nn.vmap(nn.remat(Call), **EACH_ITS_OWN)(layer)
    shapes = jax.eval_shape(side_by_side.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, {"params": {}, **shapes}) == jax.tree.map(
        jnp.shape, stacked(models)
    )
    result = jax.jit(training(side_by_side))(stacked(models), x)
    assert_trees_close(result, stacked([single(*pair) for pair in zip(models, x, strict=True)]))

    in_a_row = nn.scan(nn.jit(InARow), length=3, **EACH_ITS_OWN)(layer)
    (last, outputs), updates = jax.jit(training(in_a_row))(stacked(models), x[0], None)
    expected, y = [], x[0]
    for variables in models:
        y, update = single(variables, y)
        expected.append((y, update))
    assert_trees_close((outputs, updates), stacked(expected))
    np.testing.assert_array_equal(last, outputs[-1])


@pytest.mark.parametrize(
    "name", ["BatchNorm", "BatchNorm counting", "GhostBatchNorm strided", "BatchRenorm"]
)
def test_lifted_scan_carries_the_statistics_over_time(name):
    """One layer, the same parameters at every time, statistics updated at every time."""
    layer = LAYERS[name]
    batches = random_array((3, *SHAPE))

    over_time = nn.scan(
        OverTime,
        variable_broadcast="params",
        variable_carry="batch_stats",
        split_rngs={"params": False},
    )(layer)
    variables = initialized(Call(layer), batches[0])
    (_, outputs), statistics = jax.jit(training(over_time))(variables, None, batches)
    single, expected = jax.jit(training(Call(layer))), []
    for x in batches:
        y, updates = single(variables, x)
        variables |= updates
        expected.append(y)
    assert_trees_close((outputs, statistics), (np.stack(expected), updates))


SHARED = {
    "variable_axes": {"params": None, "batch_stats": None},
    "split_rngs": {"params": False},
    "axis_name": "examples",
}


def test_lifted_vmap_over_examples_is_one_batch():
    """One set of variables for all of the axis, over which batch statistics are taken."""
    x = random_array((5, 4, 4))
    layer = nl.BatchNorm(False, momentum=0.9)
    variables = initialized(Call(layer), x[0])
    over_examples = nn.vmap(Call, **SHARED)(layer.clone(axis_name="examples"))
    result = jax.jit(training(over_examples))(variables, x)
    y, updates = jax.jit(training(Call(layer)))(variables, x.reshape(20, 4))
    assert_trees_close(result, (y.reshape(x.shape), updates))


@pytest.mark.parametrize("running", ["pooled", "average", "sequential"])
def test_lifted_vmap_over_devices_of_ghosts(running):
    """The statistics leave the mapped axis as one set, the same for all devices."""
    x = random_array((3, 4, 2, 4))
    layer = nl.GhostBatchNorm(False, momentum=0.9, ghost_batch_size=2, running=running)
    variables = initialized(Call(layer), x[0])
    over_devices = nn.vmap(Call, **SHARED)(layer.clone(axis_name="examples"))
    result = jax.jit(training(over_devices))(variables, x)
    y, updates = jax.jit(training(Call(layer)))(variables, x.reshape(12, 2, 4))
    assert_trees_close(result, (y.reshape(x.shape), updates))
