"""Moments where numbers, shapes or devices are not the usual ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import normlab as nl
from normlab.functional import moments, normalize


@pytest.mark.parametrize("size", [768, 65536])
@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("outlier", [100.0, 1e4])
def test_an_outlier_anywhere_costs_no_digits(size, place, outlier):
    """The first value of a row was the shift, and all digits went where it was an outlier."""
    x = np.random.default_rng(0).normal(size=(2, size)).astype(np.float32)
    x[:, place] = outlier
    truth = x.astype(np.float64)
    y = nl.LayerNorm(use_scale=False, use_bias=False).apply({}, x)
    expected = (truth - truth.mean(1, keepdims=True)) / truth.std(1, keepdims=True)
    np.testing.assert_allclose(y, expected, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2), (3,)], ids=str)
def test_shapes_may_be_symbols(axes):
    """Whether an array is small was asked of sizes, which symbols cannot tell."""
    scale = jnp.linspace(1, 2, 32).reshape(1, 1, 1, 32)

    def gradient(x):
        def loss(x):
            it = moments(x, axes)
            y = normalize(x, it.shift, it.variance, residual=it.residual, epsilon=1e-3, scale=scale)
            return (y**3).sum()

        return jax.grad(loss)(x)

    shape = jax.export.symbolic_shape("b, h, w, 32")
    exported = jax.export.export(jax.jit(gradient))(jax.ShapeDtypeStruct(shape, jnp.float32))
    given = jax.random.normal(jax.random.key(0), (4, 6, 5, 32))
    np.testing.assert_allclose(exported.call(given), gradient(given), atol=1e-4)


def test_complex_moments_are_pooled_without_a_warning(recwarn):
    x = np.random.default_rng(0).normal(size=(2, 8, 3, 2)) @ np.array([1, 1j])
    x = x.astype(np.complex64)
    pooled = jax.vmap(lambda x: moments(x, (0,), axis_name="devices"), axis_name="devices")(x)
    whole = x.reshape(16, 3)
    np.testing.assert_allclose(pooled.mean[0, 0], whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(pooled.variance[0, 0], whole.var(0), rtol=1e-5)
    assert not [it for it in recwarn if "complex" in str(it.message).lower()]


@pytest.mark.parametrize("spread", [("data", None), (None, "data")], ids=str)
def test_types_may_name_how_an_array_is_spread(spread):
    """A part of an axis that lies on several devices cannot be taken."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    x = np.random.default_rng(0).normal(size=(8, 32, 4, 3)).astype(np.float32)
    with jax.set_mesh(mesh):
        given = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spread, None, None)))
        got = jax.jit(lambda x: moments(x, (0, 1, 2)))(given)
        np.testing.assert_allclose(got.mean.ravel(), x.mean((0, 1, 2)), atol=1e-6)
        np.testing.assert_allclose(got.variance.ravel(), x.var((0, 1, 2)), rtol=1e-5)
