"""Layers for NNX under the transformations of NNX and of JAX, stored, copied and shown."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import normlab.nnx

FEATURES = 3


class Block(nnx.Module):
    """A model of one layer after another."""

    def __init__(self, rngs, norm=normlab.nnx.BatchNorm):
        self.linear = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.norm = norm(FEATURES, momentum=0.5, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.linear(x)))


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(1, 2, (4, FEATURES)).astype("float32")


@pytest.fixture
def model():
    return Block(nnx.Rngs(0))


def values(layer):
    return nnx.to_pure_dict(nnx.state(layer))


def assert_same(actual, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def both_norms(rngs):
    """The same model with the layer of Flax and with ours."""
    return Block(rngs(), nnx.BatchNorm), Block(rngs())


def test_train_and_eval_reach_the_layer(model, x):
    model.eval()
    assert model.norm.use_running_average is True
    before = values(model)
    nnx.jit(lambda model: model(x))(model)
    assert_same(values(model), before)
    model.train()
    assert model.norm.use_running_average is False
    nnx.jit(lambda model: model(x))(model)
    assert not np.allclose(model.norm.mean[...], before["norm"]["mean"])


def test_view_shares_variables_and_leaves_the_model_in_training(model, x):
    evaluation = nnx.view(model, use_running_average=True)
    assert (model.norm.use_running_average, evaluation.norm.use_running_average) == (False, True)
    assert evaluation.norm.mean is model.norm.mean
    assert "use_running_average" in nnx.view_info(model)


def test_evaluation_writes_nothing_so_that_closures_may_use_the_layer(model, x):
    model.eval()
    y = jax.jit(lambda x: model(x))(x)  # The model belongs to no trace.
    assert y.shape == x.shape
    model.train()
    with pytest.raises(Exception, match="different trace level"):
        jax.jit(lambda x: model(x))(x)


def test_gradients_take_statistics_for_constants(x):
    # Twice through the layer: the second call evaluates by what the first one kept.
    def loss(model, x):
        model(x)
        return jnp.mean(nnx.view(model, use_running_average=True)(x) ** 2)

    gradients = [nnx.jit(nnx.grad(loss))(model, x) for model in both_norms(lambda: nnx.Rngs(0))]
    assert_same(*(nnx.to_pure_dict(g) for g in gradients), rtol=1e-4, atol=1e-6)


def test_split_and_merge_in_a_functional_step(model, x):
    expected = nnx.clone(model)
    y = nnx.jit(lambda model: model(x))(expected)
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    assert stats["norm"].keys() == {"mean", "var"}

    @jax.jit
    def step(params, stats):
        merged = nnx.merge(graph, params, stats)
        return merged(x), nnx.state(merged, nnx.BatchStat)

    actual, stats = step(params, stats)
    np.testing.assert_allclose(actual, y, rtol=1e-6)
    nnx.update(model, stats)
    assert_same(values(model), values(expected), rtol=1e-6)


def test_second_call_does_not_trace_again(model, x):
    traces = []

    @nnx.jit
    def step(model, x):
        traces.append(1)
        return model(x)

    step(model, x)
    step(model, x)
    # Another layer with the same fields, given as closures, is the same program.
    norm = lambda n, **fields: normlab.nnx.BatchNorm(  # noqa: E731
        n, scale_init=nn.initializers.constant(1.0), **fields
    )
    step(Block(nnx.Rngs(1), norm), x)
    assert len(traces) == 1


def test_ensemble_under_vmap(x):
    @nnx.split_rngs(splits=2)
    @nnx.vmap(in_axes=(0, None), out_axes=0)
    def create(rngs, constructor):
        return constructor(rngs)

    @nnx.vmap(in_axes=(0, None), out_axes=0)
    def call(model, x):
        return model(x)

    models = create(nnx.Rngs(0), Block)
    assert models.norm.mean.shape == (2, FEATURES)
    assert not np.allclose(*models.linear.kernel[...])
    graph, state = nnx.split(models)
    alone = [nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], state)) for i in range(2)]
    y = nnx.jit(call)(models, x)
    for i, model in enumerate(alone):
        np.testing.assert_allclose(nnx.jit(lambda m: m(x))(model), y[i], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model.norm.mean[...], models.norm.mean[i], rtol=1e-5, atol=1e-6)


def test_statistics_pooled_over_a_named_axis(x):
    layer = normlab.nnx.BatchNorm(FEATURES, axis_name="devices", rngs=nnx.Rngs(0))
    whole = normlab.nnx.BatchNorm(FEATURES, rngs=nnx.Rngs(0))
    call = nnx.vmap(lambda layer, x: layer(x), in_axes=(None, 0), out_axes=0, axis_name="devices")
    # Pooled statistics are the same on all devices, hence may be written back to one layer.
    y = nnx.jit(call)(layer, x.reshape(2, 2, FEATURES))
    np.testing.assert_allclose(y.reshape(x.shape), nnx.jit(lambda m: m(x))(whole), atol=1e-6)
    assert_same(values(layer), values(whole), atol=1e-6)


def test_layers_under_scan_and_remat(x):
    depth = 3

    @nnx.split_rngs(splits=depth)
    @nnx.vmap
    def create(rngs):
        return Block(rngs)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def forward(x, block):
        return nnx.remat(lambda block, x: block(x))(block, x)

    blocks = create(nnx.Rngs(0))
    graph, state = nnx.split(create(nnx.Rngs(0)))

    def loss(blocks, x):
        return jnp.sum(forward(x, blocks) ** 2)

    gradients = nnx.jit(nnx.grad(loss))(blocks, x)
    one_by_one = [nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], state)) for i in range(depth)]

    @nnx.jit
    def unrolled(one_by_one, x):
        def loss(one_by_one):
            y = x
            for block in one_by_one:
                y = block(y)
            return jnp.sum(y**2)

        return nnx.grad(loss)(one_by_one)

    expected = unrolled(nnx.List(one_by_one), x)
    for i, block in enumerate(one_by_one):
        np.testing.assert_allclose(blocks.norm.mean[i], block.norm.mean[...], rtol=1e-4, atol=1e-5)
        assert_same(
            jax.tree.map(lambda a, i=i: a[i], nnx.to_pure_dict(gradients)),
            nnx.to_pure_dict(expected[i]),
            rtol=1e-3,
            atol=1e-5,
        )


@pytest.mark.parametrize("name", ["BatchNorm", "BatchRenorm", "GroupNorm"])
def test_abstract_construction(name):
    # flax#4734: nnx.BatchNorm failed under nnx.eval_shape.
    fields = {"num_groups": 3} if name == "GroupNorm" else {}

    def create():
        return getattr(normlab.nnx, name)(FEATURES, **fields, rngs=nnx.Rngs(0))

    abstract, concrete = nnx.eval_shape(create), create()
    assert nnx.graphdef(abstract) == nnx.graphdef(concrete)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(concrete), strict=True):
        assert isinstance(a, jax.ShapeDtypeStruct)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_checkpoint_round_trip(model, x):
    nnx.jit(lambda model: model(x))(model)
    stored = jax.tree.map(np.asarray, values(model))
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Block(nnx.Rngs(1))))
    nnx.replace_by_pure_dict(abstract, stored)
    restored = nnx.merge(graph, abstract)
    assert_same(values(restored), values(model))
    evaluate = nnx.jit(lambda model, x: model(x))
    restored.eval()
    model.eval()
    np.testing.assert_array_equal(evaluate(restored, x), evaluate(model, x))


def test_pickle_copy_and_representation(x):
    layer = normlab.nnx.GroupNorm(
        FEATURES, 3, scale_init=nn.initializers.constant(2.0), rngs=nnx.Rngs(0)
    )
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), nnx.clone(layer)):
        assert type(other) is normlab.nnx.GroupNorm
        assert nnx.graphdef(other) == nnx.graphdef(layer)
        assert_same(values(other), values(layer))
    assert pickle.loads(pickle.dumps(nnx.graphdef(layer))) == nnx.graphdef(layer)
    assert repr(layer).startswith("GroupNorm(")
    assert "num_groups=3" in repr(layer)


def test_lists_become_tuples_which_graphs_can_compare(x):
    layer = normlab.nnx.LayerNorm(FEATURES, reduction_axes=[-1], rngs=nnx.Rngs(0))
    assert layer.reduction_axes == (-1,)
    assert hash(nnx.graphdef(layer)) == hash(nnx.graphdef(nnx.clone(layer)))


def test_intermediates_are_captured(x):
    layer = normlab.nnx.PositionNorm(FEATURES)
    y, kept = nnx.capture(layer, nnx.Intermediate)(x)
    (mean,), (deviation,) = kept["mean"].get_value(), kept["deviation"].get_value()
    np.testing.assert_allclose(mean, x.mean(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(y * deviation + mean, x, rtol=1e-4, atol=1e-5)
    layer(x)
    assert not nnx.state(layer)


def test_layer_within_a_linen_model(x):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nnx.bridge.ToLinen(normlab.nnx.BatchNorm, args=(FEATURES,))(x)

    model = Model()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    y, updated = jax.jit(lambda v: model.apply(v, x, mutable=["batch_stats"]))(variables)
    np.testing.assert_allclose(np.mean(y, 0), np.zeros(FEATURES), atol=1e-6)
    (before,), (after,) = variables["batch_stats"].values(), updated["batch_stats"].values()
    assert not np.allclose(before["mean"], after["mean"])


def test_lowering_for_accelerators(model, x):
    graph, state = nnx.split(model)

    def step(state, x):
        merged = nnx.merge(graph, state)
        return merged(x), nnx.state(merged)

    exported = jax.export.export(jax.jit(step), platforms=["cuda", "tpu"])(state, x)
    assert exported.platforms == ("cuda", "tpu")
