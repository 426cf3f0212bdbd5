"""Inputs of every rank, dtype and number of examples, and scale and bias given at the call."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.cases import (
    CASES,
    SHAPE,
    after_two_steps,
    apply,
    as_arrays,
    assert_close,
    every_variant,
    normal,
    parameters,
    train,
    two_of_three,
    variables,
)

SQUASHING = ("dynamic_tanh", "dynamic_erf")
RANKS_AND_DTYPES = [((8, 4), "bfloat16"), ((8, 2, 3, 4), "float16")]


@every_variant
def test_ranks_and_dtypes_agree_with_the_oracle(case):
    """Half precision input has statistics of its own values in float32. Rank 3 in single, double
    and complex precision is what the other tests take.
    """
    layer, given, params = case.layer(use_running_average=False), variables(case), parameters(case)
    batches = [jnp.asarray(normal(s, mean=20.0), d) for s, d in RANKS_AND_DTYPES]
    results = jax.jit(lambda batches: [apply(layer, given, x) for x in batches])(batches)
    for x, (y, statistics) in zip(batches, results, strict=True):
        replay, message = after_two_steps(case), f"{x.dtype}{x.shape}"
        result_type = jnp.result_type(x.dtype, *(p.dtype for p in affine_parameters(params)))
        assert y.dtype == result_type, message
        x = np.asarray(x, np.float64)
        tolerance = max(1e-5, float(jnp.finfo(y.dtype).eps))
        assert_close(np.asarray(y, np.float64), replay.normalize(x, **params), tolerance)
        replay.update(x)
        for name, value in replay.state.items():
            assert statistics[name].dtype == jnp.float32
            assert_close(statistics[name], value, message=message)


def affine_parameters(params):
    return [params[name] for name in ("scale", "bias") if name in params]


@every_variant
def test_complex_input_agrees_with_the_oracle_or_is_refused(case):
    x = normal() + 1j * normal(seed=1)
    layer = case.layer(use_running_average=False)
    # What has an order or a real-valued activation in it; a threshold is both.
    refused = getattr(layer, "includes_activation", False) or case.variant in SQUASHING
    x = x.astype(np.complex64)
    try:
        initial = jax.eval_shape(layer.init, jax.random.key(0), x)
    except ValueError as error:
        assert "complex" in str(error)  # noqa: PT017
        assert refused
        return
    assert not refused
    params, replay = parameters(case), case.replay()
    statistics = {
        name: jnp.asarray(value, initial["batch_stats"][name].dtype)
        for name, value in replay.state.items()
    }
    given = {"params": params} | ({"batch_stats": statistics} if statistics else {})
    y, new = jax.jit(partial(apply, layer))(given, x)
    assert y.dtype == jnp.complex64
    assert_close(y, replay.normalize(x, **params))
    replay.update(x)
    for name, value in replay.state.items():
        assert_close(new[name], value, message=name)


@every_variant
@pytest.mark.parametrize(
    ("x", "parameter", "dtype", "expected"),
    [
        ("float32", "float32", None, "float32"),
        ("bfloat16", "float32", None, "float32"),
        ("bfloat16", "bfloat16", None, "bfloat16"),
        ("float32", "bfloat16", None, "float32"),
        ("int32", "bfloat16", None, "bfloat16"),
        ("float32", "float32", "bfloat16", "bfloat16"),
        ("bfloat16", "bfloat16", "float32", "float32"),
    ],
)
def test_output_type_is_that_of_input_scale_and_bias_unless_given(
    case, x, parameter, dtype, expected
):
    layer = case.layer(use_running_average=False, dtype=dtype and jnp.dtype(dtype))
    x, parameter = jax.ShapeDtypeStruct(SHAPE, x), jax.ShapeDtypeStruct(SHAPE[-1:], parameter)
    y, statistics = jax.eval_shape(
        lambda given, x, p: apply(layer, given, x, scale=p, bias=p), variables(case), x, parameter
    )
    assert y.dtype == expected
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(statistics))


def in_training_and_evaluation(case, given, x):
    """Compiled together: output and statistics of training, output of evaluation."""

    @jax.jit
    def run(given, x):
        y, statistics = apply(case.layer(use_running_average=False), given, x)
        if not case.keeps_state:  # Then evaluation is training.
            return y, statistics, y
        return y, statistics, case.layer(use_running_average=True).apply(given, x)

    return run(given, x)


@every_variant
def test_an_empty_batch_changes_nothing(case):
    x, given = normal((0, *SHAPE[1:])), variables(case)
    y, statistics, evaluated = in_training_and_evaluation(case, given, x)
    assert y.shape == evaluated.shape == x.shape
    jax.tree.map(np.testing.assert_array_equal, statistics, given.get("batch_stats", {}))


@every_variant
def test_a_single_example_agrees_with_the_oracle(case):
    """It has positions to take statistics over."""
    x, params, replay = normal((1, *SHAPE[1:])), parameters(case), after_two_steps(case)
    y, statistics, evaluated = in_training_and_evaluation(case, variables(case), x)
    assert_close(y, replay.normalize(x, **params))
    assert_close(evaluated, replay.evaluate(x, **params))
    replay.update(x)
    for name, value in replay.state.items():
        assert_close(statistics[name], value)


@every_variant
def test_a_single_value_per_channel_is_normalized_or_refused(case):
    """Refused in training where its variance would always be 0."""
    x, given = normal((1, SHAPE[-1])), variables(case)
    try:
        jax.eval_shape(partial(apply, case.layer(use_running_average=False)), given, x)
    except ValueError as error:
        assert case.keeps_state
        assert case.variant != "batch_group_norm"  # which pools the channels of a group
        assert "single value" in str(error)  # noqa: PT017
        y = jax.jit(case.layer(use_running_average=True).apply)(given, x)
    else:
        assert not case.keeps_state or case.variant == "batch_group_norm"
        normalized, _, y = in_training_and_evaluation(case, given, x)
        assert_close(normalized, after_two_steps(case).normalize(x, **parameters(case)))
    assert_close(y, after_two_steps(case).evaluate(x, **parameters(case)))


@pytest.mark.parametrize("case", [case for case in CASES if case.keeps_state], ids=str)
def test_evaluation_agrees_with_the_oracle(case):
    """Statistics are read as they stand and left alone, whatever is masked."""
    x, given, params = normal(mean=2.0), variables(case), parameters(case)
    layer, replay = case.layer(use_running_average=True), after_two_steps(case)
    mask = two_of_three()

    @jax.jit
    def run(given, x, mask):
        return apply(layer, given, x), layer.apply(given, x, mask=mask)

    (y, statistics), masked = run(given, x, mask)
    assert_close(y, replay.evaluate(x, **params), message="not masked")
    assert_close(masked, replay.evaluate(x, mask, **params), message="masked")
    jax.tree.map(np.testing.assert_array_equal, statistics, given["batch_stats"])


# Scale, bias and mask at the call.

FITTING = [(4,), (8, 1, 4), SHAPE, (1, 3, 1)]


@every_variant
def test_scale_and_bias_at_the_call_replace_the_learned_ones(case):
    """Which then are neither created nor read, and need not be learned at all; alone or both."""
    x, params, replay = normal(), parameters(case), after_two_steps(case)
    others = {name: value for name, value in params.items() if name not in ("scale", "bias")}
    given = variables(case) | {"params": as_arrays(others)}
    pairs = [(normal(shape, seed=2), normal(shape, seed=3)) for shape in FITTING]
    scale, bias = pairs[0]
    layer = case.layer(use_running_average=False)
    created = jax.eval_shape(partial(layer.init, scale=scale, bias=bias), jax.random.key(0), x)
    assert set(created.get("params", {})) == set(others)
    neither = {name: False for name in ("use_scale", "use_bias") if case.has_field(name)}
    without = case.layer(use_running_average=False, **neither)

    @jax.jit
    def run(pairs):
        alone = apply(layer, variables(case), x, scale=scale)[0]
        return [apply(without, given, x, scale=s, bias=b)[0] for s, b in pairs], alone

    results, alone = run(pairs)
    for (s, b), y in zip(pairs, results, strict=True):
        assert_close(y, replay.normalize(x, scale=s, bias=b, **others), message=str(s.shape))
    assert_close(alone, replay.normalize(x, **params | {"scale": scale}))


@every_variant
@pytest.mark.parametrize("argument", ["scale", "bias"])
def test_scale_and_bias_of_other_shapes_are_errors(case, argument):
    layer = case.layer(use_running_average=False)
    for shape in [(1,), (3, 4), (2, 1, 4), (1, *SHAPE)]:
        with pytest.raises(ValueError, match=argument) as error:
            jax.eval_shape(
                partial(layer.init, **{argument: np.ones(shape, np.float32)}),
                jax.random.key(0),
                normal(),
            )
        assert str(SHAPE) in str(error.value)
        assert str(shape) in str(error.value)


@every_variant
def test_masks_broadcast_as_numpy_has_it(case):
    x, given, layer = normal(), variables(case), case.layer(use_running_average=False)
    mask = two_of_three((3, 1))
    y, statistics = jax.jit(partial(apply, layer))(given, x, mask=mask)
    expected, expected_statistics, *_ = train(case, x, mask)
    assert_close(y, expected)
    jax.tree.map(assert_close, statistics, expected_statistics)
