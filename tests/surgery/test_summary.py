"""The summary of a model's normalization layers, and its warnings."""

import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits
from surgery.models import DIGITS, OneLayer, initial, mlp, moments

import normlab
from normlab import surgery

X = DIGITS[:2]


def test_the_record_of_a_layer_says_what_it_is_and_has():
    model = mlp()
    variables = initial(model, train=True, trained=True)
    first, second = surgery.summary(model, variables, X).layers
    var = variables["batch_stats"]["norm_0"]["var"]
    assert (first.path, first.kind, first.statistics) == ("norm_0", "BatchNorm", "batch")
    assert first.input_shape == (2, 5)
    assert first.parameters == {"scale": 5, "bias": 5}
    assert first.variance == (float(var.min()), float(var.max()))
    assert first.warnings == ()
    assert second.path == "norm_1"


def warnings(norm, trained=True, **statistics):
    model, x = OneLayer(norm), jnp.ones((2, 3))
    variables = initial(model, x, trained=trained, train=True)
    for name, value in statistics.items():
        collection = "params" if name in ("scale", "bias") else "batch_stats"
        variables[collection]["norm"][name] = jnp.asarray(value, jnp.float32)
    (layer,) = surgery.summary(model, variables, x).layers
    return layer.warnings


CASES = {
    "healthy": ({}, ()),
    "small": ({"var": [1.0, 1e-6, 0.0]}, ("2 of 3 variances below epsilon=1e-05",)),
    "untouched": ({"mean": [0, 0, 0], "var": [1, 1, 1]}, ("statistics never updated",)),
    "only the variances are one": ({"mean": [0, 0.1, 0], "var": [1, 1, 1]}, ()),
    "non-finite": ({"mean": [1, jnp.nan, 0]}, ("mean is not finite",)),
    "non-finite scale": ({"scale": [1, jnp.inf, 0]}, ("scale is not finite",)),
}


@pytest.mark.parametrize("case", CASES)
def test_warnings(case):
    statistics, expected = CASES[case]
    assert warnings(normlab.BatchNorm(), **statistics) == expected


def test_a_count_of_no_updates_is_a_warning_whatever_the_statistics():
    assert warnings(normlab.BatchNorm(momentum=None)) == ("statistics never updated",)
    assert warnings(normlab.BatchNorm(momentum=None), count=1) == ()


def test_layers_without_running_statistics_are_never_out_of_date():
    assert warnings(normlab.LayerNorm(), trained=False) == ()


def test_it_prints_as_a_table():
    model = mlp(partial(nn.BatchNorm, epsilon=0.5))
    variables = initial(model, train=True)
    text = str(surgery.summary(model, variables, X))
    assert text.startswith("2 normalization layers with 20 parameters; 2 with warnings")
    row = next(line for line in text.splitlines() if "norm_0" in line)
    for part in ("BatchNorm", "batch", "2x5", "scale 5", "0 to 0", "1 to 1", "never updated"):
        assert part in row


DATA = load_digits()
IMAGES = jnp.asarray(DATA.images[:1200, :, :, None] / 16, jnp.float32)
LABELS = jnp.asarray(DATA.target[:1200])


@functools.cache
def trained(momentum, steps):
    """A network for digits, trained by batches of 50 out of the first 900."""
    model = mlp(partial(normlab.BatchNorm, momentum=momentum)).clone(classes=10, hidden=(32, 32))
    variables = initial(model, train=True)
    optimizer = optax.sgd(0.05, momentum=0.9)

    def step(carried, order):
        variables, state = carried

        def loss(params):
            given = {**variables, "params": params}
            y, moved = model.apply(given, IMAGES[order], train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(y, LABELS[order])
            return losses.mean(), moved

        gradients, moved = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradients, state)
        params = optax.apply_updates(variables["params"], updates)
        return ({"params": params, **moved}, state), None

    draw = np.random.default_rng(0)
    orders = np.stack([draw.permutation(900)[:50] for _ in range(steps)])
    carried, _ = jax.jit(partial(jax.lax.scan, step))(
        (variables, optimizer.init(variables["params"])), orders
    )
    return model, carried[0]


def right(model, variables):
    logits = model.apply(variables, IMAGES[900:], train=False)
    return np.mean(logits.argmax(-1) == LABELS[900:])


@pytest.mark.parametrize("examples", [8, 32, 100, 300])
def test_statistics_of_a_well_trained_network_are_near_those_of_every_batch(examples):
    model, variables = trained(0.9, 300)
    for start in range(0, 1200 - examples + 1, max(examples, 100)):
        batch = IMAGES[start : start + examples]
        for layer in surgery.summary(model, variables, batch).layers:
            assert layer.warnings == ()


@pytest.mark.parametrize("examples", [8, 32, 300])
def test_statistics_that_lag_behind_are_far_from_those_of_every_batch(examples):
    """There were no warnings where recalibration was worth a third of the accuracy."""
    model, variables = trained(0.99, 20)
    recalibrated = surgery.recalibrate(
        model, variables, list(IMAGES[:900].reshape(9, 100, 8, 8, 1))
    )
    assert right(model, recalibrated) - right(model, variables) > 0.1
    batch = IMAGES[:examples]
    given = surgery.summary(model, variables, (batch, LABELS[:examples]))
    assert given.compared == examples
    assert all("far from the batch's" in " ".join(layer.warnings) for layer in given.layers)
    assert "2 with warnings" in str(given)
    near = surgery.summary(model, recalibrated, batch)
    assert all(layer.warnings == () for layer in near.layers)


def test_the_distance_is_that_of_the_formula():
    model = OneLayer(normlab.BatchNorm())
    x = np.random.default_rng(0).normal(1, 2, (64, 3, 5)).astype(np.float32)
    variables = initial(model, x, train=True)
    mean, var = moments(x)
    statistics = {"mean": mean + 2 * np.sqrt(var), "var": var}
    statistics = {name: jnp.asarray(value, jnp.float32) for name, value in statistics.items()}
    given = {**variables, "batch_stats": {"norm": statistics}}
    (layer,) = surgery.summary(model, given, x).layers
    (warning,) = layer.warnings
    assert "running means" in warning
    assert "typically by 2 standard deviations, where 0.5 would do for 64 examples" in warning
    statistics["mean"], statistics["var"] = jnp.asarray(mean, jnp.float32), 2 * statistics["var"]
    (layer,) = surgery.summary(model, given, x).layers
    (warning,) = layer.warnings
    assert "running variances" in warning
    assert "typically by 0.69 in their logarithm" in warning


def test_too_few_examples_are_compared_with_nothing_and_so_the_summary_says():
    model, variables = trained(0.99, 20)
    given = surgery.summary(model, variables, IMAGES[:7])
    assert given.compared == 0
    assert "not compared with a batch of 8 or more" in " ".join(str(given).split())
    shapes = jax.ShapeDtypeStruct((64, 8, 8, 1), jnp.float32)
    assert surgery.summary(model, variables, shapes).compared == 0


def test_one_layer_is_counted_in_the_singular():
    model = OneLayer(normlab.ScaleNorm())
    x = jnp.ones((2, 3))
    text = str(surgery.summary(model, initial(model, x, train=True), x))
    assert text.startswith("1 normalization layer with 1 parameter; 0 with warnings")


def test_a_negative_variance_is_a_warning():
    assert warnings(normlab.BatchNorm(), var=[1.0, -1.0, 2.0]) == (
        "1 of 3 variances are negative",
        "1 of 3 variances below epsilon=1e-05",
    )


def test_layers_in_scan_are_compared_too():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return normlab.BatchNorm(use_running_average=True)(nn.Dense(4)(x)), None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "batch_stats": 0}
            body = nn.scan(Block, axes, split_rngs={"params": True}, length=2)
            return body(name="blocks")(x, None)[0]

    x = jnp.asarray(np.random.default_rng(0).normal(1, 9, (32, 4)), jnp.float32)
    variables = initial(Scanned(), x)
    (layer,) = surgery.summary(Scanned(), variables, x).layers
    assert "far from the batch's" in " ".join(layer.warnings)
    variables = surgery.recalibrate(Scanned(), variables, [x], layer_by_layer=True)
    (layer,) = surgery.summary(Scanned(), variables, x).layers
    assert layer.warnings == ()
