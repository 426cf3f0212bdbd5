"""Gradient descent on layers whose weights are normalized."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

LEARNING_RATE = 0.1


def random_array(shape, seed=0, mean=0.5, deviation=1.0):
    values = np.random.default_rng(seed).normal(mean, deviation, shape)
    return values.astype(np.float32)


def shaped(layer, *args, seed=0, **mode):
    """Variables away from their initial values, so that all of them matter; never compiled."""
    shapes = jax.eval_shape(partial(layer.init, **mode), jax.random.key(0), *args)
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: generator.normal(0.5, 1, leaf.shape).astype(leaf.dtype), shapes
    )


def descent(apply, loss=lambda y: jnp.sum(jnp.tanh(y))):
    """One step of gradient descent, from variables and a batch to variables and an output."""

    def step(variables, x):
        def objective(params):
            y, state = apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return loss(y), (y, state)

        gradients, (y, state) = jax.grad(objective, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, variables["params"], gradients)
        return {**variables, **state, "params": params}, y

    return step


def assert_trees_close(ours, expected, rtol=1e-4, atol=1e-5):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == other.dtype
        np.testing.assert_allclose(leaf, other, rtol=rtol, atol=atol)
