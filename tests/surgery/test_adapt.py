"""Adaptation of the statistics to test data, against its formula in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from surgery.models import DIGITS, OneLayer, initial, mlp, moments

import normlab
from normlab import surgery

X = DIGITS[:24] + 0.5


@pytest.fixture(scope="module")
def trained():
    model = mlp()
    return model, initial(model, train=True, trained=True)


def adapted_by(model, variables, x, **options):
    """The result, compiled, which is much faster than step by step."""
    return jax.jit(partial(surgery.adapt, model, **options))(variables, x)


def blend(trained, batch, prior_strength, examples):
    share = examples / (prior_strength + examples)
    return (1 - share) * np.asarray(trained, np.float64) + share * batch


def test_each_layer_is_blended_under_the_blended_statistics_of_those_before(trained):
    model, variables = trained
    adapted = adapted_by(model, variables, X, prior_strength=16)
    x = np.asarray(X, np.float64).reshape(24, -1)
    for i in (0, 1):
        params = jax.tree.map(partial(np.asarray, dtype=np.float64), variables["params"])
        x = x @ params[f"dense_{i}"]["kernel"]
        mean, var = moments(x)
        kept, new = variables["batch_stats"][f"norm_{i}"], adapted["batch_stats"][f"norm_{i}"]
        mean, var = blend(kept["mean"], mean, 16, 24), blend(kept["var"], var, 16, 24)
        np.testing.assert_allclose(new["mean"], mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(new["var"], var, rtol=1e-5)
        x = (x - mean) / np.sqrt(var + 1e-5)
        x = np.maximum(x * params[f"norm_{i}"]["scale"] + params[f"norm_{i}"]["bias"], 0)
    jax.tree.map(np.testing.assert_array_equal, adapted["params"], variables["params"])


def test_an_infinite_prior_changes_nothing_and_none_leaves_only_the_batch(trained):
    model, variables = trained
    kept = adapted_by(model, variables, X, prior_strength=float("inf"))
    jax.tree.map(np.testing.assert_array_equal, kept, variables)
    batch = adapted_by(model, variables, X, prior_strength=0)["batch_stats"]["norm_0"]
    x = np.asarray(X, np.float64).reshape(24, -1)
    mean, var = moments(x @ np.asarray(variables["params"]["dense_0"]["kernel"], np.float64))
    np.testing.assert_allclose(batch["mean"], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batch["var"], var, rtol=1e-5)


def test_masked_examples_neither_enter_nor_count(trained):
    model, variables = trained
    padded = jnp.concatenate([X, jnp.full_like(X[:8], jnp.nan)])
    adapt = jax.jit(partial(surgery.adapt, model, prior_strength=5))
    adapted = adapt(variables, padded, mask=jnp.arange(32) < 24)
    expected = adapted_by(model, variables, X, prior_strength=5)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        adapted["batch_stats"],
        expected["batch_stats"],
    )


@pytest.mark.parametrize("prior_strength", [0.0, 3.0])
def test_a_batch_of_nothing_or_of_something_non_finite_leaves_the_statistics(prior_strength):
    model = OneLayer(normlab.BatchNorm())
    x = jnp.ones((4, 3))
    variables = initial(model, x, train=True, trained=True)
    adapt = jax.jit(partial(surgery.adapt, model, prior_strength=prior_strength))
    for adapted in (adapt(variables, x * jnp.nan), adapt(variables, x, mask=jnp.zeros(4, bool))):
        jax.tree.map(np.testing.assert_array_equal, adapted, variables)


def test_layers_without_a_mean_are_adapted_too():
    model = OneLayer(normlab.EvoNormB0())
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 3)), jnp.float32)
    adapted = adapted_by(model, initial(model, x, train=True), x, prior_strength=0)
    np.testing.assert_allclose(adapted["batch_stats"]["norm"]["var"], moments(x)[1], rtol=1e-5)


def test_mistakes_are_named(trained):
    model, variables = trained
    with pytest.raises(ValueError, match="prior_strength=-1 is the number of examples"):
        surgery.adapt(model, variables, X, prior_strength=-1)
    with pytest.raises(ValueError, match="norm_0 has no running statistics"):
        surgery.adapt(model, {"params": variables["params"]}, X, prior_strength=1)
