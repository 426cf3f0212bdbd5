"""Folded and converted NNX models, against the models that they were."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from leaks import checking_leaks

import normlab
from normlab import surgery

DRAW = np.random.default_rng(0)
X = jnp.asarray(DRAW.normal(1, 2, (8, 6, 4)), jnp.float32)


def randomized(model):
    """Draws what the layers have learned and kept."""
    draw = np.random.default_rng(1)
    for layer in surgery.nnx.find_layers(model).values():
        for name in ("scale", "bias", "mean", "var"):
            variable = getattr(layer, name, None)
            if isinstance(variable, nnx.Variable):
                variable.set_value(jnp.asarray(draw.uniform(0.3, 3, variable.shape), jnp.float32))
    model.eval()
    return model


class Net(nnx.Module):
    def __init__(self, norm=normlab.nnx.BatchNorm, linear=None, way="straight"):
        rngs = nnx.Rngs(0)
        self.way = way
        make = linear or partial(nnx.Linear, 4, 5, use_bias=False)
        self.first = nnx.List([make(rngs=rngs), norm(5, rngs=rngs)])
        self.second = nnx.Linear(5, 5, rngs=rngs)
        self.norms = nnx.Dict(last=norm(5, rngs=rngs))

    def __call__(self, x):
        y = self.first[0](x)
        x = nnx.relu(self.first[1](nnx.relu(y) if self.way == "activation" else y))
        if self.way == "shortcut":
            x = x + y
        y = self.norms.last(self.second(x))
        return y @ self.second.kernel[...].T if self.way == "tied" else y


LINEAR = {
    "dense": None,
    "general": partial(nnx.LinearGeneral, (4,), (5,), axis=(-1,)),
    "convolution": partial(nnx.Conv, 4, 5, (3,)),
    "transposed": partial(nnx.ConvTranspose, 4, 5, (3,), transpose_kernel=True, use_bias=False),
}


@pytest.mark.parametrize("norm", [normlab.nnx.BatchNorm, nnx.BatchNorm, normlab.nnx.BatchRenorm])
@pytest.mark.parametrize("linear", LINEAR)
def test_the_folded_model_is_the_same_without_its_norms(linear, norm):
    model = randomized(Net(norm, LINEAR[linear]))
    expected = model(X)
    assert surgery.nnx.fold(model, X) == ("first/1", "norms/last")
    assert not surgery.nnx.find_layers(model)
    np.testing.assert_allclose(model(X), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(model, X), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(nnx.clone(model)(X), expected, rtol=1e-4, atol=1e-4)
    assert not jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    model.train()
    with pytest.raises(ValueError, match="is folded into the layer before it"):
        model(X)


class Own(nnx.BatchNorm):
    """Does something else."""

    def __call__(self, x, use_running_average=None, *, mask=None):
        return super().__call__(x, use_running_average, mask=mask) ** 2


REFUSED = {
    "an activation between": (Net, {"way": "activation"}, "first/1: its input comes from relu"),
    "a shortcut": (Net, {"way": "shortcut"}, "output of first/0 is used for something else"),
    "a kernel used again": (Net, {"way": "tied"}, "kernel or bias of second are used for"),
    "other statistics": (Net, {"norm": normlab.nnx.LayerNorm}, "LayerNorm is not one scale"),
    "a layer of the user's": (Net, {"norm": Own}, "Own is not one scale and one shift"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_would_not_be_the_same_model_is_refused_and_left(why):
    make, fields, message = REFUSED[why]
    model = randomized(make(**fields))
    expected = model(X)
    with pytest.raises(ValueError, match=f"(?s)^fold: .*{message}"):
        surgery.nnx.fold(model, X)
    np.testing.assert_array_equal(model(X), expected)


def test_without_strict_other_norms_stay_and_so_does_a_frozen_one_fold():
    model = randomized(Net(way="activation"))
    surgery.nnx.freeze(model)
    expected = model(X)
    with checking_leaks():
        assert surgery.nnx.fold(model, X, strict=False) == ("norms/last",)
    np.testing.assert_allclose(model(X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("x", [None, X])
def test_conversion_takes_over_what_both_have(x):
    source = randomized(Net())
    target = Net(normlab.nnx.DynamicTanh)
    alpha = np.asarray(target.norms.last.alpha[...])
    converted = surgery.nnx.convert(source, target, x)
    np.testing.assert_array_equal(target.first[0].kernel[...], source.first[0].kernel[...])
    np.testing.assert_array_equal(target.norms.last.scale[...], source.norms.last.scale[...])
    np.testing.assert_array_equal(target.norms.last.alpha[...], alpha)
    assert converted.paths("new") == ("params/first/1/alpha", "params/norms/last/alpha")
    assert "batch_stats/norms/last/var" in converted.paths("dropped")
    assert "BatchNorm to DynamicTanh" in str(converted)
    target(X)


def test_conversion_between_libraries_is_the_same_model():
    source = randomized(Net(nnx.BatchNorm))
    target = Net(normlab.nnx.BatchNorm)
    converted = surgery.nnx.convert(source, target, X)
    assert not converted.paths("new")
    assert not converted.paths("dropped")
    target.eval()
    np.testing.assert_allclose(target(X), source(X), rtol=1e-5, atol=1e-5)


def test_a_scale_kept_less_one_is_carried_as_what_it_means():
    source = randomized(Net(normlab.nnx.RMSNorm))
    target = Net(partial(normlab.nnx.RMSNorm, zero_centred=True))
    surgery.nnx.convert(source, target)
    np.testing.assert_allclose(
        target.norms.last.scale[...], source.norms.last.scale[...] - 1, rtol=1e-6
    )
    np.testing.assert_allclose(target(X), source(X), rtol=1e-5, atol=1e-5)


def test_models_of_linen_are_refused():
    linen = nn.Dense(3)
    for function in (
        lambda: surgery.nnx.fold(linen, X),
        lambda: surgery.nnx.convert(linen, Net()),
        lambda: surgery.nnx.convert(Net(), linen),
    ):
        with pytest.raises((ValueError, TypeError)):
            function()


# At a learning rate of 0 the state of an optimizer moves alone.
OPTIMIZERS = {
    "momentum": optax.sgd(0.0, momentum=0.9),
    "adam, clipped": optax.chain(optax.clip_by_global_norm(100.0), optax.adam(0.0)),
}


def gradient(model, scale=1.0):
    def loss(model):
        return scale * jnp.mean(jnp.cos(model(X)))

    return nnx.grad(loss)(model)


def with_three_gradients(model, name, kind=nnx.Optimizer):
    optimizer = kind(model, OPTIMIZERS[name], wrt=nnx.Param)
    for scale in (1.0, 0.5, 2.0):
        nnx.Optimizer.update(optimizer, model, gradient(model, scale))
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_of_a_folded_model_has_the_state_of_its_own_gradients(name):
    """Of an nnx.Optimizer, fold said `unexpected keyword 'optimizer'`."""
    model = randomized(Net(linear=LINEAR["convolution"]))
    optimizer = with_three_gradients(model, name)
    surgery.nnx.fold(model, X, optimizer=optimizer)
    found = nnx.as_pure(optimizer.opt_state)
    expected = nnx.as_pure(with_three_gradients(model, name).opt_state)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    nnx.jit(lambda o, m: o.update(m, gradient(m)))(optimizer, model)
    assert optimizer.step[...] == 4


@pytest.mark.parametrize("kind", [nnx.Optimizer, nnx.ModelAndOptimizer])
def test_conversion_gives_the_target_an_optimizer_that_goes_on(kind):
    source, target = randomized(Net()), Net(normlab.nnx.DynamicTanh)
    optimizer = with_three_gradients(source, "momentum", kind)
    converted = surgery.nnx.convert(source, target, X, optimizer=optimizer)
    going_on = converted.optimizer_state
    assert type(going_on) is kind
    assert going_on.step[...] == optimizer.step[...] == 3
    old, new = optimizer.opt_state[0].trace, going_on.opt_state[0].trace
    for of in (old, new):
        assert np.any(of["second"]["kernel"][...])
    np.testing.assert_array_equal(new["second"]["kernel"][...], old["second"]["kernel"][...])
    np.testing.assert_array_equal(new["first"][1]["scale"][...], old["first"][1]["scale"][...])
    assert not np.any(new["first"][1]["alpha"][...])
    assert "optimizer_state/0/trace/first/1/alpha" in converted.paths("new")
    nnx.Optimizer.update(going_on, target, gradient(target))


def test_an_optimizer_that_cannot_follow_leaves_model_and_optimizer():
    model = randomized(Net())
    transformation = optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9))
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    nnx.Optimizer.update(optimizer, model, gradient(model))
    expected = model(X)
    with pytest.raises(ValueError, match="no power of the gradient of first/0/kernel alone"):
        surgery.nnx.fold(model, X, optimizer=optimizer)
    np.testing.assert_array_equal(model(X), expected)


def test_an_optimizer_without_its_state_is_refused(without_type_checks):
    model = randomized(Net())
    for function in (partial(surgery.nnx.fold, model), partial(surgery.nnx.convert, model, Net())):
        with pytest.raises(ValueError, match=r"but for a model of Flax NNX an nnx.Optimizer was"):
            function(X, optimizer=optax.adam(1e-3))


def test_layers_within_a_transformation_are_refused_with_a_remedy():
    """What to do about it was not said."""

    class Within(Net):
        def __call__(self, x):
            return nnx.remat(Net.__call__)(self, x)

    with pytest.raises(ValueError, match="Give a model that calls it as it is: without jit"):
        surgery.nnx.fold(randomized(Within()), X)
