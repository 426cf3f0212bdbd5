"""The conventions of Keras 3 beside Keras 3 on JAX."""

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
    start,
    with_convention,
)

import normlab as nl

keras = pytest.importorskip("keras", reason="Keras comes with the extra `parity`")

pytestmark = pytest.mark.parity


def their_layer(layer, x):
    with jax.numpy_rank_promotion("allow"):
        layer.build(x.shape)
    called = {"gamma": "scale", "scale": "scale", "beta": "bias"}
    names = [called[variable.name] for variable in layer.trainable_variables]
    kept = [variable.name for variable in layer.non_trainable_variables]

    def apply(params, state, x, training):
        told = {"training": training} if kept else {}
        return layer.stateless_call([params[name] for name in names], state, x, **told)

    return Trained(
        apply,
        start(names, layer.trainable_variables[0].shape),
        [jnp.asarray(variable.value) for variable in layer.non_trainable_variables],
        lambda state: (
            {"mean": state[kept.index("moving_mean")], "var": state[kept.index("moving_variance")]}
            if kept
            else {}
        ),
    )


# Registered name, their layer, changes to the convention.
CASES = {
    "batch": ("batch_norm", lambda k: k.BatchNormalization(), {}),
    "batch, fast": (
        "batch_norm",
        lambda k: k.BatchNormalization(momentum=0.5, epsilon=1e-5),
        {"momentum": 0.5, "epsilon": 1e-5},
    ),
    "batch at axis 1, no scale": (
        "batch_norm",
        lambda k: k.BatchNormalization(axis=1, scale=False),
        {"axis": 1, "use_scale": False},
    ),
    "renorm": ("batch_renorm", lambda k: k.BatchNormalization(renorm=True), {}),
    "renorm, clipped": (
        "batch_renorm",
        lambda k: k.BatchNormalization(
            renorm=True,
            momentum=0.9,
            renorm_momentum=0.9,
            renorm_clipping={"rmax": 1.25, "rmin": 0.8, "dmax": 0.25},
        ),
        {"momentum": 0.9, "r_max": 1.25, "d_max": 0.25},
    ),
    "layer": ("layer_norm", lambda k: k.LayerNormalization(), {}),
    "layer over two axes": (
        "layer_norm",
        lambda k: k.LayerNormalization(axis=(2, 3)),
        {"reduction_axes": (2, 3), "feature_axes": (2, 3)},
    ),
    "group": ("group_norm", lambda k: k.GroupNormalization(groups=2), {"num_groups": 2}),
    "instance": ("instance_norm", lambda k: k.GroupNormalization(groups=-1), {}),
    "root mean square": ("rms_norm", lambda k: k.RMSNormalization(), {}),
}


@pytest.mark.parametrize(("name", "make", "changes"), CASES.values(), ids=CASES)
def test_training(name, make, changes):
    layer, batches = with_convention("keras", name, changes)
    theirs = their_layer(make(keras.layers), batches[0])
    assert_same_training(ours(layer, batches[0]), theirs, batches)


def test_masked_batch_norm():
    """Time steps that a mask leaves out do not enter the statistics (keras#20815)."""
    theirs, batches = keras.layers.BatchNormalization(), random_array((4, 6, 5, 4), mean=2)
    mask = np.arange(5) < np.array([5, 3, 1, 4, 2, 5])[:, None]
    layer = nl.BatchNorm(False, **nl.convention("keras", "batch_norm"))
    variables = layer.init(jax.random.key(0), batches[0])
    for x in batches:
        with jax.numpy_rank_promotion("allow"):
            expected = theirs(x, training=True, mask=mask)
        y, updates = layer.apply(variables, x, mask=mask[..., None], mutable=["batch_stats"])
        variables |= updates
        assert_close(y, expected)
        assert_close(updates["batch_stats"]["mean"], theirs.moving_mean.value)
        assert_close(updates["batch_stats"]["var"], theirs.moving_variance.value)
