"""What every layer promises beyond Flax: one call, masks, conditioning, stability."""

import inspect
import pickle
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import serialization

import normlab as nl

# As users compile, not as these tests do: the compiler's optimizations touch the last bits.
OPTIMIZED = {"xla_backend_optimization_level": 3}

SHAPE = (4, 5, 6)


def identity(x, *, mask=None, scale=None, bias=None):
    del mask  # There are no statistics that a value could be left out of.
    return oracles.affine(oracles.as_double(x), -1, scale, bias)


# Each layer as a constructor, beside its oracle.
LAYERS = {
    "BatchNorm": (nl.BatchNorm, oracles.batch_norm),
    "GhostBatchNorm": (
        partial(nl.GhostBatchNorm, ghost_batch_size=2),
        partial(oracles.ghost_batch_norm, ghost_batch_size=2),
    ),
    "LayerNorm": (nl.LayerNorm, oracles.layer_norm),
    "RMSNorm": (nl.RMSNorm, oracles.rms_norm),
    "GroupNorm": (partial(nl.GroupNorm, 2), partial(oracles.group_norm, num_groups=2)),
    "InstanceNorm": (nl.InstanceNorm, oracles.instance_norm),
    "Identity": (nl.Identity, identity),
}
NORMALIZING = [name for name in LAYERS if name != "Identity"]
RUNNING = ["BatchNorm", "GhostBatchNorm"]

every_layer = pytest.mark.parametrize("name", LAYERS)
every_normalization = pytest.mark.parametrize("name", NORMALIZING)


def in_training(name, **fields):
    return LAYERS[name][0](use_running_average=False, **fields)


def random_array(shape=SHAPE, seed=0, mean=0.5, deviation=1.5):
    values = np.random.default_rng(seed).normal(mean, deviation, shape)
    return values.astype(np.float32)


def two_of_three(shape):
    return np.indices(shape).sum(0) % 3 != 0


# One call for all.


@every_layer
def test_call_signature_is_the_same(name):
    layer = LAYERS[name][0]
    layer = layer.func if isinstance(layer, partial) else layer
    parameters = list(inspect.signature(layer.__call__).parameters.values())[1:]
    assert [(p.name, p.kind.name, p.default) for p in parameters] == [
        ("x", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("use_running_average", "POSITIONAL_OR_KEYWORD", None),
        ("mask", "KEYWORD_ONLY", None),
        ("scale", "KEYWORD_ONLY", None),
        ("bias", "KEYWORD_ONLY", None),
    ]


class Block(nn.Module):
    """A model that takes any norm and knows nothing of its kind."""

    norm: object

    @nn.compact
    def __call__(self, x, train):
        norm = partial(self.norm, use_running_average=not train)
        x = nn.relu(norm(name="first")(nn.Dense(6, use_bias=False)(x)))
        return norm(name="second")(x)


@every_layer
def test_any_layer_serves_as_the_norm_of_a_model(name):
    layer, oracle = LAYERS[name]
    model, x = Block(layer), random_array()
    shapes = jax.eval_shape(partial(model.init, train=True), jax.random.key(0), x)
    values = {"kernel": 0.5 * random_array((6, 6), seed=1), "scale": np.ones(6, np.float32)}
    variables = jax.tree.map_with_path(
        lambda path, leaf: values.get(path[-1].key, np.zeros(leaf.shape, leaf.dtype)), shapes
    )
    y, updates = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, x)
    dense = x.astype(np.float64) @ np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)
    np.testing.assert_allclose(y, oracle(np.maximum(oracle(dense), 0)), rtol=1e-4, atol=1e-4)
    assert ("batch_stats" in updates) == (name in RUNNING)
    evaluated = jax.jit(partial(model.apply, train=False))({**variables, **updates}, x[:1])
    assert evaluated.shape == (1, *SHAPE[1:])
    if name not in RUNNING:
        np.testing.assert_allclose(evaluated, y[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in RUNNING])
def test_layers_without_statistics_ignore_where_they_should_come_from(name):
    layer, _ = LAYERS[name]

    def computation(field, argument):
        module = layer(use_running_average=field)
        run = partial(module.init_with_output, use_running_average=argument)
        return str(jax.make_jaxpr(run)(jax.random.key(0), random_array()))

    for field in (None, True, False):
        for argument in (None, True, False):
            assert computation(field, argument) == computation(None, None)


def test_identity_returns_its_input():
    x = jnp.asarray(random_array(), jnp.bfloat16)
    y, variables = nl.Identity().init_with_output(jax.random.key(0), x, mask=two_of_three(SHAPE))
    assert not variables
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


@every_layer
def test_modules_compare_hash_and_pickle(name):
    layer = in_training(name)
    assert layer == in_training(name)
    assert hash(layer) == hash(in_training(name))
    assert layer != in_training(name).clone(use_running_average=True)
    again = pickle.loads(pickle.dumps(layer))
    assert again == layer
    one, other = (
        str(jax.make_jaxpr(module.init_with_output)(jax.random.key(0), random_array()))
        for module in (layer, again)
    )
    assert one == other


@every_layer
def test_checkpoint_round_trip(name):
    layer, x = in_training(name, **({"momentum": None} if name in RUNNING else {})), random_array()
    initial = jax.jit(layer.init)(jax.random.key(0), x)
    _, updates = jax.jit(partial(layer.apply, mutable=["batch_stats"]))(initial, x)
    trained = {**jax.tree.map(lambda leaf: np.asarray(leaf) + 0.25, initial), **updates}
    restored = serialization.from_bytes(initial, serialization.to_bytes(trained))
    jax.tree.map(np.testing.assert_array_equal, restored, trained)


# Values and gradients, with masks.

MASKS = {
    "every value": two_of_three(SHAPE),
    "examples": np.array([[[True]], [[False]], [[True]], [[True]]]),
    "positions": two_of_three((5, 1)),
    "channels": np.array([True, True, True, True, False, True]),
}


def gradients_of(layer):
    """A compiled function to output and gradients of the weighted sum of `counted` outputs."""

    def loss(x, scale, bias, mask, weights, counted):
        y = layer.apply({}, x, mask=mask, scale=scale, bias=bias)
        return jnp.where(counted, weights * y, 0).sum(), y

    @partial(jax.jit, compiler_options=OPTIMIZED)
    def run(x, scale, bias, mask, weights, counted):
        gradients, y = jax.grad(loss, (0, 1, 2), has_aux=True)(
            x, scale, bias, mask, weights, counted
        )
        return y, *gradients

    return run


def check_against(oracle, results, x, scale, bias, weights, counted):
    """Compares outputs and gradients where they count; weights are zero elsewhere."""
    y, *gradients = (np.asarray(result) for result in results)
    expected = oracle(x, scale=scale, bias=bias)
    np.testing.assert_allclose(y[counted], expected[counted], rtol=1e-5, atol=1e-5)
    weights = np.where(counted, weights, 0).astype(np.float64)
    numerical = oracles.numerical_gradient(
        lambda x: (weights * oracle(x, scale=scale, bias=bias)).sum(), x
    )
    limit = 1e-5 * np.abs(numerical).max()
    np.testing.assert_allclose(gradients[0][counted], numerical[counted], rtol=1e-4, atol=limit)
    to_scale = (weights * oracle(x)).sum((0, 1))
    np.testing.assert_allclose(gradients[1], to_scale, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(gradients[2], weights.sum((0, 1)), rtol=1e-5, atol=1e-5)


@every_normalization
def test_output_and_gradients_agree_with_the_oracle(name):
    x, weights = random_array(), random_array(seed=1)
    scale, bias = random_array((6,), seed=2), random_array((6,), seed=3)
    layer, oracle, everything = in_training(name), LAYERS[name][1], np.ones(SHAPE, bool)
    run = gradients_of(layer)
    for mask in (None, *(np.broadcast_to(mask, SHAPE) for mask in MASKS.values())):
        results = run(x, scale, bias, mask, weights, everything)
        check_against(partial(oracle, mask=mask), results, x, scale, bias, weights, everything)


@every_normalization
def test_masks_broadcast_as_numpy_has_it(name):
    x, layer = random_array(), in_training(name)
    affine = {"scale": np.ones(6, np.float32), "bias": np.zeros(6, np.float32)}
    for mask in MASKS.values():
        y = layer.apply({}, x, mask=mask, **affine)
        expected = layer.apply({}, x, mask=np.broadcast_to(mask, SHAPE), **affine)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="mask") as error:
        layer.apply({}, x, mask=np.ones((2, 5, 6), bool), **affine)
    assert "(2, 5, 6)" in str(error.value)
    assert str(SHAPE) in str(error.value)


@every_normalization
def test_masked_garbage_reaches_nothing_that_counts(name):
    """Neither outputs, nor gradients of a loss over the values that count, nor statistics."""
    mask = two_of_three(SHAPE)
    clean, weights = np.where(mask, random_array(), np.float32(0)), random_array(seed=1)
    affine = random_array((6,), seed=2), random_array((6,), seed=3)
    layer, oracle = in_training(name), partial(LAYERS[name][1], mask=mask)
    run = gradients_of(layer)
    for garbage in (0, -3e38, np.inf, np.nan):
        x = np.where(mask, clean, np.float32(garbage))
        results = run(x, *affine, mask, weights, mask)
        check_against(oracle, results, clean, *affine, weights, mask)


@every_normalization
def test_fully_masked_input_is_left_as_it_is(name):
    """Of no value at all, the mean is 0 and the variance 1."""
    layer, x, mask = in_training(name), random_array(), np.zeros((1, 1, 1), bool)
    variables = layer.init(jax.random.key(0), x)
    scale, bias = np.ones(6, np.float32), np.zeros(6, np.float32)
    y, *gradients = gradients_of(layer)(x, scale, bias, mask, x, True)
    np.testing.assert_allclose(y, x, rtol=1e-5)
    np.testing.assert_allclose(gradients[0], x, rtol=1e-5)
    for before in (variables, jax.tree.map(lambda leaf: leaf + 0.5, variables)):
        _, updates = layer.apply(before, x, mask=mask, mutable=["batch_stats"])
        for key, after in updates.items():
            jax.tree.map(np.testing.assert_array_equal, after, before[key])


# Numbers that float32 finds hard.


def hard_inputs():
    shape = (64, 8, 6)
    plain = random_array(shape, mean=1e4, deviation=1e-2)
    examples, first = np.ones((64, 8, 1), bool), np.ones(shape, bool)
    examples[:2], first[:2], first[:, :2], first[..., :2] = False, False, False, False
    return {
        "mean 1e4": (plain, None),
        "mean -1e4": (-plain, None),
        "first values zero and masked": (np.where(first, plain, 0), first),
        "first values huge and masked": (np.where(first, plain, np.float32(1e30)), first),
        "first examples zero and masked": (np.where(examples, plain, 0), examples),
        "first values zero": (np.where(first, plain, 0), None),
        "channels far apart": (plain * np.array([1, -1, 1e-4, 1e3, 0, 1], np.float32), None),
        "examples far apart": (plain * np.logspace(-3, 2, 64).reshape(64, 1, 1), None),
    }


@every_normalization
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_mean_with_small_deviation(name, dtype):
    """The oracle is given the same input, rounded to the layer's type."""
    layer = in_training(name)
    scale, bias = np.ones(6, np.float32), np.zeros(6, np.float32)
    run = jax.jit(
        lambda x, mask: layer.apply({}, x, mask=mask, scale=scale, bias=bias),
        compiler_options=OPTIMIZED,
    )
    for case, (x, mask) in hard_inputs().items():
        x, counts = jnp.asarray(x, dtype), np.broadcast_to(True if mask is None else mask, x.shape)
        y = run(x, mask)
        assert y.dtype == jnp.float32
        expected = LAYERS[name][1](x, mask=mask)
        np.testing.assert_allclose(
            np.asarray(y)[counts], expected[counts], rtol=1e-4, atol=1e-4, err_msg=case
        )


@every_normalization
def test_zero_variance_has_finite_gradients(name):
    layer = in_training(name)
    tangent, scale, bias = random_array(), np.ones(6, np.float32), np.full(6, 0.5, np.float32)

    def loss(x, scale, bias):
        y = layer.apply({}, x, scale=scale, bias=bias)
        return (y**2 * tangent).sum(), y

    gradient = jax.grad(loss, (0, 1, 2), has_aux=True)
    run = jax.jit(partial(jax.jvp, gradient))
    for mean in (0.0, 1.0, 1e4):
        x = np.full(SHAPE, mean, np.float32)
        tangents = tangent, tangent[0, 0], tangent[0, 1]
        (gradients, y), (curvature, _) = run((x, scale, bias), tangents)
        if name != "RMSNorm" or mean == 0:
            np.testing.assert_array_equal(y, np.full(SHAPE, 0.5))
        for leaf in jax.tree.leaves((gradients, curvature)):
            assert np.isfinite(leaf).all()


# Over a named axis, what is pooled are sums and counts.

POOLED = {
    "BatchNorm": oracles.batch_norm,
    "GhostBatchNorm": lambda x, mask: np.stack(
        [
            oracles.ghost_batch_norm(shard, ghost_batch_size=2, mask=shard_mask)
            for shard, shard_mask in zip(x, mask, strict=True)
        ]
    ),
    "LayerNorm": partial(oracles.layer_norm, reduction_axes=(0, -1)),
    "RMSNorm": partial(oracles.rms_norm, reduction_axes=(0, -1)),
    "GroupNorm": partial(oracles.group_norm, num_groups=2, reduction_axes=(0, 2, 3)),
    "InstanceNorm": partial(oracles.standardize, axes=(0, 2), epsilon=1e-6),
}


@every_normalization
def test_unequal_shards_give_the_pooled_answer(name):
    """Shards that count fully, in part and not at all; outputs and gradients across shards."""
    x, weights = random_array((3, 4, 2, 6), mean=5), random_array((3, 4, 2, 6), seed=1)
    mask = two_of_three(x.shape)
    mask[0], mask[2] = True, False
    variables = jax.jit(in_training(name).init)(jax.random.key(0), x[0])
    layer = in_training(name, axis_name="shards")

    def loss(x):
        y = jax.vmap(lambda x, m: layer.apply(variables, x, mask=m), axis_name="shards")(x, mask)
        return (weights * y).sum(), y

    gradient, y = jax.jit(jax.grad(loss, has_aux=True))(x)
    np.testing.assert_allclose(y, POOLED[name](x, mask=mask), rtol=1e-5, atol=1e-5)
    numerical = oracles.numerical_gradient(
        lambda x: (weights * POOLED[name](x, mask=mask)).sum(), x
    )
    np.testing.assert_allclose(gradient, numerical, rtol=1e-4, atol=1e-5 * np.abs(numerical).max())


# Scale and bias at the call.


@every_layer
@pytest.mark.parametrize("shape", [(6,), (1, 1, 6), (4, 1, 6), (4, 5, 6), (4, 1, 1), (1, 5, 1)])
def test_scale_and_bias_at_the_call(name, shape):
    x, scale, bias = random_array(), random_array(shape, seed=2), random_array(shape, seed=3)
    layer = in_training(name)
    variables = jax.eval_shape(partial(layer.init, scale=scale, bias=bias), jax.random.key(0), x)
    assert "params" not in variables
    y = layer.apply({}, x, scale=scale, bias=bias)
    expected = LAYERS[name][1](x, scale=scale, bias=bias)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@every_layer
@pytest.mark.parametrize("argument", ["scale", "bias"])
@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (5, 6), (4, 5), (4, 5, 5), (2, 1, 6), (1, 4, 5, 6)]
)
def test_scale_and_bias_of_other_shapes_are_errors(name, argument, shape):
    with pytest.raises(ValueError, match=argument) as error:
        in_training(name).init(
            jax.random.key(0), random_array(), **{argument: np.ones(shape, np.float32)}
        )
    assert str(SHAPE) in str(error.value)
    assert str(shape) in str(error.value)


@every_normalization
@pytest.mark.parametrize(
    ("x", "parameter", "dtype", "expected"),
    [
        ("float32", "float32", None, "float32"),
        ("bfloat16", "float32", None, "float32"),
        ("bfloat16", "bfloat16", None, "bfloat16"),
        ("float32", "bfloat16", None, "float32"),
        ("int32", "bfloat16", None, "bfloat16"),
        ("float32", "float32", "bfloat16", "bfloat16"),
        ("bfloat16", "bfloat16", "float32", "float32"),
    ],
)
def test_output_type_is_that_of_input_scale_and_bias_unless_given(
    name, x, parameter, dtype, expected
):
    layer = in_training(name, dtype=dtype and jnp.dtype(dtype))
    x = jax.ShapeDtypeStruct(SHAPE, x)
    parameter = jax.ShapeDtypeStruct((6,), parameter)
    y = jax.eval_shape(
        lambda x, p: layer.apply({}, x, scale=p, bias=p, mutable=["batch_stats"]), x, parameter
    )
    assert y[0].dtype == expected
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(y[1]))


@every_normalization
def test_scale_at_the_call_replaces_only_the_learned_scale(name):
    x, scale = random_array(), random_array((6,), seed=2)
    learned = {"scale": np.full(6, 9, np.float32), "bias": random_array((6,), seed=3)}
    layer, oracle = in_training(name), LAYERS[name][1]
    y = layer.apply({"params": {"bias": learned["bias"]}}, x, scale=scale)
    y_beside_both = layer.apply({"params": learned}, x, scale=scale)
    bias = None if name == "RMSNorm" else learned["bias"]
    np.testing.assert_allclose(y, oracle(x, scale=scale, bias=bias), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(y, y_beside_both)


@every_normalization
def test_scale_and_bias_at_the_call_need_no_learned_ones(name):
    fields = {"use_scale": False} | ({} if name == "RMSNorm" else {"use_bias": False})
    x, scale, bias = random_array(), random_array((6,), seed=2), random_array((6,), seed=3)
    y = in_training(name, **fields).apply({}, x, scale=scale, bias=bias)
    expected = LAYERS[name][1](x, scale=scale, bias=bias)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


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
