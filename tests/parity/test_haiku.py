"""The conventions of Haiku beside Haiku, and where Haiku is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.training import (
    Trained,
    assert_same_training,
    ours,
    random_array,
    start,
    with_convention,
)

import normlab as nl

haiku = pytest.importorskip("haiku", reason="Haiku comes with the extra `parity`")

pytestmark = pytest.mark.parity


def their_layer(make, x):
    def call(x, training):
        layer = make(haiku)
        return layer(x, training) if isinstance(layer, haiku.BatchNorm) else layer(x)

    function = haiku.transform_with_state(call)
    params, state = jax.jit(function.init, static_argnums=2)(jax.random.key(0), x, True)
    ((module, shapes),) = params.items()
    names = {"scale": "scale", "offset": "bias"}
    shape = shapes["scale"].shape

    def apply(params, state, x, training):
        theirs = {key: params[name].reshape(shape) for key, name in names.items() if name in params}
        return function.apply({module: theirs}, state, None, x, training)

    return Trained(
        apply,
        start([names[key] for key in shapes], (max(shape),)),
        state,
        lambda state: {
            ours: state[f"{module}/~/{ours}_ema"]["average"].reshape(-1)
            for ours in ("mean", "var")
            if state
        },
    )


# Registered name, their layer, changes to the convention.
CASES = {
    "batch": ("batch_norm", lambda hk: hk.BatchNorm(True, True, 0.9), {"momentum": 0.9}),
    "batch, slow": ("batch_norm", lambda hk: hk.BatchNorm(True, True, 0.999), {"momentum": 0.999}),
    "layer": ("layer_norm", lambda hk: hk.LayerNorm(-1, True, True, param_axis=-1), {}),
    "group": ("group_norm", lambda hk: hk.GroupNorm(2), {"num_groups": 2}),
    "instance": ("instance_norm", lambda hk: hk.InstanceNorm(True, True), {}),
    "root mean square": ("rms_norm", lambda hk: hk.RMSNorm(-1), {}),
}


@pytest.mark.parametrize(("name", "make", "changes"), CASES.values(), ids=CASES)
def test_training(name, make, changes):
    layer, batches = with_convention("haiku", name, changes)
    assert_same_training(ours(layer, batches[0]), their_layer(make, batches[0]), batches)


def test_far_from_zero_haiku_has_a_negative_variance_and_normlab_the_right_one():
    """At mean 1e4 and deviation 1e-2, where mean(x^2) - mean(x)^2 has no digit left."""
    x = np.random.default_rng(0).normal(1e4, 1e-2, (64, 8, 6)).astype(np.float32)
    theirs = their_layer(lambda hk: hk.BatchNorm(True, True, 0.99), x)
    y, state = jax.jit(theirs.apply, static_argnames="training")(
        theirs.params, theirs.state, x, training=True
    )
    assert np.isnan(y).any()
    assert theirs.statistics(state)["var"].min() < -1
    layer = nl.BatchNorm(False, momentum=0.99, **nl.convention("haiku", "batch_norm"))
    y, variables = layer.init_with_output(jax.random.key(0), x)
    _, updates = layer.apply(variables, x, mutable=["batch_stats"])
    exact = x.astype(np.float64)
    mean, variance = exact.mean((0, 1)), exact.var((0, 1))
    np.testing.assert_allclose(y, (exact - mean) / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(updates["batch_stats"]["var"], variance, rtol=1e-4)


def test_statistics_of_bfloat16_are_rounded_to_it_by_haiku_and_not_by_normlab():
    x = jnp.asarray(random_array((6, 5, 4), mean=100), jnp.bfloat16)
    theirs = their_layer(lambda hk: hk.BatchNorm(True, True, 0.9), x)
    _, state = theirs.apply(theirs.params, theirs.state, x, training=True)
    mean = np.asarray(x, np.float64).mean((0, 1))
    kept = theirs.statistics(state)["mean"]
    assert kept.dtype == jnp.bfloat16
    assert np.abs(np.asarray(kept, np.float64) - mean).max() > 0.05
    layer = nl.BatchNorm(False, momentum=0.9, **nl.convention("haiku", "batch_norm"))
    variables = layer.init(jax.random.key(0), x)
    _, updates = layer.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(updates["batch_stats"]["mean"], mean, rtol=1e-6)
