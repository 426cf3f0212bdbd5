"""JAX's and Flax's transformations, on every layer."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import normlab as nl

SHAPE = (8, 3, 4)

# Each layer for training, beside its oracle.
LAYERS = {
    "BatchNorm": (nl.BatchNorm(False, momentum=0.9), oracles.batch_norm),
    "BatchNorm counting": (nl.BatchNorm(False, momentum=None), oracles.batch_norm),
    "GhostBatchNorm": (
        nl.GhostBatchNorm(False, momentum=0.9, ghost_batch_size=4),
        partial(oracles.ghost_batch_norm, ghost_batch_size=4),
    ),
    "GhostBatchNorm strided": (
        nl.GhostBatchNorm(
            False,
            momentum=0.9,
            ghost_batch_size=3,
            grouping="strided",
            remainder="merge_last",
            running="sequential",
        ),
        partial(
            oracles.ghost_batch_norm,
            ghost_batch_size=3,
            grouping="strided",
            remainder="merge_last",
        ),
    ),
    "LayerNorm": (nl.LayerNorm(), oracles.layer_norm),
    "RMSNorm": (nl.RMSNorm(), oracles.rms_norm),
    "GroupNorm": (nl.GroupNorm(2), partial(oracles.group_norm, num_groups=2)),
    "InstanceNorm": (nl.InstanceNorm(), oracles.instance_norm),
    "Identity": (nl.Identity(), lambda x, **_: oracles.as_double(x)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


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


def step_of(apply):
    """One training step: new variables; output and gradients of a nonlinear loss."""

    def step(variables, x):
        def loss(params, x):
            y, updates = apply({**variables, "params": params}, x)
            return jnp.sum(jnp.sin(y)), (y, updates)

        gradients, (y, updates) = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
        return {**variables, **updates}, (y, gradients)

    return step


def training(layer):
    return partial(layer.apply, mutable=["batch_stats"])


def stacked(trees):
    # NumPy has nothing to compile.
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def loop(step, carry, batches):
    """What scan does, as the loop that it is."""
    results = []
    for x in batches:
        carry, result = step(carry, x)
        results.append(result)
    return carry, stacked(results)


@every_layer
def test_vmap_of_scan_of_grad_of_remat_is_a_loop_of_plain_steps(name):
    """Two models with variables of their own; the running statistics are carried."""
    layer, _ = LAYERS[name]
    batches = random_array((2, 3, *SHAPE))
    models = [initialized(layer, batches[0, 0], seed) for seed in range(2)]
    plain = jax.jit(step_of(training(layer)))
    expected = stacked([loop(plain, *pair) for pair in zip(models, batches, strict=True)])
    step = step_of(jax.checkpoint(training(layer)))
    result = jax.jit(jax.vmap(partial(jax.lax.scan, step)))(stacked(models), batches)
    assert_trees_close(result, expected)


@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ("BatchNorm counting", "Identity")])
def test_derivatives_of_first_and_second_order(name):
    """grad, jvp, jvp of grad and grad of grad, in float64 against differences of the oracle."""
    layer, oracle = LAYERS[name]
    x, u, v = (random_array(SHAPE, seed).astype(np.float64) for seed in range(3))

    def expected(s, t):
        return np.sin(oracle(x + s * u + t * v)).sum()

    h = 1e-4
    first = (expected(h, 0) - expected(-h, 0)) / (2 * h)
    second = (expected(h, h) - expected(h, -h) - expected(-h, h) + expected(-h, -h)) / (4 * h * h)
    with jax.enable_x64(True):

        @jax.jit
        def derivatives(x, u, v):
            variables = layer.init(jax.random.key(0), x)

            def loss(x):
                return jnp.sum(jnp.sin(layer.apply(variables, x)))

            gradient = jax.grad(loss)
            forward = jax.jvp(loss, (x,), (u,))[1]
            forward_over_reverse = jax.jvp(gradient, (x,), (v,))[1]
            reverse_over_reverse = jax.grad(lambda x: jnp.vdot(gradient(x), v))(x)
            return (
                (forward, jnp.vdot(gradient(x), u)),
                (jnp.vdot(forward_over_reverse, u), jnp.vdot(reverse_over_reverse, u)),
            )

        firsts, seconds = derivatives(x, u, v)
    assert firsts[0].dtype == jnp.float64
    np.testing.assert_allclose(firsts, [first] * 2, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(seconds, [second] * 2, rtol=1e-5, atol=1e-5)


@every_layer
def test_a_batch_sharded_over_eight_devices_gives_the_numbers_of_one(name):
    """Under jit, the layer is told nothing of the devices."""
    layer, _ = LAYERS[name]
    batches = random_array((2, 16, *SHAPE[1:]))
    variables = initialized(layer, batches[0])
    step = jax.jit(step_of(training(layer)))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    over_batch, everywhere = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
    sharded = [jax.device_put(x, over_batch) for x in batches]
    result = loop(step, jax.device_put(variables, everywhere), sharded)
    assert_trees_close(result, loop(step, variables, batches))


@every_layer
def test_training_is_traced_once(name):
    """With an equal module as static argument, and from initialization on: the types of the
    variables are those of their updates.
    """
    chex.clear_trace_counter()
    layer, _ = LAYERS[name]
    variables = jax.jit(layer.init)(jax.random.key(0), random_array())

    @partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def step(layer, variables, x):
        y, updates = layer.apply(variables, x, mutable=["batch_stats"])
        return {**variables, **updates}, y

    for x in random_array((3, *SHAPE)):
        variables, _ = step(layer.clone(), variables, x)


# Flax's lifted transformations.


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
lifted_layers = pytest.mark.parametrize(
    "name", [name for name in LAYERS if name not in ("BatchNorm counting", "InstanceNorm")]
)


@lifted_layers
def test_lifted_vmap_scan_remat_and_jit(name):
    """Three layers side by side, and three in a row, are three single ones."""
    layer, _ = LAYERS[name]
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


@pytest.mark.parametrize("name", ["BatchNorm", "BatchNorm counting", "GhostBatchNorm strided"])
def test_lifted_scan_carries_the_statistics_over_time(name):
    """One layer, the same parameters at every time, statistics updated at every time."""
    layer, _ = LAYERS[name]
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
