"""What surgery does to NNX models: the numbers it does to Linen ones, and what is left alone."""

import copy
import pickle
import threading

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax import nnx
from leaks import checking_leaks
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


def test_frozen_layers_stay_frozen_in_every_mode():
    """train() and eval() undid it, and so did a model that tells its layers."""
    model = Model(nnx.BatchNorm)
    surgery.nnx.recalibrate(model, [X])
    model.eval()
    compiled = nnx.jit(lambda model, x: model(x))
    # Compiled, the last bits are others than step by step.
    expected, expected_compiled = model(X), compiled(model, X)
    surgery.nnx.freeze(model)
    surgery.nnx.freeze(model)
    for mode in (
        lambda: model.train(),
        lambda: model.eval(),
        lambda: model.set_attributes(use_running_average=False),
    ):
        mode()
        model.set_attributes(deterministic=True)
        before = np.asarray(model.blocks[0].norm.mean[...])
        for copied in (model, nnx.clone(model), copy.deepcopy(model), pickled(model)):
            np.testing.assert_allclose(copied(X), expected, rtol=1e-6)
            told = copied.blocks[0].norm(X, use_running_average=False)
            np.testing.assert_array_equal(told, copied.blocks[0].norm(X, use_running_average=True))
            np.testing.assert_array_equal(copied.blocks[0].norm.mean[...], before)
        np.testing.assert_allclose(compiled(model, X), expected_compiled, rtol=1e-6)
    assert surgery.nnx.summary(model).layers[0].kind == "BatchNorm"
    assert isinstance(model.blocks[0].norm, nnx.BatchNorm)
    surgery.nnx.adapt(model, X + 1, prior_strength=0)
    assert np.all(model.blocks[0].norm.mean[...] != before)
    surgery.nnx.unfreeze(model)
    model.train()
    model(X)
    assert type(model.blocks[0].norm) is nnx.BatchNorm
    assert np.all(model.blocks[0].norm.mean[...] != before)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


class Told(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm = normlab.nnx.BatchNorm(4, rngs=rngs)
        self.noise = nnx.Rngs(noise=1)

    def __call__(self, x, train):
        return self.norm(x, use_running_average=not train)

    def noisy(self, x, train):
        return self(x + jax.random.normal(self.noise.noise(), x.shape), train)


@pytest.mark.parametrize("method", ["__call__", "noisy", Told.noisy])
def test_every_function_calls_the_model_in_every_way(method):
    """Models that draw, are told to evaluate or are called by another method were not reached."""
    model = Told()
    expected = moments(X)[0] if method == "__call__" else None
    labels = jnp.zeros(30, jnp.int32)
    surgery.nnx.recalibrate(model, [(X, labels)], method=method, layer_by_layer=True)
    if expected is not None:
        np.testing.assert_allclose(model.norm.mean[...], expected, rtol=1e-5)
    surgery.nnx.adapt(model, (X, labels), prior_strength=1, method=method)
    (layer,) = surgery.nnx.summary(model, (X, labels), method=method).layers
    assert layer.input_shape == (30, 4)
    with pytest.raises(ValueError, match="draws from its own"):
        surgery.nnx.adapt(model, X, prior_strength=1, rngs=jax.random.key(0))


def test_no_class_is_patched_and_threads_do_not_meet():
    """The method of the class was replaced meanwhile, also for other models and threads."""
    model, other = Model(), Model()
    calls = (nnx.BatchNorm.__call__, normlab.nnx.Layer.__call__)
    seen = []

    def call(model, batch):
        seen.append((nnx.BatchNorm.__call__, normlab.nnx.Layer.__call__) == calls)
        other.blocks[0].norm(X)
        return model(batch)

    surgery.nnx.adapt(model, X, prior_strength=1, call=call)
    assert seen == [True]
    given = [X + seed for seed in range(4)]
    models = [Model() for _ in given]
    expected = [Model() for _ in given]
    for one, x in zip(expected, given, strict=True):
        surgery.nnx.recalibrate(one, [x, x], layer_by_layer=True)
    barrier = threading.Barrier(len(given))

    def work(index):
        barrier.wait()
        surgery.nnx.recalibrate(models[index], [given[index]] * 2, layer_by_layer=True)
        surgery.nnx.summary(models[index], given[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, wanted in zip(models, expected, strict=True):
        for block, other_block in zip(one.blocks, wanted.blocks, strict=True):
            np.testing.assert_allclose(
                block.norm.mean[...], other_block.norm.mean[...], rtol=1e-4, atol=1e-5
            )


def test_no_tracer_is_leaked():
    with checking_leaks():
        model = Model()
        surgery.nnx.recalibrate(model, [X])
        nnx.jit(lambda model, x: surgery.nnx.adapt(model, x, prior_strength=10))(model, X)
        surgery.nnx.summary(model, X)
        surgery.nnx.freeze(model)
        nnx.jit(lambda model, x: model(x))(model, X)


def test_the_summary_of_a_batch_says_what_was_called_and_whether_statistics_are_far_from_it():
    model = Model()
    surgery.nnx.recalibrate(model, [X], layer_by_layer=True)
    near = surgery.nnx.summary(model, X)
    assert [layer.path for layer in near.layers] == ["blocks/0/norm", "blocks/1/norm"]
    assert near.layers[0].input_shape == (30, 4)
    assert near.compared == 30
    assert not near.layers[0].warnings
    assert not hasattr(model.blocks[0].norm, "population")
    far = surgery.nnx.summary(model, X * 3).layers[0]
    assert "running variances far from the batch's" in "; ".join(far.warnings)


WRONG = {
    "broadcasts": ("mean", np.zeros(1, np.float32), r"shape \(1,\).*needs \(4,\)"),
    "negative": ("var", -np.ones(4, np.float32), "is negative"),
    "half": ("var", np.ones(4, np.float16), "float16"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_running_statistics_that_are_none_of_the_layer_are_refused(kind):
    statistic, value, message = WRONG[kind]
    model = Model()
    getattr(model.blocks[1].norm, statistic).set_value(jnp.asarray(value))
    with pytest.raises(ValueError, match=f"blocks/1/norm: .*{message}"):
        surgery.nnx.adapt(model, X, prior_strength=1)


def test_mistakes_are_named():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="Model is a class"):
            surgery.nnx.find_layers(Model)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    with pytest.raises(ValueError, match="there is nothing to freeze"):
        surgery.nnx.freeze(Model(normlab.nnx.LayerNorm))
    with pytest.raises(ValueError, match=r"the batch has the shape \(0, 4\)"):
        surgery.nnx.recalibrate(Model(), [X[:0]])
    with pytest.raises(ValueError, match="no normalization layer of the model keeps running"):
        surgery.nnx.recalibrate(Model(normlab.nnx.LayerNorm), [X])
    with pytest.raises(ValueError, match="prior_strength=-1"):
        surgery.nnx.adapt(Model(), X, prior_strength=-1)
    with pytest.raises(ValueError, match="statistics of blocks/0/norm are not finite"):
        surgery.nnx.recalibrate(Model(), [X * jnp.nan])
