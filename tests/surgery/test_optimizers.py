"""What becomes of an optimizer's state when its model is folded or converted."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from flax.core import FrozenDict
from flax.training import train_state
from surgery.models import DIGITS, initial, mlp

import normlab
from normlab import surgery

X = DIGITS[:16]
LABELS = jnp.arange(16) % 3


class TrainState(train_state.TrainState):
    batch_stats: Any = struct.field(default_factory=dict)


def loss(model, params, rest):
    logits = model.apply({"params": params, **rest}, X, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def trained(optimizer, frozen=False, norm=normlab.BatchNorm):
    """A model, its variables and the state of an optimizer that has seen three gradients there."""
    model = mlp(norm)
    variables = initial(model, train=True, trained=True)
    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
    params = FrozenDict(params) if frozen else params
    state = optimizer.init(params)
    for scale in (1.0, 0.5, 2.0):
        gradients = jax.jit(jax.grad(partial(loss, model)))(params, rest)
        gradients = jax.tree.map(lambda leaf, scale=scale: leaf * scale, gradients)
        _, state = optimizer.update(gradients, state, params)
    return model, {**variables, "params": params}, state


OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(1e-3),
    "adamw, clipped": optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(1e-3)),
    "amsgrad": optax.amsgrad(1e-3),
    "parts": optax.multi_transform(
        {"a": optax.adam(1e-3), "b": optax.sgd(0.1, momentum=0.9)},
        partial(
            jax.tree_util.tree_map_with_path,
            lambda path, _: "a" if path[0].key == "dense_0" else "b",
        ),
    ),
    "hyperparameters": optax.inject_hyperparams(optax.adam)(1e-3),
}


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw, clipped", "amsgrad"])
def test_the_state_of_folded_weights_is_that_of_their_own_gradients(name):
    """The folded model, with the same loss, gives the state that was carried, step for step."""
    optimizer = OPTIMIZERS[name]
    model, variables, state = trained(optimizer)
    folded, inner, carried = surgery.fold(
        model, variables, X, optimizer=optimizer, optimizer_state=state
    )
    expected = optimizer.init(inner["params"])
    for scale in (1.0, 0.5, 2.0):
        gradients = jax.grad(partial(loss, folded))(inner["params"], {})
        gradients = jax.tree.map(lambda leaf, scale=scale: leaf * scale, gradients)
        _, expected = optimizer.update(gradients, expected, inner["params"])
    assert jax.tree.structure(carried) == jax.tree.structure(expected)
    for given, wanted in zip(jax.tree.leaves(carried), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())


def test_where_the_scale_is_zero_the_state_begins_anew():
    optimizer = optax.sgd(0.1, momentum=0.9)
    model, variables, state = trained(optimizer)
    scale = variables["params"]["norm_0"]["scale"]
    variables["params"]["norm_0"]["scale"] = scale.at[1].set(0)
    _, _, carried = surgery.fold(model, variables, X, optimizer=optimizer, optimizer_state=state)
    kernel = carried[0].trace["dense_0"]["kernel"]
    assert np.all(kernel[:, 1] == 0)
    assert np.all(np.isfinite(kernel))
    assert np.any(kernel[:, 0] != 0)


NOT_POWERS = {
    "weight decay before momentum": optax.chain(
        optax.add_decayed_weights(1e-2), optax.trace(0.9), optax.scale(-0.1)
    ),
    "an initial sum": optax.adagrad(0.1),
    "an epsilon in the maximum": optax.adamax(1e-3),
    "factors": optax.adafactor(1e-3, min_dim_size_to_factor=2),
}


@pytest.mark.parametrize("name", NOT_POWERS)
def test_what_cannot_be_rescaled_is_refused(name):
    optimizer = NOT_POWERS[name]
    model, variables, state = trained(optimizer)
    with pytest.raises(ValueError, match=r"no power of the gradient.*begin its state anew"):
        surgery.fold(model, variables, X, optimizer=optimizer, optimizer_state=state)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_conversion_carries_the_state_of_what_it_carries(name, frozen):
    """The optimizer had to begin anew, with all its momentum lost."""
    optimizer = OPTIMIZERS[name]
    model, variables, state = trained(optimizer, frozen)
    target = mlp(partial(normlab.DynamicTanh))
    converted = surgery.convert(
        model, variables, target, X, optimizer=optimizer, optimizer_state=state
    )
    params, new = converted.variables["params"], converted.optimizer_state
    assert jax.tree.structure(new) == jax.tree.structure(optimizer.init(params))
    optimizer.update(params, new, params)
    fresh = [path for path in converted.paths("new") if path.startswith("optimizer_state")]
    assert fresh
    assert all(path.endswith("alpha") for path in fresh)
    old = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}
    for path, leaf in jax.tree.leaves_with_path(new):
        at = jax.tree_util.keystr(path)
        expected = np.zeros_like(leaf) if "alpha" in at else old[at]
        np.testing.assert_array_equal(leaf, expected)
    assert "optimizer_state" in str(converted)


def test_a_state_of_training_comes_back_as_one():
    """States of training had to be taken apart, and their optimizer begun anew."""
    optimizer = optax.adam(1e-3)
    model, variables, state = trained(optimizer)
    given = TrainState(
        step=jnp.asarray(3),
        apply_fn=model.apply,
        params=variables["params"],
        tx=optimizer,
        opt_state=state,
        batch_stats=variables["batch_stats"],
    )
    target = mlp(partial(normlab.GroupNorm, num_groups=1))
    converted = surgery.convert(model, given, target, X)
    new = converted.variables
    assert isinstance(new, TrainState)
    assert new.step == 3
    assert new.batch_stats == {}
    assert converted.optimizer_state is new.opt_state
    np.testing.assert_array_equal(
        new.opt_state[0].mu["dense_1"]["kernel"], state[0].mu["dense_1"]["kernel"]
    )
    moved = new.apply_gradients(grads=new.params)
    assert moved.apply_fn({"params": moved.params}, X, train=False).shape == (16, 3)
    folded, inner = surgery.fold(model, given, X)
    assert isinstance(inner, TrainState)
    assert inner.batch_stats == {}
    y = inner.apply_fn({"params": inner.params}, X, train=False)
    np.testing.assert_allclose(y, model.apply(variables, X, train=False), rtol=1e-3, atol=1e-4)
    assert inner.apply_fn == folded.apply or inner.apply_fn.__self__ == folded
    inner.apply_gradients(grads=inner.params)
    for result in (
        surgery.recalibrate(model, given, [X]),
        surgery.adapt(model, given, X, prior_strength=1),
        surgery.tent(model, given, X, optax.sgd(0.1)).variables,
    ):
        assert isinstance(result, TrainState)
        assert result.opt_state is state
        assert np.any(
            result.batch_stats["norm_0"]["mean"] != variables["batch_stats"]["norm_0"]["mean"]
        )
    assert len(surgery.summary(model, given, X).layers) == 2


class Averaging(TrainState):
    ema_params: Any = None


def test_half_of_an_optimizer_is_refused_and_so_is_one_of_other_parameters():
    optimizer = optax.adam(1e-3)
    model, variables, state = trained(optimizer)
    with pytest.raises(ValueError, match=r"optimizer is missing.*optimizer="):
        surgery.convert(model, variables, model, X, optimizer_state=state)
    with pytest.raises(ValueError, match="optimizer_state is missing"):
        surgery.fold(model, variables, X, optimizer=optimizer)
    with pytest.raises(ValueError, match="not one of this optimizer"):
        surgery.convert(model, variables, model, X, optimizer=optax.sgd(0.1), optimizer_state=state)
    averaging = Averaging.create(
        apply_fn=model.apply,
        tx=optimizer,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        ema_params=variables["params"],
    )
    with pytest.raises(ValueError, match="ema_params of the state has the structure"):
        surgery.fold(model, averaging, X)
    plain = train_state.TrainState.create(
        apply_fn=model.apply, tx=optimizer, params=variables["params"]
    )
    with pytest.raises(ValueError, match="has no field for the collection batch_stats"):
        surgery.recalibrate(model, plain, [X])
