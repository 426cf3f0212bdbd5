"""Layers without running statistics over named axes, and scale and bias on other feature axes."""

from functools import partial

import jax
import numpy as np
import oracles
import pytest

import normlab as nl

SHAPE = (4, 5, 6)


def random_array(shape=SHAPE, seed=0, mean=0.5):
    return np.random.default_rng(seed).normal(mean, 1.5, shape).astype(np.float32)


# Over a named axis, what is pooled are sums and counts. Beside each layer, the oracle of all shards
# together.
POOLED = {
    "LayerNorm": (nl.LayerNorm, partial(oracles.layer_norm, reduction_axes=(0, -1))),
    "RMSNorm": (nl.RMSNorm, partial(oracles.rms_norm, reduction_axes=(0, -1))),
    "GroupNorm": (
        partial(nl.GroupNorm, 2),
        partial(oracles.group_norm, num_groups=2, reduction_axes=(0, 2, 3)),
    ),
    "InstanceNorm": (nl.InstanceNorm, partial(oracles.standardize, axes=(0, 2), epsilon=1e-6)),
    "PositionNorm": (
        nl.PositionNorm,
        partial(oracles.layer_norm, reduction_axes=(0, -1), epsilon=1e-5),
    ),
}


@pytest.mark.parametrize(("layer", "oracle"), POOLED.values(), ids=POOLED)
def test_unequal_shards_give_the_pooled_answer(layer, oracle):
    """Shards that count fully, in part and not at all; outputs and gradients across shards."""
    x, weights = random_array((3, 4, 2, 6), mean=5), random_array((3, 4, 2, 6), seed=1)
    mask = np.indices(x.shape).sum(0) % 3 != 0
    mask[0], mask[2] = True, False
    variables = jax.jit(layer().init)(jax.random.key(0), x[0])
    module = layer(axis_name="shards")

    def loss(x):
        y = jax.vmap(lambda x, m: module.apply(variables, x, mask=m), axis_name="shards")(x, mask)
        return (weights * y).sum(), y

    gradient, y = jax.jit(jax.grad(loss, has_aux=True))(x)
    np.testing.assert_allclose(y, oracle(x, mask=mask), rtol=1e-5, atol=1e-5)
    numerical = oracles.numerical_gradient(lambda x: (weights * oracle(x, mask=mask)).sum(), x)
    np.testing.assert_allclose(gradient, numerical, rtol=1e-4, atol=1e-5 * np.abs(numerical).max())


@pytest.mark.parametrize(
    ("layer", "oracle", "shape"),
    [
        (
            nl.BatchNorm(use_running_average=False, axis=1),
            partial(oracles.batch_norm, axis=1),
            (5,),
        ),
        (
            nl.LayerNorm(feature_axes=(1, 2)),
            partial(oracles.layer_norm, feature_axes=(1, 2)),
            (5, 6),
        ),
        (
            nl.InstanceNorm(feature_axes=1),
            partial(oracles.instance_norm, feature_axes=1),
            (5,),
        ),
    ],
    ids=["batch", "layer", "instance"],
)
def test_scale_at_the_call_lies_on_the_feature_axes(layer, oracle, shape):
    x, scale = random_array(), random_array(shape, seed=2)
    bias = np.zeros(shape, np.float32)
    y = layer.apply({}, x, scale=scale, bias=bias)
    np.testing.assert_allclose(y, oracle(x, scale=scale), rtol=1e-5, atol=1e-5)


# Features on the second of three axes: the layer there is the layer on the last, axes swapped.
ON_ANOTHER_AXIS = {
    "BatchRenorm": partial(nl.BatchRenorm, False),
    "BatchGroupNorm": partial(nl.BatchGroupNorm, False, num_groups=2),
    "SwitchableNorm": partial(nl.SwitchableNorm, False),
    "EvoNormB0": partial(nl.EvoNormB0, False),
    "BatchNorm weighing examples": partial(nl.BatchNorm, True, example_weight=0.3),
}


@pytest.mark.parametrize("layer", ON_ANOTHER_AXIS.values(), ids=ON_ANOTHER_AXIS)
def test_features_may_lie_on_any_axis(layer):
    x = random_array((4, 3, 6))
    variables = jax.jit(layer().init)(jax.random.key(0), x)
    run = partial(jax.jit, static_argnums=0)(
        lambda module, x: module.apply(variables, x, mutable=["batch_stats"])
    )
    expected, expected_updates = run(layer(), x)
    y, updates = run(layer(axis=1), np.moveaxis(x, 2, 1))
    np.testing.assert_allclose(np.moveaxis(y, 1, 2), expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), updates, expected_updates)
