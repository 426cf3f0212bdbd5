"""Test-time training by entropy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from surgery.models import DIGITS, initial, mlp

import normlab
from normlab import surgery

X = DIGITS[:32]


def test_steps_lower_the_entropy_and_change_scale_bias_and_statistics_alone():
    model = mlp()
    variables = initial(model, train=True, trained=True)
    step = jax.jit(partial(surgery.tent, model, optimizer=optax.adam(3e-2)))
    adapted = step(variables, X)
    first = adapted.entropy
    for _ in range(19):
        adapted = step(adapted.variables, X, optimizer_state=adapted.optimizer_state)
    assert adapted.entropy < 0.8 * first
    for name, value in adapted.variables["params"].items():
        changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), value, variables["params"][name])
        assert set(jax.tree.leaves(changed)) == {name.startswith("norm")}
    by_batch = surgery.adapt(model, adapted.variables, X, prior_strength=0)
    new, kept = by_batch["batch_stats"]["norm_0"], adapted.variables["batch_stats"]["norm_0"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), new, kept)


def test_a_step_is_the_optimizers_step_along_the_gradient_through_batch_statistics():
    model = mlp()
    variables = initial(model, train=True, trained=True)

    def entropy_of(params):
        logits, _ = model.apply(
            {**variables, "params": params}, X, train=True, mutable=["batch_stats"]
        )
        return surgery.mean_entropy(logits)

    adapted = jax.jit(partial(surgery.tent, model, optimizer=optax.sgd(0.1)))(variables, X)
    gradients = jax.jit(jax.grad(entropy_of))(variables["params"])
    for norm in ("norm_0", "norm_1"):
        for name, before in variables["params"][norm].items():
            expected = before - 0.1 * gradients[norm][name]
            after = adapted.variables["params"][norm][name]
            np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6)
    logits, _ = model.apply(variables, X, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(adapted.outputs, logits, rtol=1e-4, atol=1e-4)


def test_layers_without_running_statistics_are_adapted_too():
    model = mlp(normlab.LayerNorm)
    step = jax.jit(partial(surgery.tent, model, optimizer=optax.sgd(0.1)))
    adapted = step(initial(model, train=True), X)
    assert np.any(adapted.variables["params"]["norm_0"]["scale"] != 1)


def test_the_mean_entropy_is_that_of_the_examples_that_count():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    expected = scipy.stats.entropy(jax.nn.softmax(logits), axis=-1)
    np.testing.assert_allclose(surgery.mean_entropy(logits), expected.mean(), rtol=1e-5)
    mask = np.array([True, False, True, True, False])
    masked = jnp.where(mask[:, None], logits, jnp.nan)
    value, gradient = jax.jit(jax.value_and_grad(surgery.mean_entropy))(masked, mask)
    np.testing.assert_allclose(value, expected[mask].mean(), rtol=1e-5)
    assert np.all(np.isfinite(gradient[mask]))
    assert surgery.mean_entropy(logits, jnp.zeros(5, bool)) == 0
    impossible = logits.at[:, 0].set(-jnp.inf)
    expected = scipy.stats.entropy(jax.nn.softmax(logits[:, 1:]), axis=-1).mean()
    np.testing.assert_allclose(surgery.mean_entropy(impossible), expected, rtol=1e-5)


def test_a_model_with_nothing_to_adapt_is_refused():
    model = mlp(normlab.Identity)
    with pytest.raises(ValueError, match=r"learns a scale or a bias.*norm_0 \(Identity\)"):
        surgery.tent(model, initial(model, train=True), X, optax.sgd(0.1))
