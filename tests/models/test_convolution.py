"""The convolution for CPU against the library's: values, every derivative, every transformation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from normlab.models.convolution import _BLOCK_BYTES, _images_per_block, convolution

NHWC = ("NHWC", "HWIO", "NHWC")
CASES = {
    "3x3 same": ((6, 8, 8, 3), (3, 3, 3, 4), (1, 1), "SAME"),
    "3x3 valid": ((6, 8, 7, 3), (3, 3, 3, 4), (1, 1), "VALID"),
    "3x3 stride 2, odd": ((5, 7, 8, 2), (3, 3, 2, 3), (2, 2), "SAME"),
    "1x1 stride 2": ((4, 6, 6, 3), (1, 1, 3, 5), (2, 2), "SAME"),
    "2x5 explicit padding": ((3, 6, 9, 2), (2, 5, 2, 3), (1, 2), [(1, 0), (2, 3)]),
    "one image": ((1, 5, 5, 1), (3, 3, 1, 1), (1, 1), "SAME"),
    "batch of blocks and a rest": ((37, 32, 32, 16), (3, 3, 16, 4), (1, 1), "SAME"),
}


def pair(strides, padding):
    """Our convolution and the library's, with the same arguments."""
    fields = {"window_strides": strides, "padding": padding, "dimension_numbers": NHWC}
    return partial(convolution, **fields), partial(lax.conv_general_dilated, **fields)


def arrays(*shapes, dtype=jnp.float32):
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes]


def assert_close(actual, expected, tolerance=2e-5):
    def close(a, e):
        assert a.dtype == e.dtype
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, atol=tolerance * np.abs(e).max(), rtol=0)

    jax.tree.map(close, actual, expected)


@pytest.mark.parametrize("case", CASES)
def test_values_and_derivatives_of_all_orders_are_the_librarys(case):
    shape, kernel_shape, strides, padding = CASES[case]
    ours, library = pair(strides, padding)
    x, k, dx, dk = arrays(shape, kernel_shape, shape, kernel_shape)

    def everything(f):
        def loss(x, k):
            return jnp.sum(jnp.sin(f(x, k)))

        gradient = jax.grad(loss, argnums=(0, 1))
        return (
            f(x, k),
            gradient(x, k),
            jax.jvp(f, (x, k), (dx, dk))[1],
            jax.jvp(gradient, (x, k), (dx, dk))[1],
        )

    assert_close(jax.jit(lambda: everything(ours))(), jax.jit(lambda: everything(library))())


@pytest.mark.parametrize("case", ["3x3 same", "3x3 stride 2, odd"])
def test_it_maps_over_images_and_over_kernels(case):
    shape, kernel_shape, strides, padding = CASES[case]
    ours, library = pair(strides, padding)
    xs, ks = arrays((3, *shape), (3, *kernel_shape))
    for axes in [(0, None), (None, 0), (0, 0)]:
        x, k = (many if axis == 0 else many[0] for many, axis in zip((xs, ks), axes, strict=True))

        def gradient(f, x=x, k=k, axes=axes):
            loss = lambda x, k: jnp.sum(jnp.sin(f(x, k)))  # noqa: E731
            return jax.vmap(jax.grad(loss, (0, 1)), axes)(x, k)

        assert_close(
            jax.jit(lambda g=gradient: g(ours))(), jax.jit(lambda g=gradient: g(library))()
        )


def test_gradient_descent_within_scan_and_remat_is_the_librarys():
    ours, library = pair((1, 1), "SAME")
    x, k = arrays((6, 8, 8, 3), (3, 3, 3, 3))

    def train(f):
        loss = jax.checkpoint(lambda k, x: jnp.mean(jnp.square(f(jax.nn.relu(f(x, k)), k) - 1)))

        def step(k, _):
            value, gradient = jax.value_and_grad(loss)(k, x)
            return k - 0.05 * gradient, value

        return lax.scan(step, k, None, length=4)

    assert_close(jax.jit(lambda: train(ours))(), jax.jit(lambda: train(library))(), 1e-4)


def test_bfloat16_is_summed_in_float32():
    ours, library = pair((1, 1), "SAME")
    x, k = arrays((2, 8, 8, 64), (3, 3, 64, 8), dtype=jnp.bfloat16)
    y = ours(x, k)
    assert y.dtype == jnp.bfloat16
    exact = library(x.astype(jnp.float32), k.astype(jnp.float32))
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "fields",
    [
        {"kernel_dilation": 2},
        {"input_dilation": 2, "padding": 1},
        {"feature_group_count": 2},
        {"padding": "CIRCULAR"},
    ],
)
def test_what_it_does_not_compute_itself_is_the_librarys(fields):
    (x,) = arrays((2, 8, 8, 4))
    layers = [
        nn.Conv(6, (3, 3), **fields, conv_general_dilated=f)
        for f in (convolution, lax.conv_general_dilated)
    ]
    variables = layers[0].init(jax.random.key(0), x)
    assert_close(*(layer.apply(variables, x) for layer in layers))


def test_a_program_for_an_accelerator_holds_the_librarys_convolution():
    ours, _ = pair((1, 1), "SAME")
    x, k = arrays((6, 8, 8, 3), (3, 3, 3, 4))
    for platform, expected in (("tpu", True), ("cuda", True), ("cpu", False)):
        exported = jax.export.export(jax.jit(ours), platforms=[platform])(x, k)
        assert ("stablehlo.convolution" in exported.mlir_module()) is expected


def loss(f):
    return lambda x, k: jnp.sum(f(x, k) ** 3)


def test_only_images_and_kernel_wait_for_the_backward_pass():
    ours, _ = pair((1, 1), "SAME")
    x, k = arrays((6, 8, 8, 3), (3, 3, 3, 4))
    _, pullback = jax.vjp(ours, x, k)
    assert sum(leaf.size for leaf in jax.tree.leaves(pullback)) == x.size + k.size


def test_gradient_programs_for_accelerators_hold_no_more_convolutions_than_the_librarys():
    def program(f):
        traced = jax.jit(jax.grad(loss(f), (0, 1))).trace(*arrays((4, 8, 8, 3), (3, 3, 3, 4)))
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    ours, library = map(program, pair((1, 1), "SAME"))
    assert "stablehlo.while" not in ours
    count = library.count("stablehlo.convolution")
    assert ours.count("stablehlo.convolution") == count > 0


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_sharded_over_eight_devices_gives_the_numbers_of_one(axis_type):
    ours, library = pair((1, 1), "SAME")
    x, k = arrays((16, 8, 8, 3), (3, 3, 3, 4))
    expected = jax.grad(loss(library), (0, 1))(x, k)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        placed = (
            jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))),
            jax.device_put(k, NamedSharding(mesh, PartitionSpec())),
        )
        given = jax.tree.map(np.asarray, jax.jit(jax.grad(loss(ours), (0, 1)))(*placed))
    assert_close(given, jax.tree.map(np.asarray, expected))


def test_wrong_arguments_raise_the_librarys_error():
    ours, _ = pair((1, 1), "SAME")
    with pytest.raises(ValueError, match="feature"):
        ours(*arrays((4, 8, 8, 3), (3, 3, 2, 4)))


@pytest.mark.parametrize(("batch", "most", "expected"), [(128, 5, 4), (100, 6, 5), (127, 4, 4)])
def test_blocks_divide_the_batch_where_something_near_does(batch, most, expected):
    assert _images_per_block(batch, _BLOCK_BYTES // most) == expected
