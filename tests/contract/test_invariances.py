"""What defines a layer: what it is blind to, and where it turns into another."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from contract.cases import (
    FIRST_CASES,
    assert_close,
    normal,
    train,
)

import normlab as nl

PLAIN = {"use_scale": False, "use_bias": False}
# Left out so far that what is left of it is below the tolerance.
EXACT = {"epsilon": 1e-12}


def output(layer, x, given=None, **options):
    return jax.jit(lambda given, x: layer.apply(given, x, **options))(given or {}, x)


# Blind to scaling and shift.

# Each layer with the shape of what its input may be multiplied by, and whether shifted by as well.
BLIND = {
    "batch": (nl.BatchNorm(False, **PLAIN, **EXACT), (1, 1, 4), True),
    "ghost batch": (
        nl.GhostBatchNorm(False, ghost_batch_size=4, **PLAIN, **EXACT),
        (1, 1, 4),
        True,
    ),
    "batch group": (nl.BatchGroupNorm(False, num_groups=2, **PLAIN, **EXACT), (1, 1, 2), True),
    "switchable": (nl.SwitchableNorm(False, **PLAIN, **EXACT), (1, 1, 1), True),
    "evonorm b0": (nl.EvoNormB0(False, **PLAIN, **EXACT), (1, 1, 4), False),
    "instance": (nl.InstanceNorm(**PLAIN, **EXACT), (8, 1, 4), True),
    "group": (nl.GroupNorm(2, **PLAIN, **EXACT), (8, 1, 2), True),
    "layer": (nl.LayerNorm(**PLAIN, **EXACT), (8, 3, 1), True),
    "position": (nl.PositionNorm(**EXACT), (8, 3, 1), True),
    "root mean square": (nl.RMSNorm(use_scale=False, **EXACT), (8, 3, 1), False),
    "length": (nl.ScaleNorm(**EXACT), (8, 3, 1), False),
    "filter response": (nl.FilterResponseNorm(**EXACT), (8, 1, 4), False),
    "proxy": (nl.ProxyNorm(**EXACT), (8, 1, 1), True),
}


@pytest.mark.parametrize(("layer", "shape", "shifted"), BLIND.values(), ids=BLIND)
def test_scaling_and_shift_of_the_input_change_nothing(layer, shape, shifted):
    x = normal()
    params = jax.jit(layer.init)(jax.random.key(0), x).get("params", {})
    group = 2 if shape[-1] == 2 else 1
    factor = np.repeat(1 + normal(shape, seed=1) ** 2, group, -1)
    shift = np.repeat(normal(shape, seed=2, deviation=5), group, -1) * np.float32(shifted)
    run = jax.jit(lambda x: layer.apply({"params": params}, x))
    assert_close(run(factor * x + shift), run(x), 1e-4)


def test_a_negative_factor_turns_the_sign_of_a_batch_norm():
    x, layer = normal(), nl.BatchNorm(False, **PLAIN)
    assert_close(output(layer, -x), -np.asarray(output(layer, x)))


@pytest.mark.parametrize("case", [case for case in FIRST_CASES if not case.keeps_state], ids=str)
def test_layers_without_statistics_take_each_example_for_itself(case):
    x, others = normal(), normal(seed=1, mean=100)
    others[2] = x[2]
    y, *_ = train(case, x)
    y_among_others, *_ = train(case, others)
    assert_close(y_among_others[2], y[2])


# From one layer to another.


def test_group_norm_between_its_extremes():
    """One group is layer normalization over the example, one group a channel instance norm."""
    x = normal()
    over_example = nl.LayerNorm(reduction_axes=(1, 2), **PLAIN)
    assert_close(output(nl.GroupNorm(1, **PLAIN), x), output(over_example, x))
    assert_close(output(nl.GroupNorm(4, **PLAIN), x), output(nl.InstanceNorm(**PLAIN), x))
    assert_close(
        output(nl.BatchGroupNorm(False, num_groups=4, **PLAIN), x),
        output(nl.BatchNorm(False, **PLAIN), x),
    )


def test_ghost_batch_norm_between_its_extremes():
    """One ghost batch is batch norm to the bit, one an example instance norm."""
    x, one = normal(), {"ghost_batch_size": 1, "epsilon": 1e-6}
    whole = output(nl.GhostBatchNorm(False, ghost_batch_size=8, **PLAIN), x)
    np.testing.assert_array_equal(whole, output(nl.BatchNorm(False, **PLAIN), x))
    assert_close(
        output(nl.GhostBatchNorm(False, **one, **PLAIN), x), output(nl.InstanceNorm(**PLAIN), x)
    )


RUNNING = {"mean": normal((4,), seed=4), "var": normal((4,), seed=5) ** 2, "count": np.float32(7)}
UNLIMITED = {"start_steps": 0, "r_steps": 1, "d_steps": 1, "r_max": np.inf, "d_max": np.inf}


def test_renormalization_without_correction_is_batch_norm():
    """Before it starts, and with limits that leave r = 1 and d = 0."""
    x, given = normal(), {"batch_stats": jax.tree.map(jnp.asarray, RUNNING)}
    expected = output(nl.BatchNorm(False, **PLAIN), x)
    for fields in ({"start_steps": 7}, UNLIMITED | {"r_max": 1.0, "d_max": 0.0}):
        layer = nl.BatchRenorm(False, **PLAIN, **fields)
        assert_close(output(layer, x, given), expected)


@pytest.mark.parametrize("limits", [{}, {"r_max": 1e3, "d_max": 1e3}], ids=["none", "wide"])
def test_renormalization_at_full_correction_is_normalization_by_running_statistics(limits):
    x, given = normal(), {"batch_stats": jax.tree.map(jnp.asarray, RUNNING)}
    y = output(nl.BatchRenorm(False, **PLAIN, **UNLIMITED | limits), x, given)
    assert_close(y, (x - RUNNING["mean"]) / np.sqrt(RUNNING["var"] + 1e-5))
    assert_close(y, output(nl.BatchNorm(True, **PLAIN), x, given))


def test_switchable_norm_with_all_weight_on_one_kind_is_that_kind():
    x = normal()
    layers = [
        nl.InstanceNorm(epsilon=1e-5, **PLAIN),
        nl.LayerNorm(epsilon=1e-5, reduction_axes=(1, 2), **PLAIN),
        nl.BatchNorm(False, **PLAIN),
    ]
    for weight, layer in zip(np.eye(3, dtype=np.float32) * 50, layers, strict=True):
        given = {"params": {"mean_weight": weight, "variance_weight": weight}}
        assert_close(output(nl.SwitchableNorm(False, **PLAIN), x, given), output(layer, x))


def test_partial_and_zero_centred_root_mean_square_at_their_plain_ends():
    x, given = normal(), {"params": {"scale": normal((4,), seed=1)}}
    expected = output(nl.RMSNorm(), x, given)
    assert_close(output(nl.RMSNorm(fraction=1.0), x, given), expected)
    less = {"params": {"scale": given["params"]["scale"] - 1}}
    assert_close(output(nl.RMSNorm(zero_centred=True), x, less), expected)


# Gamma the deviation, beta the mean.

POOLED_OVER = {
    "batch": (nl.BatchNorm(False, **PLAIN), (0, 1), 1e-5),
    "instance": (nl.InstanceNorm(**PLAIN), 1, 1e-6),
    "layer": (nl.LayerNorm(**PLAIN), 2, 1e-6),
    "position": (nl.PositionNorm(), 2, 1e-5),
    "one group": (nl.GroupNorm(1, **PLAIN), (1, 2), 1e-6),
    "one batch group": (nl.BatchGroupNorm(False, num_groups=1, **PLAIN), (0, 1, 2), 1e-5),
}


@pytest.mark.parametrize(("layer", "axes", "epsilon"), POOLED_OVER.values(), ids=POOLED_OVER)
def test_scale_by_the_deviation_and_bias_by_the_mean_give_the_input_back(layer, axes, epsilon):
    """So a layer can undo itself, and pools over these axes and no others."""
    x = normal()
    mean, variance, _ = oracles.moments(x, axes)
    deviation = np.sqrt(variance + epsilon).astype(np.float32)
    y = output(layer, x, scale=deviation, bias=mean.astype(np.float32))
    assert_close(y, x)


def test_the_running_deviation_and_mean_give_the_input_back_in_evaluation():
    x, given = normal(), {"batch_stats": jax.tree.map(jnp.asarray, RUNNING)}
    given["params"] = {"scale": np.sqrt(RUNNING["var"] + 1e-5), "bias": RUNNING["mean"]}
    assert_close(output(nl.BatchNorm(True), x, given), x)


@pytest.mark.parametrize(
    "layer",
    [
        nl.BatchNorm(False, **PLAIN),
        nl.BatchGroupNorm(False, num_groups=2, **PLAIN),
        nl.BatchRenorm(False, **PLAIN),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_convolutional_batch_statistics_pool_over_locations(layer):
    """An image is so many rows of a batch; the running statistics are the same too."""
    x = normal((4, 2, 3, 4))
    given = jax.jit(layer.init)(jax.random.key(0), x)
    step = jax.jit(lambda x: layer.apply(given, x, mutable=["batch_stats"]))
    y, updates = step(x)
    flat, flat_updates = step(x.reshape(24, 4))
    assert_close(y.reshape(24, 4), flat)
    jax.tree.map(assert_close, updates, flat_updates)
