"""Conditional normalization: scale and bias from a vector, for every layer."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from weight_training import LEARNING_RATE, descent, random_array, shaped

import normlab as nl

SHAPE, WIDTH = (4, 3, 2, 6), 5

# Each layer beside its oracle.
LAYERS = {
    "BatchNorm": (nl.BatchNorm, oracles.batch_norm),
    "LayerNorm": (nl.LayerNorm, oracles.layer_norm),
    "RMSNorm": (nl.RMSNorm, oracles.rms_norm),
    "GroupNorm": (partial(nl.GroupNorm, 2), partial(oracles.group_norm, num_groups=2)),
    "InstanceNorm": (nl.InstanceNorm, oracles.instance_norm),
    "Identity": (nl.Identity, lambda x, **arguments: oracles.identity(x, **arguments)),
}


def predicted(params, condition, rank):
    """Scale, bias and what else the Dense layer predicts, in the rank of the input."""
    dense = {name: oracles.as_double(leaf) for name, leaf in params["modulation"].items()}
    values = oracles.as_double(condition) @ dense["kernel"] + dense["bias"]
    values = values.reshape(*condition.shape[:-1], *(1,) * (rank - condition.ndim), -1)
    offset, *others = np.split(values, values.shape[-1] // SHAPE[-1], axis=-1)
    return 1 + offset, *others


@pytest.mark.parametrize("name", LAYERS)
def test_scale_and_bias_are_those_of_the_condition(name):
    constructor, oracle = LAYERS[name]
    layer = nl.ConditionalNorm(constructor, gate=True, use_running_average=False)
    x, condition = random_array(SHAPE), random_array((4, WIDTH), seed=1)
    mask = np.indices(SHAPE).sum(0) % 3 != 0
    variables = shaped(layer, x, condition)
    assert set(variables["params"]) == {"modulation"}
    apply = jax.jit(partial(layer.apply, mutable=["batch_stats"]))
    (y, gate), _ = apply(variables, x, condition, mask=mask)
    scale, bias, expected_gate = predicted(variables["params"], condition, 4)
    expected = oracle(x, mask=mask, scale=scale, bias=bias)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    assert gate.shape == (4, 1, 1, 6)
    np.testing.assert_allclose(gate, expected_gate, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_it_starts_as_the_plain_norm_with_the_gate_closed(name):
    constructor, oracle = LAYERS[name]
    layer = nl.ConditionalNorm(constructor, gate=True, use_running_average=False)
    x, condition = random_array(SHAPE), random_array((4, WIDTH), seed=1)
    (y, gate), _ = jax.jit(layer.init_with_output)(jax.random.key(0), x, condition)
    np.testing.assert_allclose(y, oracle(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(gate, 0)


def test_conditional_batch_norm_trains_as_its_oracle_and_evaluates_by_running_statistics():
    layer, momentum = nl.ConditionalNorm(partial(nl.BatchNorm, momentum=0.5)), 0.5
    batches, conditions = random_array((4, 5, 6)), random_array((4, 5, WIDTH), seed=1)
    weights = random_array((5, 6), seed=2)
    variables = layer.init(jax.random.key(0), batches[0], conditions[0], False)
    assert set(variables["params"]) == {"modulation"}

    def apply(variables, x, **mutable):
        return layer.apply(variables, *x, use_running_average=False, **mutable)

    step = jax.jit(descent(apply, lambda y: jnp.sum(weights * jnp.tanh(y))))
    params = jax.tree.map(oracles.as_double, variables["params"]["modulation"])
    mean, variance = np.zeros(6), np.ones(6)

    def output(params, x, condition):
        scale, bias = predicted({"modulation": params}, condition, 2)
        return oracles.batch_norm(x, scale=scale, bias=bias)

    for x, condition in zip(batches, conditions, strict=True):
        variables, y = step(variables, (x, condition))
        np.testing.assert_allclose(y, output(params, x, condition), rtol=1e-4, atol=1e-4)

        def loss(name, leaf, params=params, x=x, condition=condition):
            return np.sum(weights * np.tanh(output({**params, name: leaf}, x, condition)))

        gradients = {
            name: oracles.numerical_gradient(partial(loss, name), leaf)
            for name, leaf in params.items()
        }
        params = {name: leaf - LEARNING_RATE * gradients[name] for name, leaf in params.items()}
        for name, leaf in params.items():
            ours = variables["params"]["modulation"][name]
            np.testing.assert_allclose(ours, leaf, rtol=1e-4, atol=1e-5)
        batch = oracles.moments(x, 0)
        mean = momentum * mean + (1 - momentum) * batch.mean[0]
        variance = momentum * variance + (1 - momentum) * batch.variance[0]
        state = variables["batch_stats"]["norm"]
        np.testing.assert_allclose(state["mean"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state["var"], variance, rtol=1e-5, atol=1e-6)

    x, condition = batches[0], conditions[1]
    y = jax.jit(partial(layer.apply, use_running_average=True))(variables, x, condition)
    scale, bias = predicted({"modulation": params}, condition, 2)
    expected = (x - mean[None]) / np.sqrt(variance + 1e-5)[None] * scale + bias
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


class Block(nn.Module):
    """Part of a diffusion transformer: adaLN-Zero around a Dense layer."""

    @nn.compact
    def __call__(self, x, condition):
        y, gate = nl.ConditionalNorm(nl.LayerNorm, gate=True)(x, nn.silu(condition))
        return x + gate * nn.Dense(x.shape[-1])(y)


def test_block_with_a_gate_starts_as_the_identity_and_learns():
    model, x = Block(), random_array((3, 4, 6))
    condition, target = random_array((3, WIDTH), seed=1), 2 * x

    def loss(y):
        return jnp.mean(jnp.square(y - target))

    y, variables = jax.jit(model.init_with_output)(jax.random.key(0), x, condition)
    np.testing.assert_array_equal(y, x)
    step = jax.jit(
        descent(lambda v, x, mutable: model.apply(v, x, condition, mutable=mutable), loss)
    )
    losses = []
    for _ in range(30):
        variables, y = step(variables, x)
        losses.append(loss(y))
    assert losses[-1] < 0.9 * losses[0]
    assert np.all(np.diff(losses) < 0)


def test_instance_norm_with_the_moments_of_a_style_is_adaptive_instance_norm():
    """AdaIN: the output has the mean and the deviation of the style, channel by channel."""
    content, style = random_array((2, 5, 4, 3)), random_array((2, 3, 6, 3), seed=1, deviation=4)
    epsilon = 1e-5

    @jax.jit
    def adain(content, style):
        mean = style.mean((1, 2), keepdims=True)
        deviation = jnp.sqrt(style.var((1, 2), keepdims=True) + epsilon)
        return nl.InstanceNorm(epsilon=epsilon).apply({}, content, scale=deviation, bias=mean)

    y = oracles.as_double(adain(content, style))
    of_content, of_style = (oracles.moments(z, (1, 2)) for z in (content, style))
    expected = (content - of_content.mean) / np.sqrt(of_content.variance + epsilon)
    expected = expected * np.sqrt(of_style.variance + epsilon) + of_style.mean
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y.mean((1, 2)), style.mean((1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(y.std((1, 2)), style.std((1, 2)), rtol=1e-3)


@pytest.mark.parametrize("leading", [(), (4,), (4, 3), (4, 3, 2)])
def test_condition_may_vary_along_the_first_axes(leading):
    layer = nl.ConditionalNorm(nl.RMSNorm)
    x, condition = random_array(SHAPE), random_array((*leading, WIDTH), seed=1)
    variables = shaped(layer, x, condition)
    scale, bias = predicted(variables["params"], condition, 4)
    np.testing.assert_allclose(
        jax.jit(layer.apply)(variables, x, condition),
        oracles.rms_norm(x, scale=scale, bias=bias),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("shape", [(), (3, WIDTH), (1, WIDTH), (4, 3, 2, 6, WIDTH)])
def test_condition_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=r"does not fit the input of shape \(4, 3, 2, 6\)"):
        nl.ConditionalNorm().init(jax.random.key(0), np.ones(SHAPE), np.ones(shape))


def test_dtypes_are_those_of_input_and_prediction():
    x, condition = jnp.ones((2, 6), jnp.bfloat16), jnp.ones((2, WIDTH), jnp.bfloat16)
    for dtype, expected in ((None, jnp.float32), (jnp.bfloat16, jnp.bfloat16)):
        layer = nl.ConditionalNorm(dtype=dtype)
        y, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), x, condition)
        assert y.dtype == expected
        assert variables["params"]["modulation"]["kernel"].dtype == jnp.float32


def test_vmap_over_conditions_is_a_batch_of_them():
    """One image in many styles, under remat, gradients included."""
    layer = nl.ConditionalNorm(nl.LayerNorm)
    x, conditions = random_array(SHAPE), random_array((3, 4, WIDTH), seed=1)
    variables = shaped(layer, x, conditions[0])

    def gradient(condition):
        apply = jax.checkpoint(partial(layer.apply, variables, x))
        return jax.grad(lambda c: jnp.sum(jnp.sin(apply(c))))(condition)

    together = jax.jit(jax.vmap(gradient))(conditions)
    alone = jax.jit(gradient)
    for index, condition in enumerate(conditions):
        np.testing.assert_allclose(together[index], alone(condition), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [nl.LayerNorm(), nn.LayerNorm, nn.Dense])
def test_what_is_no_layer_of_normlab_is_refused(norm):
    norm = partial(norm, 3) if norm is nn.Dense else norm
    with pytest.raises(ValueError, match=r"(?s)ConditionalNorm: norm=.*layer of normlab"):
        nl.ConditionalNorm(norm).init(jax.random.key(0), np.ones((2, 4)), np.ones((2, 3)))


def test_features_on_another_axis_than_the_prediction_are_refused():
    """The prediction for the last axis was broadcast over positions."""
    x, condition = np.ones((2, 8, 8), np.float32), np.ones((2, 3), np.float32)
    for norm in (
        partial(nl.BatchNorm, False, axis=1),
        partial(nl.GroupNorm, 2, feature_axes=1),
    ):
        with pytest.raises(ValueError, match=r"features on axis 1 .* expected them on the last"):
            nl.ConditionalNorm(norm).init(jax.random.key(0), x, condition)
