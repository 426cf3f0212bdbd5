"""Variables from PyTorch and Keras, and back: round trips, mistakes, and the real layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normlab as nl
from normlab import surgery


def drawn(shape, seed=0):
    return np.random.default_rng(seed).uniform(0.5, 2, shape).astype(np.float32)


FOUR = {
    name: drawn(3, seed)
    for seed, name in enumerate(["weight", "bias", "running_mean", "running_var"])
}
BATCH = nl.BatchNorm(momentum=None)
DRAWN = drawn(3)


def test_a_layer_is_taken_out_of_a_state_dictionary_and_put_back():
    entries = {f"bn1.{name}": value for name, value in FOUR.items()}
    entries |= {"bn1.num_batches_tracked": np.int64(7), "fc.weight": drawn((3, 3))}
    variables = surgery.from_torch(BATCH, entries, "bn1.")
    shapes = BATCH.init(jax.random.key(0), jnp.ones((2, 3)), use_running_average=False)
    assert jax.tree.structure(variables) == jax.tree.structure(shapes)
    assert variables["batch_stats"]["count"] == 7
    back = surgery.to_torch(BATCH, variables)
    assert back.keys() == {*FOUR, "num_batches_tracked"}
    assert back["num_batches_tracked"] == 7
    assert back["num_batches_tracked"].dtype == np.int64
    for name, value in FOUR.items():
        np.testing.assert_array_equal(back[name], value)


def test_weights_go_to_keras_in_its_order_and_back():
    weights = list(FOUR.values())
    variables = surgery.from_keras(BATCH, weights)
    np.testing.assert_array_equal(variables["params"]["scale"], weights[0])
    np.testing.assert_array_equal(variables["batch_stats"]["var"], weights[3])
    assert variables["batch_stats"]["count"] == 0
    for back, expected in zip(surgery.to_keras(BATCH, variables), weights, strict=True):
        np.testing.assert_array_equal(back, expected)


def test_pytorch_gets_scale_and_bias_together_where_it_has_no_other_choice():
    bias = {"params": {"bias": jnp.ones(3)}}
    np.testing.assert_array_equal(
        surgery.to_torch(nl.GroupNorm(1, use_scale=False), bias)["weight"], np.ones(3)
    )
    scale = {"params": {"scale": jnp.ones(3)}}
    norm = surgery.to_torch(nl.GroupNorm(1, use_bias=False), scale)
    np.testing.assert_array_equal(norm["bias"], np.zeros(3))
    assert surgery.to_torch(nl.LayerNorm(use_bias=False), scale).keys() == {"weight"}


def test_a_scale_that_is_kept_less_one_is_the_same_scale_elsewhere():
    layer = nl.RMSNorm(zero_centred=True)
    variables = surgery.from_torch(layer, {"weight": FOUR["weight"]})
    np.testing.assert_allclose(variables["params"]["scale"], FOUR["weight"] - 1, rtol=1e-6)
    np.testing.assert_allclose(surgery.to_keras(layer, variables)[0], FOUR["weight"], rtol=1e-6)


MISTAKES = {
    "an entry too few": (
        lambda: surgery.from_torch(BATCH, {"weight": FOUR["weight"]}),
        r"BatchNorm with these fields needs.*but \['weight'\] were given under the prefix ''",
    ),
    "running statistics of an instance norm": (
        lambda: surgery.from_torch(nl.InstanceNorm(), FOUR),
        "track_running_stats=True evaluates as batch norm does: give BatchNorm",
    ),
    "a wrong prefix": (
        lambda: surgery.from_torch(BATCH, {f"layer1.bn1.{n}": v for n, v in FOUR.items()}, "layr1"),
        r"No name begins with that; did you mean 'layer1\.bn1\.'\?",
    ),
    "statistics of half precision": (
        lambda: surgery.from_torch(BATCH, {n: v.astype(np.float16) for n, v in FOUR.items()}),
        "running mean has the dtype float16, but float32",
    ),
    "statistics that are not finite": (
        lambda: surgery.from_keras(BATCH, [DRAWN, DRAWN, np.full(3, np.nan), DRAWN]),
        "running mean is not finite",
    ),
    "mean and variance exchanged": (
        lambda: surgery.from_keras(BATCH, [DRAWN, DRAWN, DRAWN, -DRAWN]),
        "running var is negative.*changed places",
    ),
    "weights too few": (
        lambda: surgery.from_keras(BATCH, [FOUR["weight"]]),
        r"needs 4 weights \(scale, bias, mean, var\), but 1 were given",
    ),
    "another shape": (
        lambda: surgery.from_keras(nl.LayerNorm(), [drawn(3), drawn(4)]),
        r"differ in shape: \{'scale': \(3,\), 'bias': \(4,\)\}",
    ),
    "no counterpart": (
        lambda: surgery.to_torch(nl.DynamicTanh(), {}),
        "to_torch: DynamicTanh has no counterpart there",
    ),
    "variables of a model": (
        lambda: surgery.to_keras(nl.LayerNorm(), {"params": {"norm_0": {"scale": drawn(3)}}}),
        "params/scale, params/bias, which the variables lack; they hold params/norm_0/scale",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    do, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        do()


TORCH = {
    "batch": (nl.BatchNorm(axis=1), lambda nn: nn.BatchNorm2d(4)),
    "batch without affine": (
        nl.BatchNorm(axis=1, use_scale=False, use_bias=False),
        lambda nn: nn.BatchNorm2d(4, affine=False),
    ),
    "layer": (
        nl.LayerNorm(1e-5, reduction_axes=(2, 3), feature_axes=(2, 3)),
        lambda nn: nn.LayerNorm((3, 5)),
    ),
    "root mean square": (nl.RMSNorm(1e-6), lambda nn: nn.RMSNorm(5, eps=1e-6)),
    "group": (nl.GroupNorm(2, epsilon=1e-5), lambda nn: nn.GroupNorm(2, 4)),
    "instance": (
        nl.InstanceNorm(1e-5, feature_axes=1),
        lambda nn: nn.InstanceNorm2d(4, affine=True),
    ),
    "tracking instance": (
        nl.BatchNorm(axis=1),
        lambda nn: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("kind", TORCH)
def test_layers_of_pytorch_evaluate_to_the_same_numbers_there_and_back(kind):
    torch = pytest.importorskip("torch", reason="PyTorch comes with the extra `parity`")
    layer, make = TORCH[kind]
    x = drawn((6, 4, 3, 5))
    theirs, empty = make(torch.nn), make(torch.nn).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.from_numpy(drawn(tuple(parameter.shape), 1)))
        theirs.train()(torch.from_numpy(x))
        expected = theirs.eval()(torch.from_numpy(x)).numpy()
    entries = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    variables = surgery.from_torch(layer, entries)
    given = np.moveaxis(x, 1, -1) if kind == "group" else x
    y = layer.apply(variables, given, use_running_average=True)
    y = np.moveaxis(y, -1, 1) if kind == "group" else y
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    back = {
        name: torch.from_numpy(v.copy()) for name, v in surgery.to_torch(layer, variables).items()
    }
    empty.load_state_dict(back)
    with torch.no_grad():
        np.testing.assert_allclose(empty(torch.from_numpy(x)), expected, rtol=1e-5, atol=1e-5)


KERAS = {
    "batch": (nl.BatchNorm(epsilon=1e-3), lambda k: k.BatchNormalization()),
    "batch without scale": (
        nl.BatchNorm(epsilon=1e-3, use_scale=False),
        lambda k: k.BatchNormalization(scale=False),
    ),
    "layer": (nl.LayerNorm(1e-3), lambda k: k.LayerNormalization()),
    "layer without center": (
        nl.LayerNorm(1e-3, use_bias=False),
        lambda k: k.LayerNormalization(center=False),
    ),
    "group": (nl.GroupNorm(2, epsilon=1e-3), lambda k: k.GroupNormalization(groups=2)),
    "instance": (nl.InstanceNorm(1e-3), lambda k: k.GroupNormalization(groups=-1)),
    "root mean square": (nl.RMSNorm(1e-6), lambda k: k.RMSNormalization(epsilon=1e-6)),
}


@pytest.mark.parity
@pytest.mark.parametrize("kind", KERAS)
def test_layers_of_keras_evaluate_to_the_same_numbers_there_and_back(kind):
    keras = pytest.importorskip("keras", reason="Keras comes with the extra `parity`")
    layer, make = KERAS[kind]
    x = drawn((6, 3, 5, 4))
    theirs, empty = make(keras.layers), make(keras.layers)
    with jax.numpy_rank_promotion("allow"):
        theirs.build(x.shape)
        empty.build(x.shape)
        theirs.set_weights([drawn(it.shape, seed) for seed, it in enumerate(theirs.weights)])
        expected = np.asarray(theirs(x))
        variables = surgery.from_keras(layer, theirs.get_weights())
        empty.set_weights(surgery.to_keras(layer, variables))
        np.testing.assert_array_equal(empty(x), expected)
    y = layer.apply(variables, x, use_running_average=True)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
