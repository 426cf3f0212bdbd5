"""Layers without running statistics over named axes, and scale and bias on other feature axes."""

from functools import partial

import jax
import numpy as np
import oracles
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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


CHANNELS_FIRST = {
    "GroupNorm": (
        partial(nl.GroupNorm, num_groups=2),
        nl.nnx.GroupNorm,
        partial(oracles.group_norm, num_groups=2),
    ),
    "InstanceNorm": (nl.InstanceNorm, nl.nnx.InstanceNorm, oracles.instance_norm),
    "LocalResponseNorm": (
        partial(nl.LocalResponseNorm, size=3, alpha=0.5),
        nl.nnx.LocalResponseNorm,
        partial(oracles.local_response_norm, size=3, alpha=0.5),
    ),
}


@pytest.mark.parametrize(
    ("linen", "nnx_layer", "oracle"), CHANNELS_FIRST.values(), ids=CHANNELS_FIRST
)
@pytest.mark.parametrize("masked", [False, True])
def test_channels_may_come_first(linen, nnx_layer, oracle, masked):
    """As in PyTorch: the one field `feature_axes`, and no transposed copy of the input."""
    x, weights = random_array((2, 6, 4, 5)), random_array((2, 6, 4, 5), seed=1)
    scale, bias = random_array((6,), seed=2), random_array((6,), seed=3)
    mask = np.indices(x.shape).sum(0) % 3 != 0 if masked else None
    layer = linen(feature_axes=1)

    def loss(x):
        y = layer.apply({}, x, mask=mask, scale=scale, bias=bias)
        return (weights * y).sum(), y

    def expected(x):
        return oracle(x, feature_axes=1, mask=mask, scale=scale, bias=bias)

    gradient, y = jax.jit(jax.grad(loss, has_aux=True))(x)
    np.testing.assert_allclose(y, expected(x), rtol=1e-5, atol=1e-5)
    numerical = oracles.numerical_gradient(lambda x: (weights * expected(x)).sum(), x)
    np.testing.assert_allclose(gradient, numerical, rtol=1e-4, atol=1e-5 * np.abs(numerical).max())

    fields = {"feature_axes": 1} | getattr(linen, "keywords", {})
    in_nnx = nnx_layer(6, **fields, rngs=nnx.Rngs(0))(x, mask=mask, scale=scale, bias=bias)
    np.testing.assert_allclose(in_nnx, y, rtol=1e-6, atol=1e-6)

    mesh = jax.make_mesh((2,), ("channels",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec(None, "channels", None, None))
        spread = jax.jit(lambda x: loss(x)[1])(jax.device_put(x, place))
    assert spread.sharding.spec[1] == "channels"
    np.testing.assert_allclose(spread, y, rtol=1e-6, atol=1e-6)

    if masked:
        return
    transposed = [
        equation.outvars[0].aval.size
        for equation in jax.make_jaxpr(lambda x: loss(x)[1])(x).eqns
        if equation.primitive.name == "transpose"
    ]
    assert all(size < x.size for size in transposed)


@pytest.mark.parametrize("layer", [nl.GroupNorm, nl.LocalResponseNorm])
def test_channels_lie_on_one_axis(layer):
    for axes in ((1, 2), ()):
        with pytest.raises(ValueError, match=f"{layer.__name__}: feature_axes=.* expected one"):
            layer(feature_axes=axes).init(jax.random.key(0), random_array())
    with pytest.raises(ValueError, match=f"{layer.__name__}: feature_axes=3 names an axis"):
        layer(feature_axes=3).init(jax.random.key(0), random_array())
    for axes, reduced in ((0, None), (1, (2,))):
        with pytest.raises(ValueError, match=r"must include axis .* which holds the channels"):
            nl.GroupNorm(feature_axes=axes, reduction_axes=reduced).init(
                jax.random.key(0), random_array()
            )
