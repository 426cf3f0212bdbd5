"""Frozen layers in training, and the masks of what is trained."""

import operator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import AS_USERS
from surgery.models import DIGITS, initial, mlp

import normlab
from normlab import surgery

X = DIGITS[:8]


@pytest.fixture(scope="module")
def trained():
    model = mlp()
    return model, initial(model, train=True, trained=True)


def assert_same(given, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), given, expected)


def train(model, variables):
    """Output, new statistics and gradients of one step of training."""

    def loss(params):
        given = {**variables, "params": params}
        y, updated = model.apply(given, X, train=True, mutable=["batch_stats"])
        return jnp.sum(y**2), (y, updated)

    step = jax.jit(jax.grad(loss, has_aux=True), compiler_options=AS_USERS)
    gradients, (y, updated) = step(variables["params"])
    return y, updated["batch_stats"], gradients


def test_frozen_statistics_normalize_in_training_and_stay(trained):
    model, variables = trained
    y, statistics, gradients = train(surgery.freeze(model, affine=False), variables)
    assert_same(y, model.apply(variables, X, train=False))
    jax.tree.map(np.testing.assert_array_equal, statistics, variables["batch_stats"])
    assert np.any(gradients["norm_0"]["scale"] != 0)


def test_a_frozen_affine_has_no_gradient_and_all_else_goes_on(trained):
    model, variables = trained
    y, statistics, gradients = train(surgery.freeze(model, statistics=False), variables)
    expected, moved, usual = train(model, variables)
    assert_same((y, statistics), (expected, moved))
    assert_same(gradients["dense_0"], usual["dense_0"])
    assert not np.any(jax.tree.leaves(gradients["norm_0"]))


def test_only_the_named_parts_are_frozen(trained):
    model, variables = trained
    _, statistics, gradients = train(surgery.freeze(model, within=["norm_0"]), variables)
    jax.tree.map(
        np.testing.assert_array_equal, statistics["norm_0"], variables["batch_stats"]["norm_0"]
    )
    assert np.all(statistics["norm_1"]["mean"] != variables["batch_stats"]["norm_1"]["mean"])
    assert not np.any(gradients["norm_0"]["bias"])
    assert np.any(gradients["norm_1"]["bias"])
    assert surgery.freeze(model, within="norm_0") == surgery.freeze(model, within=["norm_0"])


def test_the_frozen_model_has_the_variables_of_the_model(trained):
    model, _ = trained
    frozen = surgery.freeze(model)
    given = jax.eval_shape(partial(frozen.init, train=True), jax.random.key(0), X)
    expected = jax.eval_shape(partial(model.init, train=True), jax.random.key(0), X)
    assert given == expected
    assert frozen == surgery.freeze(model)
    assert hash(frozen) == hash(surgery.freeze(model))


def test_surgery_goes_on_with_a_frozen_model(trained):
    model, variables = trained
    frozen = surgery.freeze(model)
    adapted = surgery.adapt(frozen, variables, X, prior_strength=0)
    assert_same(adapted, surgery.adapt(model, variables, X, prior_strength=0))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return normlab.BatchNorm()(nn.Dense(3)(x), use_running_average=not train)


Compiled = nn.jit(Block, static_argnums=(2,))


class Jitted(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return Compiled()(x, train)


def test_nn_jit_inside_the_model_does_not_reuse_what_it_compiled_for_the_other():
    model, x = Jitted(), X.reshape(8, -1)
    variables = initial(model, x, train=True, trained=True)
    apply = partial(model.apply, variables, x, True, mutable=["batch_stats"])
    before, _ = apply()
    y, _ = surgery.freeze(model).apply(variables, x, True, mutable=["batch_stats"])
    assert_same(y, model.apply(variables, x, False))
    np.testing.assert_array_equal(apply()[0], before)


@pytest.mark.parametrize("affine", [True, False])
def test_the_mask_tells_an_optimizer_what_to_leave(trained, affine):
    model, variables = trained
    params = variables["params"]
    layers = surgery.find_layers(model, variables, X)
    mask = surgery.trainable_mask(params, layers, affine=affine, rest=not affine)
    optimizer = optax.transforms.selective_transform(
        optax.adamw(0.1, weight_decay=0.1), freeze_mask=jax.tree.map(operator.not_, mask)
    )
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    for name, update in updates.items():
        decayed = {leaf: bool(jnp.any(value != 0)) for leaf, value in update.items()}
        if name.startswith("norm"):
            assert set(decayed.values()) == {affine}
        else:
            assert decayed["kernel"] is not affine


def test_nothing_to_freeze_is_refused(trained):
    with pytest.raises(ValueError, match="leave nothing to freeze"):
        surgery.freeze(trained[0], statistics=False, affine=False)
