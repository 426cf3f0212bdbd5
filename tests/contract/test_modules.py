"""Every variant as a Flax module: one call, equality, pickling, variables and checkpoints."""

import inspect
import pickle
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.cases import (
    FIRST_CASES,
    SHAPE,
    apply,
    assert_close,
    every_case,
    every_variant,
    normal,
    train,
    variables,
)
from flax import linen as nn
from flax import serialization

import normlab


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


def test_layers_that_contain_their_activation_say_so():
    """Models skip theirs after them."""
    containing = [
        case.variant
        for case in FIRST_CASES
        if case.oracle and getattr(case.layer(), "includes_activation", False)
    ]
    assert containing == ["evonorm_b0", "filter_response_norm", "evonorm_s0", "proxy_norm"]
    assert not normlab.FilterResponseNorm(use_threshold=False).includes_activation


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


class Block(nn.Module):
    """A model that takes any norm and knows nothing of its kind."""

    norm: Any

    @nn.compact
    def __call__(self, x, train):
        norm = partial(self.norm, use_running_average=not train)
        return nn.relu(norm(name="norm")(nn.Dense(4, use_bias=False)(x)))


@every_variant
def test_any_variant_serves_as_the_norm_of_a_model(case):
    """With the parameters and statistics that it starts with."""
    model, x = Block(case.layer), normal()

    @jax.jit
    def start(key, x):
        variables = model.init(key, x, train=True)
        return variables, *model.apply(variables, x, train=True, mutable=["batch_stats"])

    variables, y, updates = start(jax.random.key(0), x)
    params = jax.tree.map(np.asarray, variables["params"])
    expected = x.astype(np.float64) @ params["Dense_0"]["kernel"]
    expected = np.maximum(case.replay().normalize(expected, **params.get("norm", {})), 0)
    assert_close(y, expected)
    assert ("batch_stats" in updates) == case.keeps_state
    evaluated = jax.eval_shape(partial(model.apply, train=False), {**variables, **updates}, x[:1])
    assert evaluated.shape == (1, *SHAPE[1:])


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
    """Neither mutable nor, but where they correct the batch's, even there."""
    given, layer = variables(case), case.layer(use_running_average=False)
    run = partial(layer.apply, mutable=["intermediates"])
    y, updates = jax.eval_shape(run, given, normal())
    assert y.shape == SHAPE
    assert "batch_stats" not in updates
    if case.variant != "batch_renorm":
        assert jax.eval_shape(layer.apply, {"params": given["params"]}, normal()).shape == SHAPE


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
