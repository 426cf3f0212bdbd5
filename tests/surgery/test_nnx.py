"""What surgery does to NNX models: the numbers it does to Linen ones, and what is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from surgery.models import moments

import normlab
from normlab import surgery

X = jnp.asarray(np.random.default_rng(0).normal(1, 2, (30, 4)), jnp.float32)


class Block(nnx.Module):
    def __init__(self, norm, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = norm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(nnx.relu(self.norm(self.linear(x))))


class Compiled(Block):
    @nnx.jit
    def __call__(self, x):
        return super().__call__(x)


class Model(nnx.Module):
    def __init__(self, norm=normlab.nnx.BatchNorm, block=Block):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([block(norm, rngs) for _ in range(2)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def assert_self_consistent(model, x):
    model.eval()
    for block in model.blocks:
        mean, var = moments(block.linear(x))
        np.testing.assert_allclose(block.norm.var[...], var, rtol=1e-5)
        if hasattr(block.norm, "mean"):
            np.testing.assert_allclose(block.norm.mean[...], mean, rtol=1e-5, atol=1e-5)
        x = block(x)


@pytest.mark.parametrize(
    ("norm", "block"),
    [
        (normlab.nnx.BatchNorm, Block),
        (nnx.BatchNorm, Block),
        (normlab.nnx.EvoNormB0, Block),
        (normlab.nnx.BatchNorm, Compiled),
    ],
    ids=["normlab", "flax", "no mean", "compiled"],
)
def test_layer_by_layer_evaluation_sees_the_very_statistics_it_normalizes_by(norm, block):
    model = Model(norm, block)
    nnx.jit(lambda model: model.eval())(model)
    surgery.nnx.recalibrate(model, [X[:20], X[20:]], layer_by_layer=True)
    assert_self_consistent(model, X)
    assert not hasattr(model.blocks[0].norm, "population")


def test_masked_examples_are_left_out_and_batches_are_counted():
    def norm(features, rngs):
        return normlab.nnx.BatchNorm(features, momentum=None, rngs=rngs)

    model = Model(norm)
    padded = jnp.concatenate([X[20:], jnp.full((10, 4), jnp.nan)])
    masks = [np.ones(20, bool), np.arange(20) < 10]
    surgery.nnx.recalibrate(model, [X[:20], padded], masks=masks, layer_by_layer=True)
    assert_self_consistent(model, X)
    assert model.blocks[0].norm.count[...] == 2


def test_adapt_blends_and_leaves_the_model_in_its_mode():
    model = Model()
    trained = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
    model.train()
    nnx.jit(lambda model, x: surgery.nnx.adapt(model, x, prior_strength=10))(model, X)
    assert model.blocks[0].norm.use_running_average is False
    mean, var = moments(model.blocks[0].linear(X))
    before = trained["blocks"][0]["norm"]
    expected = 0.25 * before["mean"][...] + 0.75 * mean
    np.testing.assert_allclose(model.blocks[0].norm.mean[...], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.blocks[0].norm.var[...], 0.25 + 0.75 * var, rtol=1e-5)
    surgery.nnx.adapt(model, X, prior_strength=0)
    assert_self_consistent(model, X)


def test_frozen_statistics_stay_in_training():
    model = Model()
    surgery.nnx.recalibrate(model, [X])
    model.train()
    surgery.nnx.freeze(model)
    before = np.asarray(model.blocks[0].norm.mean[...])
    model(X)
    np.testing.assert_array_equal(model.blocks[0].norm.mean[...], before)


@pytest.mark.parametrize("affine", [True, False])
def test_the_filter_names_what_is_trained(affine):
    model = Model()
    trained = surgery.nnx.trainable_filter(model, affine=affine, rest=not affine)
    names = {path[2] for path, _ in nnx.to_flat_state(nnx.state(model, trained))}
    assert names == ({"norm"} if affine else {"linear"})
    nnx.Optimizer(model, optax.sgd(1.0), wrt=trained)


def test_the_summary_has_a_row_for_each_layer():
    model = Model(nnx.BatchNorm)
    first, _ = surgery.nnx.summary(model).layers
    assert (first.path, first.kind) == ("blocks/0/norm", "BatchNorm")
    assert first.parameters == {"scale": 4, "bias": 4}
    assert first.warnings == ("statistics never updated",)
    surgery.nnx.recalibrate(model, [X])
    assert surgery.nnx.summary(model).layers[0].warnings == ()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no normalization layer of the model keeps running"):
        surgery.nnx.recalibrate(Model(normlab.nnx.LayerNorm), [X])
    with pytest.raises(ValueError, match="prior_strength=-1"):
        surgery.nnx.adapt(Model(), X, prior_strength=-1)
    with pytest.raises(ValueError, match="statistics of blocks/0/norm are not finite"):
        surgery.nnx.recalibrate(Model(), [X * jnp.nan])
