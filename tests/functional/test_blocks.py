"""Sums in blocks: the numbers of a plain sum and of its derivatives, and nothing written out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normlab as nl
from normlab.functional.blocks import blocks

# Which axis is cut depends on the shape: the first one, the second one, or none that divides well.
SHAPES = [(2, 48, 32, 32), (2, 3, 64, 1024), (3, 37, 32, 32), (2, 5, 60_000, 1)]

CUT = r"\[4,4,16,64,32\]\S* bitcast\("


def random(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_sum_in_blocks_is_the_sum_and_spreading_is_its_transpose(shape):
    x, small = random(shape), random((shape[0], 1, 1, shape[3]), 1)
    cut = blocks(x, (1, 2))
    assert cut.axis == {48: 1, 3: 2, 37: 1, 5: 2}[shape[1]]
    total = jax.jit(lambda x: cut.sum(cut.view(x)))(x)
    np.testing.assert_allclose(
        total, np.asarray(x, np.float64).sum((1, 2), keepdims=True), rtol=1e-5, atol=1e-3
    )

    def spread(small):
        return cut.whole(cut.spread(small, cut.view(x)), x)

    np.testing.assert_array_equal(jax.jit(spread)(small), jnp.broadcast_to(small, shape))
    (transposed,) = jax.linear_transpose(spread, small)(x)
    np.testing.assert_allclose(transposed, total, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 16, 32, 32), (1, 2)),  # small enough
        ((1, 64, 32, 32), (1, 2)),  # nothing before the axes
        ((64, 32, 32, 32), (0, 1, 2)),
        ((8, 64, 32, 32), (1, 3)),  # not side by side
        ((8, 64, 4096), (2,)),
        ((8, 64, 65536), (1,)),  # a single row is too much already
        ((2, 16009, 64), (1,)),  # 7 times a prime: the blocks would be many
        ((0, 64, 32, 32), (1, 2)),
    ],
)
def test_the_rest_is_left_whole(shape, axes):
    assert blocks(jnp.zeros(shape), axes).axis is None


def reference(x, scale, bias, groups, epsilon=1e-6):
    """The formula in float64, from which NumPy derives nothing; so dx is written out as well."""
    shape = x.shape
    grouped = x.reshape(shape[0], -1, groups, shape[-1] // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    deviation = np.sqrt(grouped.var((1, 3), keepdims=True) + epsilon)
    standard = ((grouped - mean) / deviation).reshape(shape)

    def backward(dy):
        g = (dy * scale).reshape(grouped.shape)
        s = standard.reshape(grouped.shape)
        dx = g - g.mean((1, 3), keepdims=True) - s * (g * s).mean((1, 3), keepdims=True)
        positions = tuple(range(x.ndim - 1))
        return (dx / deviation).reshape(shape), (dy * standard).sum(positions), dy.sum(positions)

    return standard * scale + bias, backward


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("groups", ["each", 8])
def test_layers_agree_with_float64_at_a_large_mean(shape, groups):
    layer = nl.InstanceNorm() if groups == "each" else nl.GroupNorm(groups)
    x, dy = 1e4 + 0.05 * random(shape), random(shape, 1)
    scale, bias = random(shape[-1:], 2), random(shape[-1:], 3)

    @jax.jit
    def both(x, scale, bias, dy):
        def forward(x, scale, bias):
            return layer.apply({"params": {"scale": scale, "bias": bias}}, x)

        y, backward = jax.vjp(forward, x, scale, bias)
        return y, backward(dy)

    y, gradients = both(x, scale, bias, dy)
    wide = [np.asarray(a, np.float64) for a in (x, scale, bias, dy)]
    expected, backward = reference(*wide[:3], shape[-1] if groups == "each" else groups)
    np.testing.assert_allclose(y, expected, atol=2e-5 * np.abs(expected).max())
    for got, one in zip(gradients, backward(wide[3]), strict=True):
        np.testing.assert_allclose(got, one, atol=3e-5 * np.abs(one).max())


def test_forward_mode_and_vmap_go_through():
    x, tangent = random((2, *SHAPES[0])), random((2, *SHAPES[0]), 1)
    layer = nl.InstanceNorm(use_scale=False, use_bias=False)

    def along(x, tangent):
        return jax.jvp(lambda x: layer.apply({}, x), (x,), (tangent,))[1]

    got = jax.jit(jax.vmap(along))(x, tangent)
    mean = x.mean((2, 3), keepdims=True)
    deviation = jnp.sqrt(x.var((2, 3), keepdims=True) + layer.epsilon)
    s = (x - mean) / deviation
    t = tangent / deviation
    expected = t - t.mean((2, 3), keepdims=True) - s * (t * s).mean((2, 3), keepdims=True)
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", [nl.InstanceNorm, nl.GroupNorm])
def test_arrays_are_cut_before_anything_is_computed(layer, dtype):
    """What was converted before the cut was written out at full size, and read again."""
    x = random((4, 64, 64, 32), dtype=dtype)
    layer = layer(dtype=dtype)
    params = layer.init(jax.random.key(0), x)["params"]

    @jax.jit
    def both(params, x, dy):
        y, backward = jax.vjp(lambda p, x: layer.apply({"params": p}, x), params, x)
        return y, backward(dy)

    # What the library that sums puts aside is not in the compiler's account, which shows only what
    # two sums would share. The order is in the text of the program.
    compiled = both.lower(params, x, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < x.nbytes / 4
    text = compiled.as_text()
    cuts = [line for line in text.splitlines() if re.search(CUT, line)]
    assert cuts
    for line in cuts:
        name = re.search(r" bitcast\(%([\w.-]+)", line)[1]
        # What a branch is given is one of several in its parameter.
        taken = re.search(rf"%{re.escape(name)} = .* get-tuple-element\(%([\w.-]+)\)", text)
        name = taken[1] if taken else name
        assert re.search(rf"%{re.escape(name)} = .* parameter\(", text), line
