"""What users of other libraries complain about, each as a property, with the issue that it is from.

Complaints whose property is a promise of a layer are tested beside the other promises: masks,
devices, lifted transformations, remainders of ghost batches, checkpoints, batches of one.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from compiled import AS_USERS
from flax import nnx

import normlab as nl


def random_array(shape, seed=0, mean=0.5, deviation=1.5):
    values = np.random.default_rng(seed).normal(mean, deviation, shape)
    return values.astype(np.float32)


def step(layer, variables, x, **arguments):
    """Trains on a batch; returns the output and the variables after it."""
    y, updates = layer.apply(variables, x, mutable=["batch_stats"], **arguments)
    return y, {**variables, **updates}


# Statistics that are wrong.


@pytest.mark.parametrize(
    ("layer", "oracle"),
    [
        (nl.BatchNorm(False), oracles.batch_norm),
        (nl.LayerNorm(), oracles.layer_norm),
        (nl.GroupNorm(2), partial(oracles.group_norm, num_groups=2)),
        (nl.InstanceNorm(), oracles.instance_norm),
    ],
    ids=lambda value: type(value).__name__,
)
def test_far_from_zero_the_result_is_the_same_eager_and_compiled(layer, oracle):
    """flax#1491, keras#18795, jax#30426, pytorch#51102: the fast variance is noise or NaN there."""
    x = random_array((16, 8, 6), mean=1e4, deviation=1e-2)
    affine = {"scale": np.ones(6, np.float32), "bias": np.zeros(6, np.float32)}
    eager = layer.apply({}, x, **affine)
    compiled = jax.jit(lambda x: layer.apply({}, x, **affine), compiler_options=AS_USERS)(x)
    np.testing.assert_allclose(eager, oracle(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(compiled, eager, rtol=1e-4, atol=1e-4)


def test_far_from_zero_the_fast_variance_of_flax_is_noise():
    """flax#1491: deviations of outputs that should be 0.95, for epsilon, are 3 or nearly 0."""
    x = random_array((64, 8, 6), mean=1e4, deviation=1e-2)
    right = np.std(oracles.batch_norm(x), (0, 1))
    theirs, ours = (
        np.std(library.BatchNorm(False).init_with_output(jax.random.key(0), x)[0], (0, 1))
        for library in (nn, nl)
    )
    assert np.abs(theirs - right).max() > 0.5
    np.testing.assert_allclose(ours, right, rtol=1e-4)


def test_shards_that_count_unequally_are_pooled_by_count():
    """flax#2417: Flax averages the means of the devices, of 6 and of 2 values here."""
    x = random_array((2, 6, 4), mean=3)
    x[1] += 8
    mask = np.ones((2, 6, 1), bool)
    mask[1, 2:] = False
    pooled = np.concatenate([x[0], x[1, :2]]).astype(np.float64)
    halves = np.mean([x[0].mean(0), x[1, :2].mean(0)], 0)
    for library, mean in ((nn, halves), (nl, pooled.mean(0))):
        layer = library.BatchNorm(False, momentum=0.0, axis_name="devices")
        variables = layer.init(jax.random.key(0), x[0])
        train = partial(step, layer, variables)
        of_devices = jax.vmap(lambda x, mask, train=train: train(x, mask=mask), axis_name="devices")
        _, updates = jax.jit(of_devices)(x, mask)
        for of_device in updates["batch_stats"]["mean"]:
            np.testing.assert_allclose(of_device, mean, rtol=1e-5)
    assert np.abs(halves - pooled.mean(0)).min() > 1


def test_a_batch_that_is_wholly_masked_leaves_the_statistics_alone():
    """Flax writes NaN into them."""
    x, mask = random_array((6, 4)), np.zeros((6, 1), bool)
    for library in (nn, nl):
        layer = library.BatchNorm(False)
        before = layer.init(jax.random.key(0), x)
        _, after = step(layer, before, x, mask=mask)
        if library is nl:
            jax.tree.map(np.testing.assert_array_equal, after, before)
        else:
            assert np.isnan(after["batch_stats"]["mean"]).all()


def test_a_batch_of_one_is_refused_and_not_turned_into_zeros():
    """pytorch#4534: PyTorch refuses it too; Flax returns the bias, whatever the input."""
    x = random_array((1, 4))
    y, _ = nn.BatchNorm(False).init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, np.zeros((1, 4)))
    layer = nl.BatchNorm(False)
    with pytest.raises(ValueError, match="single value per feature"):
        layer.apply(layer.init(jax.random.key(0), x), x)


# Statistics before and early in training.

RULES = {
    "exponential": {"momentum": 0.99},
    "debiased": {"momentum": 0.99, "debias": True},
    "cumulative": {"momentum": None},
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_statistics_are_right_at_the_first_and_at_later_steps(rule):
    """equinox#955, equinox#1010: wrong numbers, or a division by zero, before enough updates."""
    batches = random_array((5, 16, 4), mean=3)
    layer = nl.BatchNorm(**rule)
    train = jax.jit(lambda variables, x: step(layer.clone(use_running_average=False), variables, x))
    variables = layer.init(jax.random.key(0), batches[0], use_running_average=False)
    untrained = layer.apply(variables, batches[0], use_running_average=True)
    np.testing.assert_allclose(untrained, batches[0], rtol=1e-5)
    momentum = rule["momentum"]
    replay = oracles.RunningStatistics((4,), momentum, debias=rule.get("debias", False))
    for x in batches:
        _, variables = train(variables, x)
        replay.update_from_batch(x)
        np.testing.assert_allclose(variables["batch_stats"]["mean"], replay.mean, rtol=1e-5)
        np.testing.assert_allclose(variables["batch_stats"]["var"], replay.variance, rtol=1e-5)


def test_a_debiased_variance_is_that_of_the_first_batch_however_small():
    """equinox#955. A variance of 1e-8 must not be lost beside the 1 that it replaces."""
    x = random_array((16, 4), mean=0, deviation=1e-4)
    layer = nl.BatchNorm(False, momentum=0.9, debias=True)
    _, variables = step(layer, layer.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(variables["batch_stats"]["var"], x.var(0), rtol=1e-4)


@pytest.mark.parametrize(
    "layer", [nl.BatchNorm(False), nl.GhostBatchNorm(False, ghost_batch_size=8)]
)
def test_training_normalizes_by_the_batch_whatever_was_seen_before(layer):
    """equinox#659: normalizing a training batch by running statistics destabilizes training."""
    x = random_array((8, 5, 4), mean=7, deviation=3)
    variables = layer.init(jax.random.key(0), x)
    stale = {"mean": jnp.full(4, -50.0), "var": jnp.full(4, 9.0)}
    y, _ = step(layer, {**variables, "batch_stats": stale}, x)
    np.testing.assert_allclose(np.mean(y, (0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(y, (0, 1)), 1, atol=1e-4)


# Statistics that move when they should not.


@pytest.mark.parametrize("by_running", [True, False])
@pytest.mark.parametrize("collect", [True, False])
def test_where_statistics_come_from_and_whether_they_move_are_two_switches(by_running, collect):
    """algorithmic-efficiency#783, #798, keras#9522: freezing one switched the other as well."""
    x = random_array((6, 4), mean=2)
    layer = nl.BatchNorm(by_running, momentum=0.5)
    before = layer.init(jax.random.key(0), x)
    if collect:
        y, after = step(layer, before, x)
    else:
        y, after = layer.apply(before, x), before
    mean = 0 if by_running else x.mean(0)
    deviation = np.sqrt((1 if by_running else x.var(0)) + 1e-5)
    np.testing.assert_allclose(y, (x - mean) / deviation, rtol=1e-5, atol=1e-5)
    moved = collect and not by_running
    expected = 0.5 * x.mean(0) if moved else np.zeros(4)
    np.testing.assert_allclose(after["batch_stats"]["mean"], expected, rtol=1e-6)


def test_recomputation_in_the_backward_pass_does_not_move_the_statistics_again():
    """pytorch#96136: with checkpointing, PyTorch updates once in each of the two forward passes."""
    x = random_array((8, 4), mean=2)
    plain = nl.BatchNorm(False, momentum=None)
    variables = plain.init(jax.random.key(0), x)

    @jax.jit
    def gradient(variables):
        def loss(params):
            layer = nn.remat(nl.BatchNorm)(False, momentum=None)
            y, after = step(layer, {**variables, "params": params}, x)
            return (y**3).sum(), after

        return jax.grad(loss, has_aux=True)(variables["params"])

    _, after = gradient(variables)
    assert after["batch_stats"]["count"] == 1
    np.testing.assert_allclose(after["batch_stats"]["mean"], x.mean(0), rtol=1e-5)


def test_accumulating_gradients_commits_the_statistics_once():
    """pytorch#46516. The micro-batches of a step are the ghost batches of one call."""
    x, weights = random_array((4, 8, 3), mean=2), random_array((4, 8, 3), 1)
    one, all_of_them = (
        nl.BatchNorm(False),
        nl.GhostBatchNorm(False, ghost_batch_size=8, momentum=None),
    )
    variables = all_of_them.init(jax.random.key(0), x.reshape(32, 3))

    def loss(params, layer, x, weights):
        y, after = step(layer, {**variables, "params": params}, x)
        return (weights * y).sum(), after

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    params = variables["params"]
    together, after = gradient(params, all_of_them, x.reshape(32, 3), weights.reshape(32, 3))
    parts = [gradient(params, one, *pair)[0] for pair in zip(x, weights, strict=True)]
    summed = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), together, summed)
    assert after["batch_stats"]["count"] == 1
    np.testing.assert_allclose(after["batch_stats"]["mean"], x.mean((0, 1)), rtol=1e-5)


# Low precision.


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_squares_that_overflow_half_precision_do_not_poison_the_statistics(dtype):
    """pytorch#88474, pytorch#115500, haiku#396."""
    x = jnp.asarray(random_array((8, 5, 4), mean=2e4, deviation=1e4), dtype)
    layer = nl.BatchNorm(False, dtype=dtype)
    y, variables = step(layer, layer.init(jax.random.key(0), x), x)
    assert y.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(y, np.float64), oracles.batch_norm(x), rtol=1e-2, atol=1e-2
    )
    kept, exact = variables["batch_stats"], np.asarray(x, np.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(kept["mean"], 0.01 * exact.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(kept["var"], 0.99 + 0.01 * exact.var((0, 1)), rtol=1e-5)


def test_running_statistics_are_not_rounded_to_the_dtype_of_the_output():
    """flax.nnx casts them: a running mean of 100.3 becomes 100.5, and (102 - 100.3) / 1 1.5."""
    x = jnp.full((1, 1), 102, jnp.bfloat16)
    theirs = nnx.BatchNorm(1, use_running_average=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    theirs.mean[...] = jnp.array([100.3])
    assert theirs(x) == 1.5
    layer = nl.BatchNorm(True, dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    statistics = {"mean": jnp.array([100.3]), "var": jnp.ones(1)}
    y = layer.apply({**variables, "batch_stats": statistics}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), 1.7, atol=4e-3)  # half a bit of bfloat16


# Named axes.


def test_a_layer_with_a_named_axis_evaluates_and_initializes_without_it():
    """flax#319, flax#902, flax#2606: the name was unbound outside of pmap."""
    x = random_array((6, 4))
    layer = nl.BatchNorm(axis_name="devices")
    variables = layer.init(jax.random.key(0), x, use_running_average=False)
    y = layer.apply(variables, x[:1], use_running_average=True)
    np.testing.assert_allclose(y, x[:1], rtol=1e-4)
