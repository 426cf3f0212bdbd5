"""Networks, step and evaluation as one writes them with Flax alone: what normlab is compared with.

The networks are those of `configs/`, layer by layer, with Flax's own convolutions and norms. Where
they take a dtype, all but parameters, statistics and loss is computed in it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

he_normal = nn.initializers.he_normal()


class CNN(nn.Module):
    """The network of `configs/keras_cnn.yaml`."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        glorot_uniform = nn.initializers.glorot_uniform()
        conv = partial(nn.Conv, padding="VALID", kernel_init=glorot_uniform, dtype=self.dtype)
        norm = partial(nn.BatchNorm, not train, momentum=0.99, epsilon=1e-3, dtype=self.dtype)
        for channels in (32, 64):
            x = norm()(nn.relu(conv(channels, (3, 3))(x)))
        x = nn.Dense(10, kernel_init=glorot_uniform, dtype=self.dtype)(x.reshape(len(x), -1))
        return x.astype(jnp.float32)


class ResNet8(nn.Module):
    """The network of `configs/cifar10_resnet8.yaml`; its convolutions can be given."""

    convolution: Callable[..., Any] = jax.lax.conv_general_dilated
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        conv = partial(
            nn.Conv,
            kernel_size=(3, 3),
            use_bias=False,
            kernel_init=he_normal,
            conv_general_dilated=self.convolution,
            dtype=self.dtype,
        )
        norm = partial(nn.BatchNorm, not train, momentum=0.9, dtype=self.dtype)
        x = nn.relu(norm()(conv(16)(x)))
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            y = nn.relu(norm()(conv(width, strides=stride)(x)))
            y = norm()(conv(width)(y))
            shortcut = x[:, ::stride, ::stride]
            added = ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1]))
            x = nn.relu(y + jnp.pad(shortcut, added))
        return nn.Dense(10, dtype=self.dtype)(jnp.mean(x, axis=(1, 2))).astype(jnp.float32)


class GhostBatchNorm(nn.Module):
    """Batch normalization by groups of 16 examples of (examples, channels), as one writes it."""

    use_running_average: bool

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if self.use_running_average:
            return (x - mean.value) * jax.lax.rsqrt(var.value + 1e-5) * scale + bias
        groups = x.reshape(-1, min(16, len(x)), channels)
        means = groups.mean(axis=1, keepdims=True)
        variances = groups.var(axis=1, keepdims=True)
        if not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * means.mean(axis=(0, 1))
            var.value = 0.9 * var.value + 0.1 * variances.mean(axis=(0, 1))
        return ((groups - means) * jax.lax.rsqrt(variances + 1e-5)).reshape(x.shape) * scale + bias


class MLP(nn.Module):
    """The network of `configs/quickstart.yaml`, with the norm of one of its arms."""

    arm: str

    @nn.compact
    def __call__(self, x, *, train):
        norms = {
            "none": lambda: lambda x: x,
            "batch": partial(nn.BatchNorm, not train, momentum=0.9),
            "ghost16": partial(GhostBatchNorm, not train),
            "layer": nn.LayerNorm,
            "rms": nn.RMSNorm,
            "group": partial(nn.GroupNorm, 8),
        }
        x = x.reshape(len(x), -1)
        for width in (128, 128):
            x = nn.relu(norms[self.arm]()(nn.Dense(width, kernel_init=he_normal)(x)))
        return nn.Dense(10)(x)


class TrainState(train_state.TrainState):
    batch_stats: Any


def initialize(
    model: nn.Module, transformation: optax.GradientTransformation, key: Any, images: Any
) -> TrainState:
    variables = model.init(key, images[:1], train=True)
    return TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        tx=transformation,
    )


def step(
    state: TrainState, images: Any, labels: Any, batch: Any
) -> tuple[TrainState, tuple[Any, Any]]:
    """One step on the examples of a batch of indices; also returns mean loss and accuracy."""

    def loss_of(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = state.apply_fn(
            variables, images[batch], train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
        accuracy = jnp.mean(logits.argmax(axis=-1) == labels[batch])
        return losses.mean(), (accuracy, updated.get("batch_stats", {}))

    (loss, (accuracy, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
        state.params
    )
    return state.apply_gradients(grads=gradients, batch_stats=batch_stats), (loss, accuracy)


def evaluate(state: TrainState, images: Any, labels: Any) -> tuple[Any, Any]:
    """Mean loss and accuracy on all the images."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, images, train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), jnp.mean(logits.argmax(axis=-1) == labels)
