"""The layers beside those of PyTorch and Keras: several steps of training, then evaluation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normlab as nl

pytestmark = pytest.mark.parity

LEARNING_RATE = 0.1


def random_array(shape, seed=0, mean=0.5):
    return np.random.default_rng(seed).normal(mean, 1.5, shape).astype(np.float32)


def assert_all_close(ours, theirs):
    for leaf, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-5 * scale)


class Ours:
    """A layer of normlab that is trained by gradient descent."""

    def __init__(self, layer, x, scale, bias):
        self.layer = layer
        shapes = layer.init(jax.random.key(0), x)
        learned = {"scale": scale, "bias": bias}
        params = {name: jnp.asarray(learned[name]) for name in shapes.get("params", {})}
        self.variables = {**shapes, "params": params}
        self.gradient = jax.jit(jax.grad(self._loss, (0, 1), has_aux=True))

    def _loss(self, params, x, weights, statistics):
        variables = {"params": params, "batch_stats": statistics}
        y, updates = self.layer.apply(variables, x, mutable=["batch_stats"])
        return (weights * y).sum(), (y, updates)

    def step(self, x, weights):
        statistics = self.variables.get("batch_stats", {})
        gradients, (y, updates) = self.gradient(self.variables["params"], x, weights, statistics)
        params = jax.tree.map(
            lambda p, g: p - LEARNING_RATE * g, self.variables["params"], gradients[0]
        )
        self.variables = {**self.variables, **updates, "params": params}
        return y, gradients[1], params.get("scale"), params.get("bias")

    def statistics(self):
        kept = self.variables["batch_stats"]
        return kept["mean"], kept["var"]

    def evaluate(self, x):
        return self.layer.clone(use_running_average=True).apply(self.variables, x)


# PyTorch has the channels at axis 1.

TORCH = {
    "batch": (
        nl.BatchNorm(False, 1, 0.9, running_variance="unbiased"),
        lambda nn: nn.BatchNorm2d(3, momentum=0.1),
    ),
    "batch, slow": (
        nl.BatchNorm(False, 1, 0.99, 1e-3, running_variance="unbiased"),
        lambda nn: nn.BatchNorm2d(3, momentum=0.01, eps=1e-3),
    ),
    "batch, cumulative": (
        nl.BatchNorm(False, 1, None, running_variance="unbiased"),
        lambda nn: nn.BatchNorm2d(3, momentum=None),
    ),
    "batch, no affine": (
        nl.BatchNorm(False, 1, 0.9, running_variance="unbiased", use_scale=False, use_bias=False),
        lambda nn: nn.BatchNorm2d(3, affine=False),
    ),
    "layer": (nl.LayerNorm(1e-5), lambda nn: nn.LayerNorm(5)),
    "layer over three axes": (
        nl.LayerNorm(1e-5, reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3)),
        lambda nn: nn.LayerNorm((3, 4, 5)),
    ),
    "root mean square": (nl.RMSNorm(1e-6), lambda nn: nn.RMSNorm(5, eps=1e-6)),
    "instance": (
        nl.InstanceNorm(1e-5, feature_axes=1),
        lambda nn: nn.InstanceNorm2d(3, affine=True),
    ),
}


@pytest.mark.parametrize(("layer", "make"), TORCH.values(), ids=TORCH)
def test_pytorch(layer, make):
    torch = pytest.importorskip("torch", reason="PyTorch comes with the extra `parity`")
    theirs, batches = make(torch.nn), random_array((4, 6, 3, 4, 5))
    learned = dict(theirs.named_parameters())
    shape = tuple(next(iter(learned.values())).shape) if learned else (3,)
    start = {"weight": random_array(shape, 1), "bias": random_array(shape, 2)}
    ours, weights = Ours(layer, batches[0], *start.values()), random_array((6, 3, 4, 5), 3)
    with torch.no_grad():
        for name, parameter in learned.items():
            parameter.copy_(torch.from_numpy(start[name]))
    for batch in batches:
        x = torch.tensor(batch, requires_grad=True)
        y = theirs(x)
        theirs.zero_grad()
        (torch.from_numpy(weights) * y).sum().backward()
        with torch.no_grad():
            for parameter in learned.values():
                parameter -= LEARNING_RATE * parameter.grad
        expected = [y.detach(), x.grad, *(parameter.detach() for parameter in learned.values())]
        assert_all_close(ours.step(batch, weights), [leaf.numpy() for leaf in expected])
        if isinstance(layer, nl.BatchNorm):
            kept = theirs.running_mean.numpy(), theirs.running_var.numpy()
            assert_all_close(ours.statistics(), kept)
    theirs.eval()
    with torch.no_grad():
        assert_all_close(ours.evaluate(batch[:1]), theirs(torch.from_numpy(batch[:1])).numpy())


def test_pytorch_group_norm():
    """The channels are moved to the end, where Flax expects them."""
    torch = pytest.importorskip("torch", reason="PyTorch comes with the extra `parity`")
    theirs, batch = torch.nn.GroupNorm(2, 6), random_array((4, 6, 3, 5))
    scale, bias = random_array((6,), 1), random_array((6,), 2)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(scale))
        theirs.bias.copy_(torch.from_numpy(bias))
    weights, last = random_array(batch.shape, 3), partial(np.moveaxis, source=1, destination=-1)
    ours = Ours(nl.GroupNorm(2, epsilon=1e-5), last(batch), scale, bias)
    x = torch.tensor(batch, requires_grad=True)
    y = theirs(x)
    (torch.from_numpy(weights) * y).sum().backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter -= LEARNING_RATE * parameter.grad
    learned = [parameter.detach().numpy() for parameter in theirs.parameters()]
    expected = last(y.detach().numpy()), last(x.grad.numpy()), *learned
    assert_all_close(ours.step(last(batch), last(weights)), expected)


KERAS = {
    "batch": (nl.BatchNorm(False, epsilon=1e-3), lambda k: k.BatchNormalization()),
    "batch, fast": (
        nl.BatchNorm(False, momentum=0.5, epsilon=1e-5),
        lambda k: k.BatchNormalization(momentum=0.5, epsilon=1e-5),
    ),
    "batch at axis 1": (
        nl.BatchNorm(False, 1, epsilon=1e-3),
        lambda k: k.BatchNormalization(axis=1),
    ),
    "batch, no scale": (
        nl.BatchNorm(False, epsilon=1e-3, use_scale=False),
        lambda k: k.BatchNormalization(scale=False),
    ),
    "layer": (nl.LayerNorm(1e-3), lambda k: k.LayerNormalization()),
    "layer over two axes": (
        nl.LayerNorm(1e-3, reduction_axes=(2, 3), feature_axes=(2, 3)),
        lambda k: k.LayerNormalization(axis=(2, 3)),
    ),
    "group": (nl.GroupNorm(2, epsilon=1e-3), lambda k: k.GroupNormalization(groups=2)),
    "instance": (nl.InstanceNorm(1e-3), lambda k: k.GroupNormalization(groups=-1)),
    "root mean square": (nl.RMSNorm(1e-6), lambda k: k.RMSNormalization(epsilon=1e-6)),
}


@pytest.mark.parametrize(("layer", "make"), KERAS.values(), ids=KERAS)
def test_keras(layer, make):
    keras = pytest.importorskip("keras", reason="Keras comes with the extra `parity`")
    theirs, batches = make(keras.layers), random_array((4, 6, 3, 5, 4))
    with jax.numpy_rank_promotion("allow"):
        theirs.build(batches[0].shape)
    names = {"gamma": "scale", "scale": "scale", "beta": "bias"}
    learned = {names[v.name]: v for v in theirs.trainable_variables}
    shape = next(iter(learned.values())).shape
    start = {"scale": random_array(shape, 1), "bias": random_array(shape, 2)}
    for name, variable in learned.items():
        variable.assign(start[name])
    ours, weights = Ours(layer, batches[0], **start), random_array((6, 3, 5, 4), 3)

    @jax.jit
    def gradient(params, x, kept):
        def loss(params, x):
            training = {"training": True} if kept else {}
            y, updates = theirs.stateless_call(params, kept, x, **training)
            return (weights * y).sum(), (y, updates)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    params = [jnp.asarray(variable.value) for variable in learned.values()]
    kept = [jnp.asarray(variable.value) for variable in theirs.non_trainable_variables]
    with jax.numpy_rank_promotion("allow"):
        for batch in batches:
            gradients, (y, kept) = gradient(params, batch, kept)
            params = [p - LEARNING_RATE * g for p, g in zip(params, gradients[0], strict=True)]
            assert_all_close(ours.step(batch, weights), [y, gradients[1], *params])
            if isinstance(layer, nl.BatchNorm):
                assert_all_close(ours.statistics(), kept[:2])
        y, _ = theirs.stateless_call(params, kept, batch)
    assert_all_close(ours.evaluate(batch), y)


def test_keras_masked_batch_norm():
    """Time steps that a mask leaves out do not enter the statistics."""
    keras = pytest.importorskip("keras", reason="Keras comes with the extra `parity`")
    theirs, batches = keras.layers.BatchNormalization(), random_array((3, 6, 5, 4), mean=2)
    mask = np.arange(5) < np.array([5, 3, 1, 4, 2, 5])[:, None]
    layer = nl.BatchNorm(False, epsilon=1e-3)
    variables = layer.init(jax.random.key(0), batches[0])
    for x in batches:
        with jax.numpy_rank_promotion("allow"):
            expected = theirs(x, training=True, mask=mask)
        y, updates = layer.apply(variables, x, mask=mask[..., None], mutable=["batch_stats"])
        variables |= updates
        assert_all_close(y, expected)
        kept = theirs.moving_mean.numpy(), theirs.moving_variance.numpy()
        assert_all_close((updates["batch_stats"]["mean"], updates["batch_stats"]["var"]), kept)
