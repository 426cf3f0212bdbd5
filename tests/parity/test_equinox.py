"""The conventions of Equinox beside Equinox, and where Equinox is wrong.

Its layers take one example, channels first; those of the batch are told of it by `vmap`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.training import (
    Trained,
    assert_close,
    assert_same_training,
    ours,
    random_array,
    spectrally_normalized,
    start,
    weight_normalized,
    with_convention,
)

import normlab as nl

equinox = pytest.importorskip("equinox", reason="Equinox comes with the extra `parity`")

pytestmark = pytest.mark.parity


def with_parameters(layer, params):
    names = {"weight": "scale", "bias": "bias"}
    names = {key: name for key, name in names.items() if getattr(layer, key) is not None}
    return equinox.tree_at(
        lambda layer: [getattr(layer, key) for key in names],
        layer,
        [params[name] for name in names.values()],
    )


def learned(layer):
    names = {"scale": layer.weight, "bias": layer.bias}
    names = [name for name, value in names.items() if value is not None]
    return start(names, layer.weight.shape)


def without_state(layer, call):
    def apply(params, state, x, training):
        del training
        return call(with_parameters(layer, params), x), state

    return Trained(apply, learned(layer), {})


def at_positions(layer):
    """A layer that is called on the channels of every position."""
    return without_state(
        layer, lambda layer, x: jax.vmap(layer)(x.reshape(-1, x.shape[-1])).reshape(x.shape)
    )


def on_examples(layer):
    """A layer that is called on every example, whose channels come first."""
    return without_state(
        layer, lambda layer, x: jnp.moveaxis(jax.vmap(layer)(jnp.moveaxis(x, -1, 1)), 1, -1)
    )


def batch_norm(**fields):
    """Batch normalization in the mode "batch", with what is wrong in it set right.

    Its running variance starts at 1 and is divided by 1 - momentum^n all the same, so
    momentum^n is taken off before.
    """
    layer, state = equinox.nn.make_with_state(equinox.nn.BatchNorm)(
        4, axis_name="batch", mode="batch", **fields
    )

    def corrected(state):
        left = layer.momentum ** state.get(layer.batch_counter)
        mean, var = state.get(layer.batch_state_index)
        return left, mean, var - left

    def statistics(state):
        left, mean, var = corrected(state)
        return {"mean": mean / (1 - left), "var": var / (1 - left)}

    def apply(params, state, x, training):
        if not training:
            state = state.set(layer.batch_state_index, corrected(state)[1:])
        return run(with_parameters(layer, params), state, x, training)

    return Trained(apply, learned(layer), state, statistics)


def run(layer, state, x, training):
    """Calls batch normalization on a batch with the channels last."""
    y, state = jax.vmap(
        lambda x, state: layer(x, state, inference=not training),
        axis_name="batch",
        in_axes=(0, None),
        out_axes=(0, None),
    )(jnp.moveaxis(x, -1, 1), state)
    return jnp.moveaxis(y, 1, -1), state


# Registered name, their layer, changes to the convention, parameters given at the call.
CASES = {
    "batch, fast": ("batch_norm", lambda nn: batch_norm(momentum=0.5), {"momentum": 0.5}, ()),
    "layer": ("layer_norm", lambda nn: at_positions(nn.LayerNorm(4)), {}, ()),
    "group": ("group_norm", lambda nn: on_examples(nn.GroupNorm(2, 4)), {"num_groups": 2}, ()),
    "root mean square, bias": (
        "rms_norm",
        lambda nn: at_positions(nn.RMSNorm(4)),
        {},
        ("bias",),
    ),
    "root mean square": (
        "rms_norm",
        lambda nn: at_positions(nn.RMSNorm(4, use_bias=False)),
        {},
        (),
    ),
}


@pytest.mark.parametrize(("name", "make", "changes", "given"), CASES.values(), ids=CASES)
def test_training(name, make, changes, given):
    layer, batches = with_convention("equinox", name, changes)
    assert_same_training(ours(layer, batches[0], given), make(equinox.nn), batches)


def test_batch_norm_with_its_momentum():
    """On variances that are not small: the 1 that theirs starts from costs it digits."""
    batches = random_array((4, 6, 3, 5, 4))
    layer = nl.BatchNorm(**nl.convention("equinox", "batch_norm"))
    assert_same_training(ours(layer, batches[0]), batch_norm(), batches)


def test_weight_norm():
    """Beside a linear layer of 4 inputs and outputs, whose weights lie the other way round."""
    theirs = equinox.nn.WeightNorm(equinox.nn.Linear(4, 4, key=jax.random.key(0)))
    shapes = {"kernel": (4, 4), "scale": (4,), "bias": (4,)}
    params = {name: jnp.asarray(random_array(shape, 1)) for name, shape in shapes.items()}

    def call(params, state, x, training):
        del training
        layer = equinox.tree_at(
            lambda layer: (layer.layer.weight, layer.g, layer.layer.bias),
            theirs,
            (params["kernel"].T, params["scale"][:, None], params["bias"]),
        )
        return jax.vmap(layer)(x), state

    batches = random_array((4, 6, 4))
    ours_here = weight_normalized("equinox", params)
    assert_same_training(ours_here, Trained(call, params, {}), batches)


def test_spectral_norm_once_it_has_settled():
    linear = equinox.nn.Linear(4, 4, key=jax.random.key(0))
    layer, state = equinox.nn.make_with_state(equinox.nn.SpectralNorm)(
        linear, "weight", key=jax.random.key(1)
    )
    x = random_array((6, 4))
    call = jax.jit(jax.vmap(layer, in_axes=(0, None), out_axes=(0, None)))
    for _ in range(50):
        theirs, state = call(x, state)
    ours_here = spectrally_normalized("equinox", linear.weight.T, linear.bias, x)
    assert_close(ours_here, theirs)


def test_a_variance_that_starts_at_one_is_debiased_by_equinox_as_if_it_had_started_at_zero():
    """The same batch again and again: the running variance should be its own from the first."""
    x = random_array((8, 5, 4))
    variance = x.astype(np.float64).var((0, 1))
    theirs, state = equinox.nn.make_with_state(equinox.nn.BatchNorm)(
        4, axis_name="batch", mode="batch"
    )
    layer = nl.BatchNorm(False, **nl.convention("equinox", "batch_norm"))
    variables = layer.init(jax.random.key(0), x)
    their_step = jax.jit(lambda state: run(theirs, state, x, training=True)[1])
    step = jax.jit(lambda variables: layer.apply(variables, x, mutable=["batch_stats"])[1])
    excess = {}
    for updates in range(1, 101):
        state, variables = their_step(state), variables | step(variables)
        np.testing.assert_allclose(variables["batch_stats"]["var"], variance, rtol=1e-5)
        if updates in (1, 10, 100):
            # What it normalizes by in evaluation, read off its outputs.
            y, _ = run(theirs, state, x, training=False)
            excess[updates] = (x.std((0, 1)) / np.std(y, (0, 1))) ** 2 - variance
    for updates, expected in {1: 99, 10: 9.46, 100: 0.577}.items():
        np.testing.assert_allclose(excess[updates], expected, rtol=1e-2)


def test_the_running_variance_that_equinox_calls_unbiased_is_biased():
    x = random_array((3, 2, 4))
    theirs = batch_norm(momentum=0.5)
    kept = theirs.statistics(theirs.apply(theirs.params, theirs.state, x, training=True)[1])
    layer = nl.BatchNorm(False, **nl.convention("equinox", "batch_norm"))
    variables = layer.init(jax.random.key(0), x)
    _, updates = layer.apply(variables, x, mutable=["batch_stats"])
    for var in (kept["var"], updates["batch_stats"]["var"]):
        assert_close(var, x.var((0, 1)))  # and not 6/5 of it


def test_the_default_mode_of_equinox_normalizes_training_by_running_statistics():
    """What equinox#659 is about: after a shift of the input, outputs are far from normalized."""
    layer, state = equinox.nn.make_with_state(equinox.nn.BatchNorm)(
        4, axis_name="batch", mode="ema"
    )
    first, second = random_array((8, 5, 4)), random_array((8, 5, 4), seed=1, mean=5)
    _, state = run(layer, state, first, training=True)
    theirs, _ = run(layer, state, second, training=True)
    assert np.mean(theirs, (0, 1)).min() > 2
    layer = nl.BatchNorm(False, **nl.convention("equinox", "batch_norm"))
    variables = layer.init(jax.random.key(0), first)
    _, updates = layer.apply(variables, first, mutable=["batch_stats"])
    y = layer.apply(variables | updates, second)
    np.testing.assert_allclose(np.mean(y, (0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(y, (0, 1)), 1, atol=1e-4)
