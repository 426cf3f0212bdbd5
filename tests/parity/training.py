"""Layers of any library as one thing: a function with parameters and state, trained in steps."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import normlab as nl
from normlab.variants import VARIANTS

LEARNING_RATE = 0.1


def random_array(shape, seed=0, mean=0.5):
    return np.random.default_rng(seed).normal(mean, 1.5, shape).astype(np.float32)


def batches_for(fields):
    """Some batches, of which some examples and some channels are as small as root epsilon."""
    least = np.log10(fields["epsilon"]) / 2
    sizes = np.logspace(0, least, 6).reshape(6, 1, 1, 1) * np.logspace(0, least, 4)
    return random_array((4, 6, 3, 5, 4)) * sizes.astype(np.float32)


class Trained:
    """A layer written in JAX.

    `apply(params, state, x, training)` returns output and new state. Params are `scale` and
    `bias`; `statistics(state)` finds the running ones.
    """

    def __init__(self, apply, params, state=None, statistics=lambda state: {}):
        self.apply, self.params, self.state, self.statistics = apply, params, state, statistics
        self.gradient = jax.jit(jax.grad(self._loss, (0, 1), has_aux=True))

    def _loss(self, params, x, weights, state):
        y, state = self.apply(params, state, x, training=True)
        return (weights * y).sum(), (y, state)

    def step(self, x, weights) -> dict[str, Any]:
        """Trains on a batch; returns everything that another library must agree on."""
        (slopes, to_x), (y, self.state) = self.gradient(self.params, x, weights, self.state)
        self.params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, self.params, slopes)
        return {"y": y, "to x": to_x, **self.params, **self.statistics(self.state)}

    def evaluate(self, x):
        return self.apply(self.params, self.state, x, training=False)[0]


def start(names, shape):
    """Scale and bias to start with, those of the names that there are."""
    values = {"scale": random_array(shape, 1), "bias": random_array(shape, 2)}
    return {name: jnp.asarray(values[name]) for name in names}


def ours(layer, x, learned=()):
    """A layer in training on batches like `x`.

    `learned` are the parameters that the layer is to be given at the call for want of its own.
    """
    initialize = jax.jit(partial(layer.init, use_running_average=False))
    variables = initialize(jax.random.key(0), x)
    own = variables.get("params", {})
    shape = next(iter(own.values())).shape if own else x.shape[-1:]

    def apply(params, state, x, training):
        variables = {"params": {key: params[key] for key in own}, "batch_stats": state}
        y, updates = layer.apply(
            variables,
            x,
            use_running_average=not training,
            mutable=["batch_stats"],
            **{key: params[key] for key in learned},
        )
        return y, updates.get("batch_stats", state)

    return Trained(
        apply,
        start([*own, *learned], shape),
        variables.get("batch_stats", {}),
        lambda state: {key: state[key] for key in ("mean", "var") if key in state},
    )


def weight_normalized(library, params):
    """A dense layer of 4 outputs with normalized weights; params kernel, scale and bias."""
    layer = nl.WeightNorm(nn.Dense(4), **nl.convention(library, "weight_norm"))

    def apply(params, state, x, training):
        del training
        dense = {name: params[name] for name in ("kernel", "bias")}
        inside = {"layer_instance": dense, "layer_instance/kernel/scale": params["scale"]}
        return layer.apply({"params": inside}, x), state

    return Trained(apply, params, {})


def spectrally_normalized(library, kernel, bias, x):
    """The output of a dense layer after many calls with `update_stats`, the weights being fixed."""
    layer = nl.SpectralNorm(nn.Dense(4), **nl.convention(library, "spectral_norm"))
    train = jax.jit(partial(layer.apply, update_stats=True, mutable=["batch_stats"]))
    state = layer.init(jax.random.key(0), x, update_stats=False)["batch_stats"]
    params = {"layer_instance": {"kernel": kernel, "bias": bias}}
    for _ in range(50):
        y, updates = train({"params": params, "batch_stats": state}, x)
        state = updates["batch_stats"]
    return y


def with_convention(library, name, changes):
    """Returns a layer with the fields of a convention, and batches that show what they do."""
    fields = nl.convention(library, name) | changes
    return VARIANTS[name].layer(**fields), batches_for(fields)


def assert_close(ours, theirs, message=""):
    scale = max(1, np.abs(np.asarray(theirs)).max())
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * scale, err_msg=message)


def assert_same_training(ours, theirs, batches):
    """Compares outputs, gradients, parameters and statistics of each step, then an evaluation."""
    weights = random_array(batches[0].shape, 3)
    with jax.numpy_rank_promotion("allow"):  # Other libraries broadcast as they like.
        for number, x in enumerate(batches, 1):
            expected = theirs.step(x, weights)
            found = ours.step(x, weights)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert_close(found[name], value, f"{name} of step {number}")
        if ours.state:
            assert_close(ours.evaluate(x), theirs.evaluate(x), "evaluation")
