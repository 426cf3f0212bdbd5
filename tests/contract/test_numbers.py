"""Every variant against its float64 oracle: outputs, gradients, statistics, with and without masks.

One compiled step serves all of a case; what varies are values.
"""

import hypothesis.extra.numpy as arrays
import jax
import numpy as np
import oracles
import pytest
from contract.cases import (
    BY_NAME,
    SHAPE,
    after_two_steps,
    apply,
    assert_close,
    assert_finite,
    every_case,
    every_variant,
    normal,
    parameters,
    train,
    two_of_three,
    variables,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

import normlab as nl

MASKS = {
    "none": np.ones((1, 1, 1), bool),
    "every value": two_of_three(),
    "examples": np.arange(8).reshape(8, 1, 1) != 1,
    "positions": two_of_three((3, 1)),
    "channels": np.array([True, True, False, True]),
}


def check_gradients(replay, params, gradients, x, mask, counted):
    """Along random directions of input and parameters together, against differences."""
    weights = np.where(counted, normal(seed=1), 0).astype(np.float64)
    generator = np.random.default_rng(3)
    for _ in range(3):
        directions = jax.tree.map(lambda a: generator.normal(size=a.shape), (params, x))
        directions[1][~counted] = 0

        def loss(step, directions=directions):
            moved = {name: params[name] + step * along for name, along in directions[0].items()}
            y = replay.normalize(x + step * directions[1], mask, constant_of=x, **moved)
            return (weights * y).sum(where=counted)

        expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
        pairs = list(zip(jax.tree.leaves(gradients), jax.tree.leaves(directions), strict=True))
        found = sum(np.vdot(g[d != 0], d[d != 0]) for g, d in pairs)
        limit = 1e-5 * sum(np.linalg.norm(g[d != 0]) * np.linalg.norm(d) for g, d in pairs)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=limit)


def check_statistics(statistics, replay, tolerance=1e-5):
    assert set(statistics) == set(replay.state)
    for name, expected in replay.state.items():
        assert_close(statistics[name], expected, tolerance, message=name)


@every_case
def test_output_gradients_and_statistics_agree_with_the_oracle(case):
    x, params = normal(), parameters(case)
    for title, mask in MASKS.items():
        replay = after_two_steps(case)
        y, statistics, gradients, _ = train(case, x, mask)
        assert_close(y, replay.normalize(x, mask, **params), message=title)
        check_gradients(replay, params, gradients, x, mask, np.ones(SHAPE, bool))
        replay.update(x, mask)
        check_statistics(statistics, replay)


@every_case
def test_masked_garbage_reaches_nothing_that_counts(case):
    """Neither outputs, nor gradients of a loss over the values that count, nor statistics."""
    mask, params, replay = two_of_three(), parameters(case), after_two_steps(case)
    clean = np.where(mask, normal(), np.float32(0))
    expected = replay.normalize(clean, mask, **params)
    if np.array_equal(expected, replay.normalize(clean, **params)):
        pytest.skip("a layer without statistics ignores a mask")
    after = after_two_steps(case)
    after.update(clean, mask)
    for garbage in (-3e38, np.inf, np.nan):
        x = np.where(mask, clean, np.float32(garbage))
        y, statistics, gradients, _ = train(case, x, mask, mask)
        assert_close(y, expected, where=mask)
        check_gradients(replay, params, gradients, clean, mask, mask)
        check_statistics(statistics, after)


@every_variant
def test_fully_masked_input_has_finite_output_and_gradients_and_changes_no_statistics(case):
    """Of no value at all, the mean is 0 and the variance 1."""
    x = normal()
    mask = np.zeros((1, 1, 1), bool)
    y, statistics, *derivatives = train(case, x, mask)
    assert_finite(derivatives)
    if case.oracle is not None:
        assert_close(y, after_two_steps(case).normalize(x, mask, **parameters(case)))
    before = variables(case).get("batch_stats", {})
    jax.tree.map(np.testing.assert_array_equal, statistics, before)


def test_proxies_of_every_activation():
    x, case = normal(), BY_NAME["proxy_norm"]
    names = ("relu", "gelu", "silu", "tanh", "sigmoid")

    @jax.jit
    def run(x):
        return [case.layer(activation=name).apply(variables(case), x) for name in names]

    for name, y in zip(names, run(x), strict=True):
        expected = oracles.proxy_norm(x, activation=name, **parameters(case))
        assert_close(y, expected, message=name)


def test_position_norm_leaves_its_moments_behind():
    """For the moment shortcut, in a form that may be the scale and bias of another layer."""
    x = normal()
    _, sown = nl.PositionNorm().apply({}, x, mutable=["intermediates"])
    (mean,), (deviation,) = (sown["intermediates"][name] for name in ("mean", "deviation"))
    expected = oracles.moments(x, -1)
    assert_close(mean, expected.mean)
    assert_close(deviation, np.sqrt(expected.variance + 1e-5))


# Drawn values.


@some.composite
def steps(draw):
    """An input with its mask and a seed of parameters; constant stretches are common."""
    spread = draw(some.sampled_from([1e-6, 1e-2, 1.0, 1e2, 1e6]))
    offset = draw(some.sampled_from([0.0, 1.0, -1e4]))
    values = some.floats(-4, 4, width=32, allow_subnormal=False)
    x = np.float32(spread) * (
        draw(arrays.arrays(np.float32, SHAPE, elements=values)) + np.float32(offset)
    )
    shape = draw(some.sampled_from([(8, 1, 1), (1, 3, 1), (1, 1, 4), (8, 3, 1), SHAPE]))
    mask = draw(arrays.arrays(bool, shape, elements=some.booleans(), fill=some.just(True)))
    return x, np.broadcast_to(mask, SHAPE), draw(some.integers(0, 100))


few_draws = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@every_variant
@few_draws
@given(step=steps())
def test_drawn_inputs_agree_with_the_oracle(case, step):
    x, mask, seed = step
    replay = after_two_steps(case)
    y, statistics, *derivatives = train(case, x, mask, seed=seed)
    assert_close(y, replay.normalize(x, mask, **parameters(case, seed)), 1e-4)
    assert_finite(derivatives)
    replay.update(x, mask)
    check_statistics(statistics, replay, 1e-4)


# The layers that may reduce any axes, with the field that names them, or for batch norm all others.
ON_ANY_AXES = {
    "batch": (nl.BatchNorm, oracles.batch_norm, "axis"),
    "layer": (nl.LayerNorm, oracles.layer_norm, "reduction_axes"),
    "root mean square": (nl.RMSNorm, oracles.rms_norm, "reduction_axes"),
}


@pytest.mark.parametrize(("layer", "oracle", "name"), ON_ANY_AXES.values(), ids=ON_ANY_AXES)
@settings(few_draws, max_examples=8)
@given(data=some.data())
def test_drawn_shapes_and_axes_agree_with_the_oracle(layer, oracle, name, data):
    shape = data.draw(arrays.array_shapes(min_dims=2, max_dims=4, min_side=2, max_side=4))
    number = some.integers(-len(shape), len(shape) - 1)
    axes = tuple(data.draw(some.lists(number, min_size=1, max_size=len(shape) - 1)))
    x, mask = normal(shape), two_of_three(shape)
    module = layer(use_running_average=False, **{name: axes})
    y, variables = jax.jit(module.init_with_output)(jax.random.key(0), x, mask=mask)
    assert_close(y, oracle(x, mask=mask, **{name: axes}))
    features = tuple(shape[axis] for axis in (oracles.positive_axes(len(shape), axes)))
    assert variables["params"]["scale"].shape == (features if name == "axis" else shape[-1:])


@every_variant
@settings(few_draws, max_examples=3)
@given(
    positions=arrays.array_shapes(min_dims=0, max_dims=2, min_side=1, max_side=4),
    examples=some.sampled_from((4, 8)),
    channels=some.sampled_from((2, 4, 6)),  # which the groups of the cases divide
)
def test_drawn_shapes_agree_with_the_oracle(case, positions, examples, channels):
    shape = (examples, *positions, channels)
    layer, x, mask = case.layer(use_running_average=False), normal(shape), two_of_three(shape)

    @jax.jit
    def run(x, mask):
        variables = layer.init(jax.random.key(0), x)
        return variables.get("params", {}), *apply(layer, variables, x, mask=mask)

    params, y, statistics = run(x, mask)
    replay = case.replay(channels)
    assert_close(y, replay.normalize(x, mask, **jax.tree.map(np.asarray, params)))
    replay.update(x, mask)
    check_statistics(statistics, replay)


# Numbers that float32 finds hard.

COLUMN = np.arange(8, dtype=np.float32).reshape(8, 1, 1)
FAR = normal(mean=1e4, deviation=1e-2)
HARD = {
    "mean 1e4 and deviation 1e-2": FAR,
    "mean -1e4 and deviation 1e-2": -FAR,
    "first example zero": np.where(COLUMN > 0, FAR, np.float32(0)),
    "first example zero and masked": np.where(COLUMN > 0, FAR, np.float32(0)),
    "first channel zero and masked": FAR * np.array([0, 1, 1, 1], np.float32),
    "channels far apart": FAR * np.array([1, -1, 1e-4, 1e3], np.float32),
    "examples far apart": FAR * 10 ** (COLUMN - 4),
    "huge scale": np.float32(1e15) * normal(),
    "tiny scale": np.float32(1e-15) * normal(),
    "zeros": np.zeros(SHAPE, np.float32),
    "constant": np.full(SHAPE, 3, np.float32),
    "constant 1e4": np.full(SHAPE, 1e4, np.float32),
    "constant channels": np.broadcast_to(np.float32([0, 1, -1e4, 1e-3]), SHAPE),
}


@every_variant
def test_hard_inputs_agree_with_the_oracle(case):
    params = parameters(case)
    for title, x in HARD.items():
        replay, mask = after_two_steps(case), (x != 0) | ("masked" not in title)
        y, statistics, *derivatives = train(case, x, mask)
        assert_finite(derivatives, title)
        expected = replay.normalize(x, mask, **params)
        np.testing.assert_allclose(
            y, expected, rtol=1e-4, atol=min(1e-4, 1e-4 * np.abs(expected).max()), err_msg=title
        )
        replay.update(x, mask)
        for name, value in replay.state.items():
            np.testing.assert_allclose(statistics[name], value, rtol=1e-4, atol=1e-4, err_msg=title)


@every_variant
def test_gradients_at_a_huge_scale_agree_with_the_oracle(case):
    """The cube of the reciprocal deviation, which a derivative may go by, is 0 in float32."""
    if case.variant == "local_response_norm":
        pytest.skip("its derivative is such a power itself")
    params, replay = parameters(case), after_two_steps(case)
    x, direction = HARD["huge scale"], 1e15 * normal(seed=3).astype(np.float64)
    _, _, (_, gradient), _ = train(case, x)

    def loss(step):
        y = replay.normalize(x + step * direction, constant_of=x, **params)
        return (normal(seed=1) * y).sum()

    expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
    limit = 1e-4 * np.linalg.norm(gradient.astype(np.float64)) * np.linalg.norm(direction)
    np.testing.assert_allclose(np.vdot(gradient, direction), expected, rtol=1e-4, atol=limit)


@every_variant
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38], ids=str)
def test_a_batch_with_non_finite_statistics_leaves_the_running_ones_alone(case, value):
    x = normal()
    x[2, 1, 3] = value
    _, statistics, *_ = train(case, x)
    jax.tree.map(np.testing.assert_array_equal, statistics, variables(case).get("batch_stats", {}))
