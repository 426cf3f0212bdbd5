"""The convolution for CPU against the library's: values, every derivative, every transformation."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from normlab.models.convolution import convolution

NHWC = ("NHWC", "HWIO", "NHWC")
CASES = {
    "3x3 same": ((6, 8, 8, 3), (3, 3, 3, 4), (1, 1), "SAME"),
    "3x3 valid": ((6, 8, 7, 3), (3, 3, 3, 4), (1, 1), "VALID"),
    "3x3 stride 2, odd": ((5, 7, 8, 2), (3, 3, 2, 3), (2, 2), "SAME"),
    "1x1 stride 2": ((4, 6, 6, 3), (1, 1, 3, 5), (2, 2), "SAME"),
    "2x5 explicit padding": ((3, 6, 9, 2), (2, 5, 2, 3), (1, 2), [(1, 0), (2, 3)]),
    "one image": ((1, 5, 5, 1), (3, 3, 1, 1), (1, 1), "SAME"),
    "many channels": ((3, 6, 7, 20), (3, 3, 20, 5), (1, 1), "SAME"),
    "many features, stride 2": ((3, 8, 7, 3), (3, 2, 3, 18), (2, 1), "VALID"),
    "rows left over": ((3, 10, 10, 2), (3, 3, 2, 3), (2, 3), "VALID"),
    "padding beyond the kernel": ((2, 4, 4, 2), (2, 2, 2, 3), (1, 1), [(3, 2), (0, 4)]),
    "stride beyond the kernel": ((2, 9, 9, 2), (2, 2, 2, 3), (4, 3), "VALID"),
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


def loss(f):
    return lambda x, k: jnp.sum(f(x, k) ** 3)


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


def test_maps_within_maps():
    ours, library = pair((1, 2), "SAME")
    xs, ks, dys = arrays((2, 3, 2, 5, 6, 2), (2, 3, 3, 2, 4), (2, 3, 2, 5, 3, 4))

    def gradients(f):
        def of_images(x, k, dy):
            return jax.vjp(f, x, k)[1](dy)

        many = jax.vmap(of_images, (0, None, 0))  # more images of one kernel
        return jax.vmap(many)(xs, ks, dys), jax.vmap(many, (1, None, 1), 1)(xs, ks[0], dys)

    assert_close(gradients(ours), gradients(library))


def test_it_maps_over_nothing():
    ours, library = pair((1, 1), "SAME")
    xs, ks = arrays((0, 2, 5, 5, 2), (0, 3, 3, 2, 3))
    (k,) = arrays((3, 3, 2, 3))
    assert jax.vmap(ours)(xs, ks).shape == jax.vmap(library)(xs, ks).shape
    assert jax.vmap(ours, (0, None))(xs, k).shape == (0, 2, 5, 5, 3)


def test_it_is_computed_where_compilation_is_switched_off():
    ours, library = pair((1, 1), "SAME")
    x, k = arrays((2, 5, 5, 2), (3, 3, 2, 3))
    with jax.disable_jit():
        given = jax.grad(loss(ours), (0, 1))(x, k)
    assert_close(given, jax.grad(loss(library), (0, 1))(x, k))


def test_a_call_outside_of_jit_is_compiled_once():
    ours, _ = pair((1, 1), "SAME")
    x, k = arrays((2, 5, 4, 2), (3, 3, 2, 3))
    compiled = []

    def note(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    ours(x, k)
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        ours(x, k)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert not compiled


def test_the_default_precision_is_that_of_the_call():
    """Not that of the time when the program is lowered, which the primitive alone would see."""

    def highest(x, k):
        with jax.default_matmul_precision("highest"):
            return pair((1, 1), "SAME")[0](x, k)

    said = convolutions(highest, "cuda")
    assert len(said) == 3
    assert all("HIGHEST" in it for it in said)


def test_the_gradient_of_any_number_of_images_is_exported():
    ours, library = pair((1, 1), "SAME")
    x, k = arrays((3, 6, 5, 2), (3, 3, 2, 4))
    batch = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 6, 5, 2"), jnp.float32)
    exported = jax.export.export(jax.jit(jax.grad(loss(ours), (0, 1))))(batch, k)
    assert_close(tuple(exported.call(x, k)), jax.grad(loss(library), (0, 1))(x, k))


def test_a_kernel_that_all_devices_share_has_the_sum_of_their_gradients():
    ours, library = pair((1, 1), "SAME")
    x, k = arrays((8, 6, 6, 2), (3, 3, 2, 3))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    batch, same = PartitionSpec("data"), PartitionSpec()
    split = jax.shard_map(
        lambda x, k: jax.grad(loss(ours), (0, 1))(x, k),
        mesh=mesh,
        in_specs=(batch, same),
        out_specs=(batch, same),
    )
    assert_close(jax.jit(split)(x, k), jax.grad(loss(library), (0, 1))(x, k))


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
    exact = np.asarray(library(x.astype(jnp.float32), k.astype(jnp.float32)))
    # Rounded once, at the end: by half a unit in the last of 8 binary places.
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


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


def convolutions(f, platform):
    """What the program of values and derivatives says of its convolutions."""

    def everything(x, k):
        y, pullback = jax.vjp(f, x, k)
        return y, pullback(y)

    traced = jax.jit(everything).trace(*arrays((4, 8, 8, 3), (3, 3, 3, 20)))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.while" not in program
    return re.findall(r"stablehlo\.convolution\(.*?\) (.*)", program)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_program_for_an_accelerator_holds_the_librarys_convolutions(platform):
    ours, library = (convolutions(f, platform) for f in pair((1, 1), "SAME"))
    assert len(library) == 3
    assert sorted(ours) == sorted(library)


def test_all_convolutions_for_cpu_come_in_the_order_that_is_fast_within_loops():
    ours, library = (convolutions(f, "cpu") for f in pair((1, 1), "SAME"))
    order = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    assert [order in said for said in ours] == [True] * 3
    assert sum(order in said for said in library) < 3


def test_no_other_library_takes_over_and_nothing_is_drawn_into_a_transposition():
    """Both cost several times the time of the convolution itself."""
    ours, _ = pair((1, 1), "VALID")

    def everything(x, k):
        y, pullback = jax.vjp(ours, x, k)
        return pullback(y)

    compiled = jax.jit(everything).lower(*arrays((4, 12, 12, 32), (3, 3, 32, 64))).compile()
    program = compiled.as_text()
    taken_over = re.search(r"ynn.*convolution|convolution.*ynn", program)
    assert taken_over is None
    assert " conditional(" in program


def test_mapped_runs_have_convolutions_of_their_own_on_cpu():
    ours, _ = pair((1, 1), "SAME")
    traced = jax.jit(jax.vmap(ours)).trace(*arrays((5, 4, 8, 8, 3), (5, 3, 3, 3, 4)))
    programs = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")}
    assert "feature_group_count = 1 " in programs["cpu"]
    assert "feature_group_count = 5 " in programs["cuda"]


@pytest.mark.parametrize("axes", [(0, None), (None, 0)])
def test_what_shares_images_or_kernel_is_one_convolution(axes):
    ours, _ = pair((1, 1), "SAME")
    shapes = ((4, 8, 8, 3), (3, 3, 3, 4))
    x, k = arrays(*((5, *s) if axis == 0 else s for s, axis in zip(shapes, axes, strict=True)))

    def everything(x, k):
        y, pullback = jax.vjp(jax.vmap(ours, axes), x, k)
        return y, pullback(y)

    for platform in ("cpu", "cuda"):
        program = jax.jit(everything).trace(x, k).lower(lowering_platforms=(platform,)).as_text()
        assert program.count("stablehlo.convolution(") == 3
        assert program.count("feature_group_count = 1 ") == 3
        assert "stablehlo.while" not in program


def test_only_images_and_kernel_wait_for_the_backward_pass():
    ours, _ = pair((1, 1), "SAME")
    x, k = arrays((6, 8, 8, 3), (3, 3, 3, 4))
    _, pullback = jax.vjp(ours, x, k)
    assert sum(leaf.size for leaf in jax.tree.leaves(pullback)) == x.size + k.size


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
