"""The kernels for GPUs: emulated on any platform, and themselves where there is a GPU."""

import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import normlab as nl
from normlab.functional import kernels, normalize_by_own_moments, own_moments
from normlab.functional.kernels import (
    Form,
    kernels_run,
    normalize_backward,
    normalize_forward,
)

EPSILON = 1e-3

# (examples, positions, channels), groups, whether centred: rows shorter and longer than a warp
# holds; with and without what fills them up to a power of two; groups of all, some and one of the
# channels.
CASES = [
    ((13, 1, 100), 1, True),
    ((1300, 1, 7), 1, True),
    ((7, 1, 768), 1, True),
    ((43, 1, 1024), 1, False),
    ((43, 1, 2048), 1, True),
    ((3, 1, 5000), 1, True),
    ((1, 1, 8192), 1, False),
    ((3, 49, 128), 1, True),
    ((3, 49, 128), 2, True),
    ((2, 64, 96), 3, True),
    ((3, 49, 128), 128, True),
    ((2, 16, 200), 200, True),
]


@pytest.fixture(params=[True, *([False] if kernels_run() else [])], ids=lambda it: "emulated" * it)
def emulated(request, monkeypatch):
    """Whether kernels are emulated; then for a small GPU, so that programs have several tiles."""
    if request.param:
        monkeypatch.setattr(kernels, "_WARPS", 8)
    return request.param


def random(shape, seed=0, dtype=jnp.float32, mean=0.0):
    values = np.random.default_rng(seed).normal(mean, 1, shape)
    return jnp.asarray(values, jnp.float32).astype(dtype)


def in_double(x):
    return np.asarray(x.astype(jnp.float32), np.float64)


def by_hand(x, scale, bias, dy, form):
    """Result and gradients in float64, by the formulas of the paper."""
    x, scale, bias, dy = map(in_double, (x, scale, bias, dy))
    examples, positions, channels = x.shape
    parts = (examples, positions, form.groups, channels // form.groups)

    def mean(values):
        of_parts = values.reshape(parts).mean((1, 3), keepdims=True)
        return np.broadcast_to(of_parts, parts).reshape(x.shape)

    centred = x - mean(x) if form.centre else x
    multiplier = 1 / np.sqrt(mean(centred**2) + form.epsilon)
    standardized = centred * multiplier
    g = dy * scale
    dx = g - standardized * mean(g * standardized)
    if form.centre:
        dx -= mean(g)
    gradients = multiplier * dx, (dy * standardized).sum((0, 1)), dy.sum((0, 1))
    return standardized * scale + bias, *gradients


def assert_near(got, expected, dtype, rtol=2e-6):
    """Near to a few units in the last place of the largest."""
    got = in_double(got)
    tolerance = rtol if dtype == jnp.float32 else 2.0 ** -jnp.finfo(dtype).nmant
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    ("shape", "groups", "centre", "dtype"),
    [(*case, jnp.float32) for case in CASES]
    + [(*case, dtype) for case in CASES[::4] for dtype in (jnp.bfloat16, jnp.float16)],
)
def test_forward_and_backward(shape, groups, centre, dtype, emulated):
    form = Form(shape, groups, centre, EPSILON, jnp.dtype(dtype))
    x, dy = random(shape, 0, dtype, mean=3), random(shape, 1, dtype)
    scale, bias = random(shape[2:], 2), random(shape[2:], 3)
    assert form.fits(dtype.dtype.itemsize)
    y, *found = normalize_forward(x, scale, bias, form=form, interpret=emulated)
    dx, *of_channels = normalize_backward(x, scale, dy, *found, form=form, interpret=emulated)
    expected = by_hand(x, scale, bias, dy, form)
    assert y.dtype == dx.dtype == dtype
    for got, wanted in zip((y, dx), expected, strict=False):
        assert_near(got, wanted, dtype)
    for got, wanted in zip(of_channels, expected[2:], strict=True):
        assert got.dtype == jnp.float32
        assert_near(got, wanted, jnp.float32, rtol=1e-5)


def test_a_mean_far_from_zero_costs_no_digits(emulated):
    form = Form((64, 1, 512), 1, True, 1e-12, jnp.dtype(jnp.float32))
    x = 1e4 + 1e-2 * random((64, 1, 512))
    ones, dy = jnp.ones(512), random(x.shape, 1)
    y, *found = normalize_forward(x, ones, 0 * ones, form=form, interpret=emulated)
    dx, *_ = normalize_backward(x, ones, dy, *found, form=form, interpret=emulated)
    expected = by_hand(x, ones, 0 * ones, dy, form)
    assert_near(y, expected[0], jnp.float32)
    assert_near(dx, expected[1], jnp.float32, rtol=1e-5)


@pytest.mark.parametrize("place", [0, 2000])
def test_an_outlier_costs_the_others_no_digits_wherever_it_is(emulated, place):
    """Once they were shifted by the first element, and so rounded as it is."""
    form = Form((4, 1, 4096), 1, True, EPSILON, jnp.dtype(jnp.float32))
    x = random((4, 1, 4096)).at[:, :, place].set(1e3)
    ones = jnp.ones(4096)
    y, *_ = normalize_forward(x, ones, 0 * ones, form=form, interpret=emulated)
    got, expected = (
        np.delete(it, place, axis=2)
        for it in (in_double(y), by_hand(x, ones, 0 * ones, x, form)[0])
    )
    assert np.abs(got - expected).max() <= 5e-6 * np.abs(expected).max()


def test_large_numbers_in_a_tile_with_padding(emulated):
    """Once what pads a tile overflowed in the backward pass, and its sums in the forward pass."""
    form = Form((2, 49, 128), 2, True, 1e-6, jnp.dtype(jnp.float32))
    scale, dy = jnp.ones(128), random((2, 49, 128), 1)
    constant = jnp.full((2, 49, 128), 1e36)
    _, *found = normalize_forward(constant, scale, 0 * scale, form=form, interpret=emulated)
    gradients = normalize_backward(constant, scale, dy, *found, form=form, interpret=emulated)
    assert all(np.isfinite(it).all() for it in gradients)
    x = 5e17 * random((2, 49, 128))
    y, *_ = normalize_forward(x, scale, 0 * scale, form=form, interpret=emulated)
    assert_near(y, by_hand(x, scale, 0 * scale, dy, form)[0], jnp.float32)


@pytest.mark.parametrize(("shape", "groups", "centre"), CASES[1::3])
def test_the_moments_of_the_formula_are_those_of_the_kernel(shape, groups, centre, emulated):
    """Once they were zeros, so that a gradient by the kernel was zero after it."""
    form = Form(shape, groups, centre, EPSILON, jnp.dtype(jnp.float32))
    x, dy = random(shape, 0, mean=3), random(shape, 1)
    scale, bias = random(shape[2:], 2), random(shape[2:], 3)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(own_moments, "kernels_run", lambda: True)
        _, *found = own_moments._layer.bind(x, scale, bias, form=form)
    got = normalize_backward(x, scale, dy, *found, form=form, interpret=emulated)
    for it, expected in zip(got, by_hand(x, scale, bias, dy, form)[1:], strict=True):
        assert_near(it, expected, jnp.float32, rtol=1e-5)


def test_the_gradient_needs_nothing_large_but_the_input(bound):
    layer, x = nl.GroupNorm(4), random((3, 7, 7, 128))
    variables = layer.init(jax.random.key(0), x)
    _, backward = jax.vjp(lambda x: layer.apply(variables, x), x)
    large = [it for it in jax.tree.leaves(backward) if it.size >= x.size]
    assert len(large) == 1
    np.testing.assert_array_equal(large[0], x)
    assert large[0].shape == x.shape  # Reshaped, it might be kept beside the input.


@pytest.fixture
def bound(monkeypatch):
    """Binds the primitives, as on a GPU; on others they are then computed by the formula."""
    monkeypatch.setattr(own_moments, "kernels_run", lambda: True)


LAYERS = {
    "layer": (nl.LayerNorm(), (4, 6, 256)),
    "root mean square": (nl.RMSNorm(dtype=jnp.bfloat16), (4, 6, 256)),
    "group": (nl.GroupNorm(4), (3, 7, 7, 128)),
    "instance": (nl.InstanceNorm(), (3, 7, 7, 128)),
    "without scale": (nl.LayerNorm(use_scale=False, use_bias=False), (5, 256)),
}


def primitives_of(function, *arrays):
    # A function of its own, since what was traced once is kept.
    jaxpr = jax.make_jaxpr(lambda *arrays: function(*arrays))(*arrays)
    return [str(it.primitive) for it in jaxpr.jaxpr.eqns]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_bind_them_on_a_gpu_alone(name, bound, monkeypatch):
    layer, shape = LAYERS[name]
    x = random(shape)
    apply = partial(layer.apply, layer.init(jax.random.key(0), x))
    assert "normalize_by_own_moments" in primitives_of(apply, x)
    monkeypatch.undo()
    if jax.default_backend() == "cpu":
        assert "normalize_by_own_moments" not in primitives_of(apply, x)


@pytest.mark.parametrize(
    ("axes", "given"),
    [
        ((2,), {"mask": np.ones((4, 6, 256), bool)}),
        ((2,), {"axis_name": "devices"}),
        ((2,), {"use_fast_variance": False}),
        ((2,), {"epsilon": np.ones((4, 1, 1), np.float32)}),
        ((2,), {"scale": np.ones((4, 1, 1), np.float32)}),
        ((0,), {}),
        ((0, 2), {}),
    ],
)
def test_what_does_not_fit_is_left_to_the_formula(axes, given, bound):
    given = jax.tree.map(lambda it: jnp.asarray(it) if isinstance(it, np.ndarray) else it, given)
    given = {"epsilon": EPSILON, **given}

    def function(x):
        return normalize_by_own_moments(x, axes, **given)

    traced = jax.vmap(function, axis_name="devices") if "axis_name" in given else function
    x = random((2, 4, 6, 256) if "axis_name" in given else (4, 6, 256))
    assert "normalize_by_own_moments" not in primitives_of(traced, x)


def test_no_form_takes_what_a_warp_cannot_hold_or_memory_would_waste():
    def fits(shape, groups):
        return Form(shape, groups, True, EPSILON, jnp.dtype(jnp.float32)).fits(4)

    assert fits((8, 1, 8192), 1)
    assert not fits((8, 1, 8193), 1)
    assert fits((8, 49, 512), 32)
    assert not fits((8, 49, 256), 32)  # 8 channels are 32 bytes
    assert not fits((8, 1024, 512), 32)
    assert not fits((2**20, 1, 2048), 1)  # more elements than 32 bits can count


def loss(x, scale, bias, dy):
    y = normalize_by_own_moments(x, (2,), epsilon=EPSILON, scale=scale[None, None], bias=bias)
    return jnp.sum(dy * y**3)


DERIVATIVES = {
    "result": lambda f, *arrays: f(*arrays),
    "gradient": lambda f, *arrays: jax.grad(f, (0, 1, 2))(*arrays),
    "compiled": lambda f, *arrays: jax.jit(jax.grad(f, (0, 1, 2)))(*arrays),
    "of one argument": lambda f, *arrays: jax.grad(f, 1)(*arrays),
    "forwards": lambda f, *arrays: jax.jvp(f, arrays, tuple(2 * a + 1 for a in arrays)),
    "linearized": lambda f, *arrays: jax.linearize(f, *arrays)[1](*arrays),
    "forwards over reverse": lambda f, *arrays: jax.jvp(jax.grad(f, (0, 1)), arrays, arrays),
    "second": lambda f, *arrays: jax.grad(
        lambda *a: sum(jnp.sum(g**2) for g in jax.grad(f, (0, 1))(*a)), (0, 1, 2)
    )(*arrays),
    "checkpointed": lambda f, *arrays: jax.grad(jax.checkpoint(f), (0, 1))(*arrays),
    "of several inputs": lambda f, x, *rest: jax.vmap(jax.grad(f, (0, 1)), (0, None, None, None))(
        jnp.stack([x, 2 * x]), *rest
    ),
    "of several scales": lambda f, x, scale, *rest: jax.vmap(
        jax.grad(f, (0, 1)), (None, 0, None, None)
    )(x, jnp.stack([scale, 2 * scale]), *rest),
}


@pytest.mark.parametrize("which", DERIVATIVES)
def test_derivatives(which, monkeypatch):
    arrays = (
        random((3, 5, 128), 0, mean=2),
        random((128,), 1),
        random((1, 1, 128), 2),
        random((3, 5, 128), 3),
    )
    derive = partial(DERIVATIVES[which], loss)
    with monkeypatch.context() as context:
        context.setattr(own_moments, "kernels_run", lambda: False)
        expected = derive(*arrays)
    monkeypatch.setattr(own_moments, "kernels_run", lambda: True)
    got = derive(*arrays)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


def test_without_jit(bound):
    with jax.disable_jit():
        x = random((3, 5, 128))
        np.testing.assert_allclose(
            normalize_by_own_moments(x, (2,), epsilon=EPSILON),
            (x - x.mean(2, keepdims=True)) / jnp.sqrt(x.var(2, keepdims=True) + EPSILON),
            atol=1e-5,
        )


def test_a_program_for_a_gpu_of_nvidia_holds_the_kernels(bound):
    layer, x = nl.LayerNorm(), random((64, 256))
    variables = layer.init(jax.random.key(0), x)

    def gradient(variables, x):
        return jax.grad(lambda v, x: jnp.sum(layer.apply(v, x) ** 2), (0, 1))(variables, x)

    # What there is here is no GPU, for which a newer JAX makes no kernel.
    device = jax.sharding.AbstractDevice("NVIDIA H200", num_cores=132, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)

    def kernels_in(function, *arrays, platform):
        with jax.sharding.use_abstract_mesh(mesh):
            text = jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        return text.count("xla.gpu.triton")

    assert kernels_in(gradient, variables, x, platform="cuda") == 2
    assert kernels_in(gradient, variables, x, platform="cpu") == 0
    assert kernels_in(gradient, variables, x, platform="rocm") == 0
    exported = jax.export.export(jax.jit(gradient), platforms=["cuda"])(variables, x)
    assert "xla.gpu.triton" not in exported.mlir_module()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="asks what is so without a GPU")
def test_without_a_gpu_none_run(monkeypatch):
    assert not kernels_run()
    device = SimpleNamespace(compute_capability="9.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert kernels_run()
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not kernels_run()


@pytest.mark.parametrize("capability", ["7.5", "gfx942", None])
def test_an_older_gpu_and_those_of_others_run_none(capability, monkeypatch):
    device = SimpleNamespace(compute_capability=capability) if capability else SimpleNamespace()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert not kernels_run()


def test_a_jax_that_has_left_out_what_compiles_them_runs_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(compute_capability="9.0")])
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr("jax.experimental.pallas.triton", raising=False)
    assert not kernels_run()


def test_a_scale_that_is_spread_over_devices_is_left_to_the_formula(bound):
    """Once it was reshaped for the kernel, which fails for what an explicit mesh spreads."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spread = jax.sharding.PartitionSpec(None, None, "d")
        scale = jax.device_put(jnp.ones((1, 1, 256)), jax.NamedSharding(mesh, spread))
        x = random((4, 6, 256))
        given = {"epsilon": EPSILON, "scale": scale}
        used = primitives_of(lambda x: normalize_by_own_moments(x, (2,), **given), x)
    assert "normalize_by_own_moments" not in used
