"""Keeping computations apart: nothing in numbers, and what it is for in compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normlab as nl
from normlab.functional import moments, normalize
from normlab.functional.apart import apart
from normlab.functional.terms import term


def random(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def test_it_changes_no_number_and_no_derivative():
    x, small = random((256, 256)), random((1, 256), 1)
    small = small.at[0, 0].set(jnp.nan).at[0, 1].set(jnp.inf)

    def separate(x, small):
        return apart(3, (x, small), x)

    for function in (separate, jax.jit(separate), jax.vmap(separate, (0, None))):
        for given, got in zip((x, small), function(x, small), strict=True):
            np.testing.assert_array_equal(jnp.broadcast_to(given, got.shape), got)
    tangents = random((256, 256), 2), random((1, 256), 3)
    got = jax.jit(lambda p, t: jax.jvp(separate, p, t)[1])((x, small), tangents)
    for expected, it in zip(tangents, got, strict=True):
        np.testing.assert_array_equal(expected, it)


def test_on_other_platforms_it_is_not_there():
    layer, x = nl.LayerNorm(), random((256, 256))
    variables = layer.init(jax.random.key(0), x)

    def loss(x):
        return (layer.apply(variables, x) ** 3).sum()

    traced = jax.jit(jax.grad(loss)).trace(x)
    count = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("barrier")
        for platform in ("cpu", "tpu", "cuda")
    }
    assert count["cpu"] > 1
    assert count["tpu"] == count["cuda"] == 1  # about the number that large values are taken times


def test_a_term_is_linear_and_keeps_nothing_of_its_factors():
    x, tangent = random((256, 256)), random((256, 256), 1)

    def product(tangent, x):
        return term(1, lambda t, x: t * jnp.tanh(jnp.exp(x)), x, tangent, x)

    _, backward = jax.vjp(lambda t: product(t, x), tangent)
    np.testing.assert_allclose(backward(tangent)[0], product(tangent, x), rtol=1e-6)
    kept = [leaf for leaf in jax.tree.leaves(backward) if getattr(leaf, "size", 0) > 1]
    assert len(kept) == 1
    np.testing.assert_array_equal(kept[0], x)


def plain(x, scale, bias):
    """The formula without any rule."""
    mean = x.mean(0, keepdims=True)
    variance = ((x - mean) ** 2).mean(0, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 0.1) * scale + bias


def ruled(x, scale, bias):
    m = moments(x, (0,))
    return normalize(
        x, m.shift, m.variance, residual=m.residual, epsilon=0.1, scale=scale, bias=bias
    )


@pytest.mark.parametrize("shape", [(1, 3), (5, 1), (5, 3)], ids=str)
def test_second_derivatives_are_those_of_the_plain_formula(shape):
    """Rules that look at stored numbers must not lose what these depend on."""
    x, weights = random((5, 3)), random((5, 3), 1)
    scale, bias = random(shape, 2), random(shape, 3)

    def curvature(function):
        def loss(*arguments):
            return (weights * jnp.sin(function(*arguments))).sum()

        forward = jax.hessian(loss, (0, 1, 2))
        reverse = jax.jacrev(jax.jacrev(loss, (0, 1, 2)), (0, 1, 2))
        return jax.jit(lambda *a: (forward(*a), reverse(*a)))(x, scale, bias)

    expected, got = (jax.tree.leaves(curvature(it)) for it in (plain, ruled))
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


def test_second_derivatives_of_half_precision_are_there():
    """A tangent that travels with a conversion must not leave the stored numbers constant."""
    x = random((6, 4), dtype=jnp.bfloat16)

    def loss(x, apply):
        return (apply(x).astype(jnp.float32) ** 3).sum()

    def layer(x):
        return nl.LayerNorm(use_scale=False, use_bias=False).apply({}, x)

    def formula(x):
        x = x.astype(jnp.float32)
        variance = x.var(-1, keepdims=True)
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(variance + 1e-6)

    direction = random((6, 4), 1, jnp.bfloat16)

    def curvature(apply):
        gradient = jax.grad(lambda x: loss(x, apply))
        along = jax.jit(lambda x: jax.jvp(gradient, (x,), (direction,))[1])(x)
        return np.asarray(along, np.float32)

    expected, got = curvature(formula), curvature(layer)
    np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("layer", [nl.BatchNorm, nl.LayerNorm, nl.RMSNorm])
def test_large_arrays_agree_with_float64(layer):
    """The contract suite draws small arrays, which are not taken apart."""
    x, dy = 1e4 + 0.05 * random((512, 256)), random((512, 256), 1)
    scale = random((256,), 2)
    axis = 0 if layer is nl.BatchNorm else 1
    fields = {"use_running_average": False, "epsilon": 1e-5}
    layer = layer(**fields) if layer is nl.RMSNorm else layer(**fields, use_bias=False)

    @jax.jit
    def both(x, scale, dy):
        y, backward = jax.vjp(lambda x, s: layer.apply({"params": {"scale": s}}, x), x, scale)
        return y, *backward(dy)

    wide, gradient, factor = (np.asarray(a, np.float64) for a in (x, dy, scale))
    mean = 0 if isinstance(layer, nl.RMSNorm) else wide.mean(axis, keepdims=True)
    deviation = np.sqrt(((wide - mean) ** 2).mean(axis, keepdims=True) + 1e-5)
    s, g = (wide - mean) / deviation, gradient * factor
    dx = g - s * (g * s).mean(axis, keepdims=True)
    if not isinstance(layer, nl.RMSNorm):
        dx -= g.mean(axis, keepdims=True)
    expected = s * factor, dx / deviation, (gradient * s).sum(0)
    for one, got in zip(expected, both(x, scale, dy), strict=True):
        np.testing.assert_allclose(got, one, atol=3e-5 * np.abs(one).max())


@pytest.mark.parametrize("layer", [nl.BatchNorm, nl.LayerNorm, nl.RMSNorm])
def test_half_precision_is_never_written_out_in_single(layer):
    """XLA for CPU wrote the conversion, and the difference to the mean, out at full size.

    From JAX 0.11 on it also wrote each term of dx, where these were kept apart before their sum.
    """
    x = random((512, 256), dtype=jnp.bfloat16)
    layer = layer(use_running_average=False, dtype=jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)["params"]

    @jax.jit
    def both(params, x, dy):
        y, backward = jax.vjp(lambda p, x: layer.apply({"params": p}, x), params, x)
        return y, backward(dy)

    memory = both.lower(params, x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < x.size * 4 / 2
