"""Every variant as a Flax module: one call, equality, pickling, variables and checkpoints."""

import inspect
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.cases import (
    FIRST_CASES,
    apply,
    every_case,
    every_variant,
    normal,
    train,
    variables,
)
from flax import serialization


def program(layer, **options) -> str:
    """What initialization and call compute, in words."""
    return str(
        jax.make_jaxpr(lambda key, x: layer.init_with_output(key, x, **options))(
            jax.random.key(0), normal()
        )
    )


@every_variant
def test_call_signature_is_the_same(case):
    arguments = list(inspect.signature(type(case.layer()).__call__).parameters.values())[1:]
    assert [(p.name, p.kind.name, p.default) for p in arguments] == [
        ("x", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("use_running_average", "POSITIONAL_OR_KEYWORD", None),
        ("mask", "KEYWORD_ONLY", None),
        ("scale", "KEYWORD_ONLY", None),
        ("bias", "KEYWORD_ONLY", None),
    ]


@pytest.mark.parametrize("case", [case for case in FIRST_CASES if not case.keeps_state], ids=str)
def test_layers_without_statistics_ignore_where_they_should_come_from(case):
    expected = program(case.layer())
    assert program(case.layer(use_running_average=True), use_running_average=False) == expected
    assert program(case.layer(use_running_average=False), use_running_average=True) == expected


@every_case
def test_modules_compare_hash_and_pickle(case):
    layer = case.layer(use_running_average=False)
    assert layer == case.layer(use_running_average=False)
    assert hash(layer) == hash(case.layer(use_running_average=False))
    assert layer != case.layer(use_running_average=True)
    again = pickle.loads(pickle.dumps(layer))
    assert again == layer
    assert hash(again) == hash(layer)


@every_variant
def test_a_pickled_module_computes_the_same(case):
    layer = case.layer(use_running_average=False)
    assert program(pickle.loads(pickle.dumps(layer))) == program(layer)


@every_variant
def test_initial_statistics_are_those_of_the_oracle(case):
    """In float32, whatever the input; initialization takes no statistics of its batch."""
    layer = case.layer(use_running_average=False)
    for dtype in ("float32", "bfloat16"):
        x = jnp.asarray(normal(), dtype)
        statistics = jax.jit(layer.init)(jax.random.key(0), x).get("batch_stats", {})
        assert set(statistics) == set(case.replay().state)
        for name, expected in case.replay().state.items():
            assert statistics[name].dtype == jnp.float32
            np.testing.assert_allclose(statistics[name], expected, rtol=1e-6)


@every_variant
def test_batch_statistics_need_no_mutable_collection(case):
    """The batch is normalized all the same, and nothing is kept."""
    given, layer = variables(case), case.layer(use_running_average=False)
    y, updates = jax.jit(partial(layer.apply, mutable=["intermediates"]))(given, normal())
    expected, *_ = train(case, normal())
    assert_close(y, expected)
    assert "batch_stats" not in updates


@every_variant
def test_checkpoint_round_trip(case):
    """Bytes of a trained state, read into another; layers take the NumPy arrays that come of it."""
    given = variables(case)
    _, statistics, *_ = train(case, normal())
    trained = given | ({"batch_stats": statistics} if statistics else {})
    initial = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), trained)
    restored = serialization.from_bytes(initial, serialization.to_bytes(trained))
    jax.tree.map(np.testing.assert_array_equal, restored, trained)
    assert jax.tree.structure(restored) == jax.tree.structure(trained)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(restored))
    for use_running_average in (False, True):
        layer = case.layer(use_running_average=use_running_average)
        jax.eval_shape(lambda x, layer=layer: apply(layer, restored, x), normal())
