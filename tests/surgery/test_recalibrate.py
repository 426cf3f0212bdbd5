"""Recalibration against float64 population statistics."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from surgery.models import (
    BATCHES,
    DIGITS,
    HALVES,
    OneLayer,
    ghost,
    initial,
    inputs_of_layers,
    mlp,
    moments,
)

import normlab
from normlab import surgery
from normlab.models import MLP


def assert_population(statistics, x, rtol=2e-6):
    mean, var = moments(x)
    deviation = np.sqrt(var.max())
    np.testing.assert_allclose(statistics["mean"], mean, rtol=rtol, atol=rtol * deviation)
    np.testing.assert_allclose(statistics["var"], var, rtol=rtol, atol=rtol * deviation**2)


def test_the_first_layer_has_the_statistics_of_all_data_with_unequal_batches():
    model = mlp()
    variables = initial(model, train=True)
    result = surgery.recalibrate(model, variables, BATCHES)
    kernel = np.asarray(variables["params"]["dense_0"]["kernel"], np.float64)
    hidden = np.asarray(DIGITS, np.float64).reshape(200, -1) @ kernel
    assert_population(result["batch_stats"]["norm_0"], hidden)
    unequal = [x.mean(0) for x in (hidden[:80], hidden[80:160], hidden[160:])]
    plain_average = np.mean(unequal, axis=0)
    assert np.abs(result["batch_stats"]["norm_0"]["mean"] - plain_average).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, result["params"], variables["params"])


def test_one_pass_normalizes_by_the_statistics_of_each_batch():
    model = mlp()
    variables = initial(model, train=True, trained=True)
    result = surgery.recalibrate(model, variables, HALVES)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    hidden = []
    for batch in HALVES:
        x = np.asarray(batch, np.float64).reshape(len(batch), -1) @ params["dense_0"]["kernel"]
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        x = np.maximum(x * params["norm_0"]["scale"] + params["norm_0"]["bias"], 0)
        hidden.append(x @ params["dense_1"]["kernel"])
    assert_population(result["batch_stats"]["norm_1"], np.concatenate(hidden))


def test_layer_by_layer_evaluation_sees_the_very_statistics_it_normalizes_by():
    model = MLP(hidden=(5, 5, 5), classes=3, norm=normlab.BatchNorm)
    variables = initial(model, train=True, trained=True)
    one_pass = surgery.recalibrate(model, variables, HALVES)
    result = surgery.recalibrate(model, variables, HALVES, layer_by_layer=True)
    for name, x in inputs_of_layers(model, result, DIGITS).items():
        assert_population(result["batch_stats"][name], x)
    behind = moments(inputs_of_layers(model, one_pass, DIGITS)["norm_1"])[1]
    assert np.abs(one_pass["batch_stats"]["norm_1"]["var"] / behind - 1).max() > 1e-4


def test_masked_examples_are_left_out_whatever_they_hold():
    model = mlp()
    variables = initial(model, train=True)
    padded = [
        *BATCHES[:2],
        jnp.concatenate([BATCHES[2], jnp.full((40, 8, 8, 1), jnp.nan)]),
    ]
    masks = [np.ones(80, bool), np.ones(80, bool), np.arange(80) < 40]
    result = surgery.recalibrate(model, variables, padded, masks=masks)
    expected = surgery.recalibrate(model, variables, BATCHES)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), result, expected
    )


def test_statistics_are_right_at_a_large_mean_and_over_many_batches():
    model = OneLayer(normlab.BatchNorm())
    x = np.random.default_rng(0).normal(1e4, 1e-2, (60, 7, 3)).astype(np.float32)
    variables = initial(model, x[0], train=True)
    result = surgery.recalibrate(model, variables, list(x))
    mean, var = moments(x)
    np.testing.assert_allclose(result["batch_stats"]["norm"]["mean"], mean, rtol=1e-7)
    np.testing.assert_allclose(result["batch_stats"]["norm"]["var"], var, rtol=1e-4)


def test_a_mask_that_the_model_gives_to_its_layer_is_heeded():
    model = OneLayer(normlab.BatchNorm())
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype(np.float32)
    lengths = np.arange(5) < np.array([[5], [2], [4], [1], [3], [5]])
    variables = initial(model, x[0], train=True)
    result = surgery.recalibrate(
        model,
        variables,
        [(part, lengths[:, :, None]) for part in x],
        masks=[np.arange(6) > 0] * 2,
        call=lambda model, batch: model(batch[0], False, mask=batch[1]),
    )
    assert_population(result["batch_stats"]["norm"], x[:, 1:][:, lengths[1:]].reshape(-1, 3))


def test_batches_may_be_spread_over_devices():
    mesh = jax.sharding.Mesh(jax.devices(), "batch")
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    x = np.random.default_rng(0).normal(1, 2, (2, 16, 3)).astype(np.float32)
    model = OneLayer(normlab.BatchNorm())
    batches = [jax.device_put(part, spread) for part in x]
    result = surgery.recalibrate(model, initial(model, x[0], train=True), batches)
    assert_population(result["batch_stats"]["norm"], x)


LAYERS = {
    "ghost": ghost(),  # Its ghost batches do not divide the batches.
    "flax": nn.BatchNorm(),
    "renorm": normlab.BatchRenorm(),
    "switchable": normlab.SwitchableNorm(),
    "weighed": normlab.BatchNorm(example_weight=0.3),
    "evonorm": normlab.EvoNormB0(),
    "cumulative": normlab.BatchNorm(momentum=None),
    "unbiased": normlab.BatchNorm(running_variance="unbiased"),
    "grouped": normlab.BatchGroupNorm(num_groups=2),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_with_running_statistics(kind):
    model = OneLayer(LAYERS[kind])
    x = np.random.default_rng(0).normal(1, 2, (10, 3, 4)).astype(np.float32)
    variables = initial(model, x, train=True)
    result = surgery.recalibrate(model, variables, [x[:5], x[5:]])["batch_stats"]["norm"]
    assert result.keys() == variables["batch_stats"]["norm"].keys()
    mean, var = moments(x)
    if kind == "unbiased":
        var = var * 30 / 29
    if kind == "grouped":
        pairs = [moments(x[..., i : i + 2], (0, 1, 2)) for i in (0, 2)]
        mean, var = (np.repeat(values, 2) for values in zip(*pairs, strict=True))
    np.testing.assert_allclose(result["var"], var, rtol=1e-5)
    if kind != "evonorm":
        np.testing.assert_allclose(result["mean"], mean, rtol=1e-5)
    if kind == "renorm":  # Its schedule goes on.
        assert result["count"] == 0
    if kind == "cumulative":
        assert result["count"] == 2


def test_averaged_weights_need_no_statistics_to_begin_with():
    model = mlp(functools.partial(normlab.BatchNorm, momentum=None))
    variables = initial(model, train=True)
    result = surgery.recalibrate(model, {"params": variables["params"], "other": {"a": 1}}, HALVES)
    expected = surgery.recalibrate(model, variables, HALVES)
    jax.tree.map(np.testing.assert_array_equal, result["batch_stats"], expected["batch_stats"])
    assert result["other"] == {"a": 1}
    model.apply(result, DIGITS[:3], train=False)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = normlab.BatchNorm(use_running_average=True)(nn.Dense(4)(x))
        return nn.relu(y) + x, None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        body = nn.scan(nn.remat(Block), axes, split_rngs={"params": True}, length=2)
        return body(name="blocks")(x, None)[0]


class Looped(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x, _ = Block(name=f"block_{i}")(x, None)
        return x


def test_layers_in_scan_and_remat_are_layers_like_others():
    x = np.random.default_rng(0).normal(1, 2, (12, 4)).astype(np.float32)
    scanned, looped = Scanned(), Looped()
    variables = initial(scanned, x)
    unstacked = {
        name: {
            f"block_{i}": jax.tree.map(lambda a, i=i: a[i], variables[name]["blocks"])
            for i in range(2)
        }
        for name in variables
    }
    result, expected = (
        surgery.recalibrate(model, given, [x[:6], x[6:]], layer_by_layer=True)["batch_stats"]
        for model, given in ((scanned, variables), (looped, unstacked))
    )
    for i in range(2):
        for name, value in expected[f"block_{i}"]["BatchNorm_0"].items():
            stacked = result["blocks"]["BatchNorm_0"][name]
            np.testing.assert_allclose(stacked[i], value, rtol=1e-5, atol=1e-6)


# One compiled function for all of its instances.
Compiled = nn.jit(Block, static_argnums=(2,))


class Jitted(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x, _ = Compiled(name=f"block_{i}")(x, None)
        return x


def test_nn_jit_inside_the_model_does_not_reuse_what_it_compiled_without_surgery():
    x = np.random.default_rng(0).normal(1, 2, (12, 4)).astype(np.float32)
    model = Jitted()
    variables = initial(model, x)
    before = model.apply(variables, x)
    result = surgery.recalibrate(model, variables, [x], layer_by_layer=True)
    np.testing.assert_array_equal(model.apply(variables, x), before)
    for i in range(2):
        block = jax.tree.map(jnp.asarray, {name: result[name][f"block_{i}"] for name in result})
        mean, _ = moments(nn.Dense(4).apply({"params": block["params"]["Dense_0"]}, x))
        measured = block["batch_stats"]["BatchNorm_0"]["mean"]
        np.testing.assert_allclose(measured, mean, rtol=1e-4, atol=1e-5)
        x, _ = Block().apply(block, x, None)


def test_a_pass_is_compiled_once():
    model, traced = mlp(), []

    def call(model, batch):
        traced.append(batch.shape)
        return model(batch, train=False)

    batches = [DIGITS[:50], DIGITS[50:100], DIGITS[100:150]]
    surgery.recalibrate(model, initial(model, train=True), batches, call=call)
    assert len(traced) == 2  # To see the shapes, and to compile.


def nonfinite(model, variables):
    surgery.recalibrate(model, variables, [DIGITS[:5], DIGITS[:5] * np.nan])


def no_statistics(model, variables):
    model = mlp(normlab.LayerNorm)
    surgery.recalibrate(model, initial(model, train=True), BATCHES)


MISTAKES = {
    "an array": (
        lambda m, v: surgery.recalibrate(m, v, DIGITS),
        r"array of shape \(200, 8, 8, 1\).*list of batches",
    ),
    "an iterator": (
        lambda m, v: surgery.recalibrate(m, v, iter(BATCHES), layer_by_layer=True),
        "end after one pass.*function that returns them anew",
    ),
    "no batch": (lambda m, v: surgery.recalibrate(m, v, []), "there is no batch"),
    "too few masks": (
        lambda m, v: surgery.recalibrate(m, v, BATCHES, masks=[np.ones(80, bool)]),
        "there are 1 masks, but more batches",
    ),
    "a mask of another length": (
        lambda m, v: surgery.recalibrate(m, v, BATCHES[:1], masks=[np.ones(7, bool)]),
        r"norm_0.*\(7,\).*\(80, 5\)",
    ),
    "no statistics": (no_statistics, "no normalization layer of the model keeps running"),
    "non-finite data": (nonfinite, "statistics of norm_0 are not finite"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    model = mlp()
    do, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        do(model, initial(model, train=True))


def test_a_function_may_return_the_batches_anew_for_each_pass():
    model = OneLayer(normlab.BatchNorm())
    x = np.random.default_rng(0).normal(1, 2, (3, 5, 4)).astype(np.float32)
    variables = initial(model, x[0], train=True)
    result = surgery.recalibrate(model, variables, lambda: iter(x), layer_by_layer=True)
    assert_population(result["batch_stats"]["norm"], x)
