"""The conventions of TensorFlow 1 beside its rules, replayed in float64.

It cannot be installed any more. The rules are those of `tf.layers.batch_normalization` of 1.15, and
of its `contrib` for the layers without statistics.
"""

import jax
import numpy as np
import oracles
import pytest
from parity.training import (
    LEARNING_RATE,
    assert_close,
    assert_same_training,
    ours,
    random_array,
    start,
    with_convention,
)

import normlab as nl


class Replayed:
    """A layer written down as formulas, with its gradients, trained on batches (N, H, W, C)."""

    state = True  # There are statistics to be evaluated with.

    def __init__(self, channels):
        values = start(("scale", "bias"), (channels,))
        self.scale, self.bias = (np.asarray(value, np.float64) for value in values.values())
        self.mean, self.var = np.zeros(channels), np.ones(channels)

    def standardized(self, x):
        """Returns the standardized input and a function that takes a gradient back through it."""
        raise NotImplementedError

    def statistics(self):
        return {"mean": self.mean, "var": self.var}

    def step(self, x, weights):
        x, weights = x.astype(np.float64), weights.astype(np.float64)
        z, back = self.standardized(x)
        y, to_x = z * self.scale + self.bias, back(weights * self.scale)
        self.scale = self.scale - LEARNING_RATE * (weights * z).sum((0, 1, 2))
        self.bias = self.bias - LEARNING_RATE * weights.sum((0, 1, 2))
        return {"y": y, "to x": to_x, "scale": self.scale, "bias": self.bias} | self.statistics()

    def evaluate(self, x):
        return (x - self.mean) / np.sqrt(self.var + 1e-3) * self.scale + self.bias


def standardize(x, axes, epsilon):
    def back(gradient):
        return oracles.standardize_gradient(x, gradient, axes, epsilon=epsilon)

    return oracles.standardize(x, axes, epsilon=epsilon), back


class Batch(Replayed):
    """Moving averages keep 0.99; the fused kernel hands out an unbiased variance."""

    def __init__(self, channels, fused):
        super().__init__(channels)
        self.fused = fused

    def standardized(self, x):
        values = x[..., 0].size
        correction = values / (values - 1) if self.fused else 1
        self.mean = 0.99 * self.mean + 0.01 * x.mean((0, 1, 2))
        self.var = 0.99 * self.var + 0.01 * correction * x.var((0, 1, 2))
        return standardize(x, (0, 1, 2), 1e-3)


class VirtualBatches(Replayed):
    """The batch axis becomes (virtual batch, groups); the first is reduced, moments averaged."""

    def standardized(self, x):
        virtual = x.reshape(3, 2, *x.shape[1:])
        z, back = standardize(virtual, (0, 2, 3), 1e-3)
        self.mean = 0.99 * self.mean + 0.01 * virtual.mean((0, 2, 3)).mean(0)
        self.var = 0.99 * self.var + 0.01 * virtual.var((0, 2, 3)).mean(0)
        return z.reshape(x.shape), lambda g: back(g.reshape(virtual.shape)).reshape(x.shape)


class Renorm(Replayed):
    """A moving mean and a moving deviation, both corrected to before they move."""

    def __init__(self, channels):
        super().__init__(channels)
        self.deviation = np.ones(channels)

    def standardized(self, x):
        mean, deviation = x.mean((0, 1, 2)), np.sqrt(x.var((0, 1, 2)) + 1e-3)
        z, back = standardize(x, (0, 1, 2), 1e-3)
        r, d = deviation / self.deviation, (mean - self.mean) / self.deviation
        self.mean = 0.99 * self.mean + 0.01 * mean
        self.deviation = 0.99 * self.deviation + 0.01 * deviation
        self.var = np.maximum(self.deviation**2 - 1e-3, 0)
        return z * r + d, lambda gradient: back(gradient * r)


class Stateless(Replayed):
    """Standardized over axes of an input whose channels may be cut into groups before."""

    state = None

    def __init__(self, channels, axes, epsilon, groups=1):
        super().__init__(channels)
        self.axes, self.epsilon, self.groups = axes, epsilon, groups

    def statistics(self):
        return {}

    def standardized(self, x):
        shape = (*x.shape[:-1], self.groups, x.shape[-1] // self.groups)
        z, back = standardize(x.reshape(shape), self.axes, self.epsilon)
        return z.reshape(x.shape), lambda g: back(g.reshape(shape)).reshape(x.shape)


# Registered name, the rules, changes to the convention.
CASES = {
    "batch, fused": ("batch_norm", lambda: Batch(4, fused=True), {}),
    "batch, not fused": (
        "batch_norm",
        lambda: Batch(4, fused=False),
        {"running_variance": "biased"},
    ),
    "virtual batches": (
        "ghost_batch_norm",
        lambda: VirtualBatches(4),
        {"ghost_batch_size": 3},
    ),
    "renorm": ("batch_renorm", lambda: Renorm(4), {}),
    "layer": ("layer_norm", lambda: Stateless(4, -1, 1e-12), {}),
    "layer over all but the first axis": (
        "layer_norm",
        lambda: Stateless(4, (1, 2, 3, 4), 1e-12),
        {"reduction_axes": (1, 2, 3)},
    ),
    "group": ("group_norm", lambda: Stateless(4, (1, 2, 4), 1e-6, groups=2), {"num_groups": 2}),
    "instance": ("instance_norm", lambda: Stateless(4, (1, 2, 4), 1e-6, groups=4), {}),
}


@pytest.mark.parametrize(("name", "make", "changes"), CASES.values(), ids=CASES)
def test_training(name, make, changes):
    layer, batches = with_convention("tf1", name, changes)
    assert_same_training(ours(layer, batches[0]), make(), batches)


def test_local_response_norm():
    """Window of 5 to each side, alpha not divided by its size, square root."""
    x, weights = random_array((3, 16)), random_array((3, 16), 1)

    def rule(x):
        windows = [x[:, max(0, i - 5) : i + 6] for i in range(16)]
        energy = np.stack([(window**2).sum(1) for window in windows], 1)
        return x / np.sqrt(1 + energy)

    layer = nl.LocalResponseNorm(**nl.convention("tf1", "local_response_norm"))
    y, back = jax.vjp(lambda x: layer.apply({}, x), x)
    assert_close(y, rule(x.astype(np.float64)))
    slopes = oracles.numerical_gradient(lambda x: (weights * rule(x)).sum(), x)
    assert_close(back(weights)[0], slopes)


def test_virtual_batches_have_to_divide_the_batch():
    layer = nl.GhostBatchNorm(False, ghost_batch_size=4, **nl.convention("tf1", "ghost_batch_norm"))
    x = random_array((6, 4))
    with pytest.raises(ValueError, match="ghost_batch_size=4"):
        layer.apply(layer.init(jax.random.key(0), x), x)
