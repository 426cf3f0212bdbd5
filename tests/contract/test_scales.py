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
from flax import nnx

import normlab as nl
from normlab.functional import moments, normalize, normalize_weight, scaled_standardize_weight

LARGE = (1e19, 1e22, 1e25, 1e30)
SMALL = (1e-30, 1e-25, 1e-20)


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
        for mask in (None, two_of_three()):
            statistics = check(case, x, mask)
            if scale > 1e20:
                before = variables(case).get("batch_stats", {})
                jax.tree.map(np.testing.assert_array_equal, statistics, before)


@every_case
def test_small_inputs_are_normalized_where_epsilon_is_negligible(case):
    """Their squares are 0 in float32, so that they were divided by 0 or by epsilon."""
    for epsilon, scales in ((0.0, SMALL), (1e-30, (1e-15,)), (1e-20, (1e-30, 1e-12))):
        small = with_epsilon(case, epsilon)
        for scale in scales:
            for mask in (None, two_of_three()):
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


def test_zeros_stay_zeros_without_an_epsilon():
    """They were 0 / 0."""
    for layer in (nl.LayerNorm(epsilon=0.0), nl.RMSNorm(epsilon=0.0)):
        y, _ = layer.init_with_output(jax.random.key(0), jnp.zeros((2, 4)))
        np.testing.assert_array_equal(y, 0)


def test_usual_input_does_not_pay_for_the_rest():
    """What is taken once more stands in a branch of its own, under vmap too."""
    layer = nl.RMSNorm(use_scale=False)

    def run(x):
        return layer.apply({}, x)

    x = jnp.ones((4, 8, 16))
    for function in (run, jax.vmap(run), jax.vmap(jax.vmap(run))):
        compiled = jax.jit(function).lower(x).compile().as_text()
        assert len(re.findall(r" conditional\(", compiled)) == 1
