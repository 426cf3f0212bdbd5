"""Every variant against its float64 oracle: outputs, gradients, statistics, with and without masks.

One compiled step serves all of a case; what varies are values.
"""

import hypothesis.extra.numpy as arrays
import jax
import numpy as np
import pytest
from contract.cases import (
    SHAPE,
    after_two_steps,
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


@every_variant
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(step=steps())
def test_drawn_inputs_agree_with_the_oracle(case, step):
    x, mask, seed = step
    replay = after_two_steps(case)
    y, statistics, *derivatives = train(case, x, mask, seed=seed)
    assert_close(y, replay.normalize(x, mask, **parameters(case, seed)), 1e-4)
    assert_finite(derivatives)
    replay.update(x, mask)
    check_statistics(statistics, replay, 1e-4)


# Numbers that float32 finds hard.

COLUMN = np.arange(8, dtype=np.float32).reshape(8, 1, 1)
FAR = normal(mean=1e4, deviation=1e-2)
HARD = {
    "mean 1e4 and deviation 1e-2": FAR,
    "mean -1e4 and deviation 1e-2": -FAR,
    "first example zero": np.where(COLUMN > 0, FAR, np.float32(0)),
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
        replay = after_two_steps(case)
        y, statistics, *derivatives = train(case, x)
        assert_finite(derivatives, title)
        expected = replay.normalize(x, **params)
        np.testing.assert_allclose(
            y, expected, rtol=1e-4, atol=min(1e-4, 1e-4 * np.abs(expected).max()), err_msg=title
        )
        replay.update(x)
        for name, value in replay.state.items():
            np.testing.assert_allclose(statistics[name], value, rtol=1e-4, atol=1e-4, err_msg=title)


@every_variant
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38], ids=str)
def test_a_batch_with_non_finite_statistics_leaves_the_running_ones_alone(case, value):
    x = normal()
    x[2, 1, 3] = value
    _, statistics, *_ = train(case, x)
    jax.tree.map(np.testing.assert_array_equal, statistics, variables(case).get("batch_stats", {}))
