"""Small trained-like models on the digits of scikit-learn, for the tests of surgery."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from sklearn.datasets import load_digits

import normlab
from normlab.models import CNN, MLP

DIGITS = jnp.asarray(load_digits().images[:200, :, :, None] / 16, jnp.float32)
BATCHES = [DIGITS[:80], DIGITS[80:160], DIGITS[160:]]  # The last one is smaller.
HALVES = [DIGITS[:100], DIGITS[100:]]  # Of one size, and so compiled once.


def mlp(norm=normlab.BatchNorm, **fields):
    return MLP(hidden=(5, 5), classes=3, norm=norm, **fields)


def cnn(norm=normlab.BatchNorm, **fields):
    return CNN(channels=(4, 4), classes=3, norm=norm, strides=(2, 1), **fields)


def initial(model, x=DIGITS[:2], *, seed=0, trained=False, **call):
    """Variables of a model: drawn kernels, and the usual initial values of all else.

    Nothing is compiled, which is what most of `model.init` would be. With `trained=True` scales,
    biases and running statistics are drawn as well.
    """
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(
        functools.partial(model.init, **call), jax.random.key(0), jnp.asarray(x)
    )

    def drawn(path, leaf):
        name, shape = path[-1].key if hasattr(path[-1], "key") else "kernel", leaf.shape
        if name == "kernel":
            value = draw.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        elif trained and name in ("scale", "var"):
            value = draw.uniform(0.3, 3, shape)
        elif trained and name in ("bias", "mean"):
            value = draw.normal(0, 0.5, shape)
        else:
            value = np.full(shape, name not in ("bias", "mean", "count"))
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


class OneLayer(nn.Module):
    """A model that is one normalization layer."""

    norm: nn.Module

    @nn.compact
    def __call__(self, x, train, mask=None):
        return self.norm(x, use_running_average=not train, mask=mask)


def inputs_of_layers(model, variables, x, **call):
    """The inputs of all batch normalization layers in evaluation, in float64, by name."""
    seen = {}

    def record(proceed, args, kwargs, context):
        if isinstance(context.module, normlab.BatchNorm) and context.method_name == "__call__":
            seen["/".join(context.module.path)] = np.asarray(args[0], np.float64)
        return proceed(*args, **kwargs)

    with nn.intercept_methods(record):
        model.apply(variables, x, **(call or {"train": False}))
    return seen


def moments(x, axes=None):
    """Mean and biased variance over all axes but the last, in float64."""
    x = np.asarray(x, np.float64)
    axes = tuple(range(x.ndim - 1)) if axes is None else axes
    return x.mean(axes), x.var(axes)


ghost = functools.partial(normlab.GhostBatchNorm, ghost_batch_size=64)
