"""The summary of a model's normalization layers, and its warnings."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import pytest
from surgery.models import DIGITS, OneLayer, initial, mlp

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
