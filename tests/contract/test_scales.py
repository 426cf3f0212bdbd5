"""Every variant over the range of float32 and bfloat16, against its float64 oracle.

Squares of values above 2e19 and below 1e-19 are not in the range. Layers that divide by a
deviation, which is, made zeros of the former, with gradients that were finite and wrong; and with a
negligible epsilon infinities and NaN of the latter.
"""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.cases import (
    SHAPE,
    Case,
    after_two_steps,
    apply,
    as_arrays,
    assert_close,
    every_case,
    every_variant,
    normal,
    parameters,
    train,
    two_of_three,
    variables,
)
from flax import linen as nn
from flax import nnx

import normlab as nl
from normlab.functional import (
    moments,
    normalize,
    normalize_weight,
    scaled_standardize_weight,
    spectral_normalize,
    standardize_weight,
)

# Whose outputs of zeros are others: by a proxy, a threshold, or the running mean.
NOT_OF_ZEROS = ("batch_renorm", "filter_response_norm", "proxy_norm")

LARGE = (1e25, 1e19, 1e30)
SMALL = (1e-30, 1e-20)


def masks(first):
    """With and without a mask at the first of some sizes; the others share what is right there."""
    return (None, two_of_three()) if first else (None,)


def with_epsilon(case: Case, epsilon: float) -> Case:
    """The same case with another epsilon, if it has one."""
    if not case.has_field("epsilon"):
        return case
    name = "base_epsilon" if case.variant == "filter_response_norm" else "epsilon"
    fields = case.fields if case.oracle_fields is None else case.oracle_fields
    return replace(
        case,
        fields=case.fields | {"epsilon": epsilon},
        oracle_fields={key: it for key, it in fields.items() if key != "epsilon"} | {name: epsilon},
        title=f"{case.title}, epsilon {epsilon}",
    )


def check(case, x, mask=None):
    """Compares output and gradients with the oracle; returns the new statistics."""
    # A bias beside values of 1e-30 is all there is, and beside 1e30 nothing: so it is left out.
    params, replay = parameters(case), after_two_steps(case)
    params = {name: it * (name != "bias") for name, it in params.items()}
    given = variables(case) | {"params": as_arrays(params)}
    y, statistics, (of_params, gradient), _ = train(case, x, mask, given=given)
    expected = replay.normalize(x, mask, **params)
    assert_close(y, expected, 2e-5)

    weights, wide = normal(seed=1).astype(np.float64), x.astype(np.float64)
    largest = np.abs(wide).max()

    def loss(step=0.0, along=0.0, **changed):
        moved = wide + step * largest * along
        y = replay.normalize(moved, mask, constant_of=x, **{**params, **changed})
        return (weights * y).sum()

    if case.variant == "local_response_norm" and largest > 1e24:
        return statistics  # Its derivative is a high power of that, and not in the range.

    # What differences of float64 lose to outputs that are large beside what changes them.
    cancelled = 1e-9 * np.abs(weights * expected).sum()

    def agree(found, along, up, down):
        terms = found.astype(np.float64) * along
        limit = 1e-4 * np.linalg.norm(terms) + cancelled
        np.testing.assert_allclose(terms.sum(), (up - down) / 2e-6, rtol=1e-4, atol=limit)

    for seed in (3, 4):
        along = normal(seed=seed).astype(np.float64)
        agree(gradient * largest, along, loss(1e-6, along), loss(-1e-6, along))
    for name, found in of_params.items():
        if name == "bias":
            continue
        along = normal(found.shape, seed=5).astype(np.float64)
        up, down = (loss(**{name: params[name] + step * along}) for step in (1e-6, -1e-6))
        agree(found, along, up, down)
    return statistics


@every_case
def test_large_inputs_are_normalized_and_leave_running_statistics_alone(case):
    """1e19 to 1e25 were normalized to zeros, as their squares are infinite in float32."""
    for scale in LARGE:
        x = np.float32(scale) * normal()
        for mask in masks(scale == LARGE[0]):
            statistics = check(case, x, mask)
            if scale > 1e20:
                before = variables(case).get("batch_stats", {})
                jax.tree.map(np.testing.assert_array_equal, statistics, before)


@every_case
def test_small_inputs_are_normalized_where_epsilon_is_negligible(case):
    """Their squares are 0 in float32, so that they were divided by 0 or by epsilon."""
    for epsilon, scales in ((0.0, SMALL), (1e-20, (1e-30, 1e-12))):
        small = with_epsilon(case, epsilon)
        for scale in scales:
            for mask in masks(scale == SMALL[0]):
                check(small, np.float32(scale) * normal(), mask)


@every_variant
def test_bfloat16_is_normalized_at_any_size(case):
    layer = case.layer(use_running_average=False)
    run = jax.jit(lambda given, x: apply(layer, given, x)[0])
    for scale in (1e-30, 1.0, *LARGE):
        x = jnp.asarray(scale * normal(), jnp.bfloat16)
        expected = after_two_steps(case).normalize(np.asarray(x, np.float64), **parameters(case))
        assert_close(np.asarray(run(variables(case), x), np.float64), expected, 1e-2)


@pytest.mark.parametrize("name", ["InstanceNorm", "GroupNorm", "LayerNorm", "RMSNorm", "ScaleNorm"])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_layers_for_nnx_are_blind_to_the_scale(name, scale):
    fields = {"num_groups": 2} if name == "GroupNorm" else {}
    form = getattr(nl.nnx, name)(4, epsilon=0.0, rngs=nnx.Rngs(0), **fields)
    graph, state = nnx.split(form)

    def both(x):
        y, backward = jax.vjp(lambda x: nnx.merge(graph, state)(x), jnp.asarray(x))
        return y, backward(normal(seed=1))[0]

    (expected, gradient), (y, found) = both(normal()), both(np.float32(scale) * normal())
    assert_close(y, expected)
    assert_close(found * np.float32(scale), gradient, 1e-4)


SIZES = np.float32([1e25, 1, 1e-25, 1e12]).reshape(4, 1, 1)


def test_rows_of_any_size_stand_beside_each_other():
    """One unit for all of an array would lose the small rows beside the large ones."""
    layer = nl.LayerNorm(epsilon=0.0, use_scale=False, use_bias=False)
    x = normal((4, 3, 16))
    run = jax.jit(lambda x: layer.apply({}, x))
    assert_close(run(x * SIZES), run(x))


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("masked", [False, True])
def test_statistics_of_devices_are_pooled_at_any_size(scale, masked):
    """Parts of very different sizes too: of zeros, and where only the means differ."""
    x = np.float32(scale) * normal((4, 8, 3))
    x[1], x[2] = 0, np.float32(5 * scale)
    mask = two_of_three(x.shape) if masked else None

    def whole(x, mask, **over):
        it = moments(x, (0,), mask=mask, **over)
        return normalize(
            x, it.shift, it.scaled_variance, residual=it.residual, factor=it.factor, epsilon=0.0
        )

    def on_devices(x):
        if mask is None:
            return jax.vmap(lambda x: whole(x, None, axis_name="i"), axis_name="i")(x)
        return jax.vmap(lambda x, mask: whole(x, mask, axis_name="i"), axis_name="i")(x, mask)

    def together(x):
        flat = None if mask is None else mask.reshape(32, 3)
        return whole(x.reshape(32, 3), flat).reshape(x.shape)

    def both(function):
        y, backward = jax.vjp(function, x)
        return y, backward(normal(x.shape, seed=1))[0] * np.float32(scale)

    usual = both(on_devices)
    for one, other in zip(usual, both(together), strict=True):
        assert_close(one, other, 1e-4)
    wide, counts = x.astype(np.float64), np.ones(x.shape) if mask is None else mask
    mean = (wide * counts).sum((0, 1)) / counts.sum((0, 1))
    variance = ((wide - mean) ** 2 * counts).sum((0, 1)) / counts.sum((0, 1))
    assert_close(usual[0], (wide - mean) / np.sqrt(variance))


def test_weights_of_any_size_are_normalized():
    weight = jnp.asarray(normal((5, 4)))
    for function in (
        lambda w: normalize_weight(w, (0,), epsilon=0.0),
        lambda w: scaled_standardize_weight(w, (0,), jnp.ones((1, 4)), epsilon=0.0),
    ):
        for scale in map(np.float32, (1e-25, 1e25)):
            y, backward = jax.vjp(function, scale * weight)
            expected, usual = jax.vjp(function, weight)
            assert_close(y, expected)
            dy = normal((5, 4), seed=1)
            assert_close(backward(dy)[0] * scale, usual(dy)[0], 1e-4)


@every_variant
def test_zeros_stay_zeros_without_an_epsilon(case):
    """They were 0 / 0."""
    if not case.has_field("epsilon"):
        return
    params = {name: it * (name != "bias") for name, it in parameters(case).items()}
    given = variables(case) | {"params": as_arrays(params)}
    layer = with_epsilon(case, 0.0).layer(use_running_average=False)
    zeros = jnp.zeros(SHAPE)
    if case.variant in NOT_OF_ZEROS:
        y = apply(layer, given, zeros)[0]
        assert np.isfinite(y).all()
        return
    y, backward = jax.vjp(lambda x: apply(layer, given, x)[0], zeros)
    np.testing.assert_array_equal(y, 0)
    assert np.isfinite(backward(jnp.zeros(SHAPE))[0]).all()


def test_scale_norm_of_zeros_without_an_epsilon_has_no_gradient():
    """It was NaN, like the value."""
    layer = nl.ScaleNorm(epsilon=0.0)
    x = jnp.concatenate([jnp.zeros((1, 4)), jnp.ones((1, 4))])
    variables = layer.init(jax.random.key(0), x)
    y, backward = jax.vjp(lambda x: layer.apply(variables, x), x)
    np.testing.assert_array_equal(y[0], 0)
    gradient = backward(jnp.asarray(normal((2, 4))))[0]
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.abs(gradient[1]).max() > 0.1


def test_an_empty_part_beside_small_ones_is_left_out():
    """Its variance of 1 was infinite in the unit of the others, and 0 times that is NaN."""
    x = np.float32(1e-20) * normal((8, 3, 4))
    mask = np.ones(x.shape, bool)
    mask[..., 1] = False
    layer = nl.GroupNorm(num_groups=2, epsilon=0.0)

    def both(mask):
        given = layer.init(jax.random.key(0), x)
        y, backward = jax.vjp(lambda x: layer.apply(given, x, mask=mask), x)
        return y, backward(normal(x.shape, seed=1) * mask)[0]

    y, gradient = both(mask)
    wide = x[..., :1].astype(np.float64)
    mean, deviation = (f(wide, axis=(1, 2), keepdims=True) for f in (np.mean, np.std))
    assert_close(y[..., :1], (wide - mean) / deviation)
    assert np.isfinite(y).all()
    assert np.isfinite(gradient).all()


def test_a_device_of_which_nothing_counts_is_left_out_beside_small_values():
    """As an empty group is."""
    x = np.float32(1e-20) * normal((2, 8, 3))
    mask = np.ones(x.shape, bool)
    mask[1] = False
    layer = nl.BatchNorm(epsilon=0.0, use_running_average=False, axis_name="devices")
    given = nl.BatchNorm().init(jax.random.key(0), x[0], use_running_average=False)

    def run(x, mask):
        return apply(layer, given, x, mask=mask)

    y, statistics = jax.vmap(run, axis_name="devices")(x, mask)
    wide = x[0].astype(np.float64)
    assert_close(y[0], (wide - wide.mean(0)) / wide.std(0))
    assert np.isfinite(y).all()
    assert np.isfinite(statistics["mean"]).all()


def test_batch_renorm_without_a_limit_is_right_where_the_square_of_r_is_not_in_the_range():
    """The variance divided by the square of r was 0."""
    fields = {"d_max": 0.0, "start_steps": 0, "r_steps": 0, "d_steps": 0}
    layer = nl.BatchRenorm(r_max=np.inf, use_running_average=False, **fields)
    for scale in (1.0, 1e22, 1e30):
        x = np.float32(scale) * normal((64, 4))
        given = layer.init(jax.random.key(0), x)  # whose running statistics are 0 and 1
        y, backward = jax.vjp(lambda x, given=given: apply(layer, given, x)[0], x)
        wide = x.astype(np.float64)
        expected = (wide - wide.mean(0)) / np.sqrt(1 + layer.epsilon)
        assert_close(y / np.float32(scale), expected / scale)
        assert np.isfinite(backward(normal(x.shape, seed=1))[0]).all()


def test_weights_are_initialized_by_a_batch_of_any_size():
    """Of 1e22 the deviation was taken to be infinite, and the scale to be 0."""
    layer = nl.WeightNorm(nn.Dense(5), data_dependent_init=True)
    expected, _ = layer.init_with_output(jax.random.key(0), normal((16, 4)))
    y, _ = layer.init_with_output(jax.random.key(0), np.float32(1e22) * normal((16, 4)))
    assert_close(y, expected, 1e-4)


@pytest.mark.parametrize("function", [standardize_weight, normalize_weight])
@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-5, 1e-2])
def test_half_precision_keeps_its_epsilon(function, epsilon):
    """One below 6e-5 became that, which is a quarter of the least variance without a factor."""
    for scale in (0.02, 0.2, 1.0, 100.0):
        weight = jnp.asarray(scale * normal((9, 4), mean=0.0), jnp.float16)
        wide = np.asarray(weight, np.float64)
        if function is standardize_weight:
            expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + epsilon)
        else:
            expected = wide / np.sqrt((wide**2).sum(0) + epsilon)
        y = function(weight, (0,), epsilon=epsilon)
        assert y.dtype == jnp.float16
        assert_close(np.asarray(y, np.float64), expected, 4e-3)
    zeros = function(jnp.zeros((9, 4), jnp.float16), (0,), epsilon=epsilon)
    np.testing.assert_array_equal(zeros, 0)


def test_calls_outside_of_jit_compile_nothing_anew():
    """Each call made a branch of its own, which took a hundred times as long as the rest."""
    layer, x = nl.LayerNorm(), jnp.asarray(normal())
    given = layer.init(jax.random.key(0), x)

    def calls():
        moments(x, (0,))
        moments(x, (0,), use_fast_variance=False)
        normalize_weight(x, (0,), epsilon=0.0)
        layer.apply(given, x)

    calls()
    compiled = []

    def note(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        calls()
        assert not compiled
        jax.jit(lambda x: x + 1)(x)
        assert compiled  # The event has this name.
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.parametrize("masked", [False, True])
def test_second_derivatives_of_the_two_pass_formula_are_right(masked):
    """The shift was a constant to them, so that they were those of the mean square."""
    mask = two_of_three((6, 2)) if masked else None
    with jax.enable_x64(True):
        x = jnp.asarray(normal((6, 2)).astype(np.float64))

        def plain(x):
            counts = jnp.ones_like(x) if mask is None else jnp.asarray(mask, x.dtype)
            mean = (x * counts).sum(0, keepdims=True) / counts.sum(0)[None]
            return ((x - mean) ** 2 * counts).sum(0) / counts.sum(0)

        def two_passes(x):
            return moments(x, (0,), mask=mask, use_fast_variance=False).variance[0]

        for derivative in (lambda f: f, jax.jacobian, jax.hessian):
            found, expected = derivative(two_passes)(x), derivative(plain)(x)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)

        def layer(fast):
            norm = nl.LayerNorm(use_fast_variance=fast, param_dtype=jnp.float64)
            given = norm.init(jax.random.key(0), x)
            return jax.hessian(lambda x: (norm.apply(given, x) ** 3).sum())(x)

        np.testing.assert_allclose(layer(False), layer(True), rtol=1e-9, atol=1e-9)


def test_only_what_may_leave_the_range_is_taken_once_more():
    """Power iterations go by directions of about 1; what is averaged needs no common unit."""
    weight, u = jnp.asarray(normal((6, 4))), jnp.ones((1, 4))

    def iterate(weight, u):
        return spectral_normalize(weight, u, jnp.ones(()), steps=3, epsilon=1e-12)

    assert "cond" not in str(jax.make_jaxpr(iterate)(weight, u))

    layer = nl.GhostBatchNorm(ghost_batch_size=4, use_running_average=False, axis_name="i")
    given = nl.GhostBatchNorm().init(jax.random.key(0), normal(), use_running_average=False)
    program = jax.make_jaxpr(lambda x: apply(layer, given, x), axis_env=[("i", 2)])(normal())
    assert "pmax" not in str(program)


def test_usual_input_does_not_pay_for_the_rest():
    """What is taken once more stands in a branch of its own, under vmap too."""
    layer = nl.RMSNorm(use_scale=False)

    def run(x):
        return layer.apply({}, x)

    x = jnp.ones((4, 8, 16))
    for function in (run, jax.vmap(run), jax.vmap(jax.vmap(run))):
        compiled = jax.jit(function).lower(x).compile().as_text()
        assert len(re.findall(r" conditional\(", compiled)) == 1


def test_scale_norm_writes_no_input_of_half_precision_out_in_float32():
    """What a branch may read again was an array of twice the size."""
    layer, x = nl.ScaleNorm(dtype=jnp.bfloat16), jnp.ones((512, 1024), jnp.bfloat16)
    given = layer.init(jax.random.key(0), x)
    program = jax.jit(lambda x: layer.apply(given, x)).lower(x).compile()
    assert program.memory_analysis().temp_size_in_bytes < x.size
