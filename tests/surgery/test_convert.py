"""Models whose normalization layers are swapped: what is carried over, what is new, what goes."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from surgery.models import DIGITS, ghost, initial, mlp

import normlab
from normlab import surgery

X = DIGITS[:4]


def convert(source, target):
    source, target = mlp(source), mlp(target)
    variables = initial(source, train=True, trained=True)
    converted = surgery.convert(source, variables, target, X)
    expected = jax.eval_shape(partial(target.init, train=True), jax.random.key(0), X)
    jax.tree.map(
        lambda a, b: np.testing.assert_equal(a.shape, b.shape), converted.variables, expected
    )
    target.apply(converted.variables, X, train=False)
    return variables, converted


def names(paths, layer="norm_0"):
    return {path.rpartition("/")[2] for path in paths if f"/{layer}/" in path}


SWAPS = {
    "batch to group": (
        (normlab.BatchNorm, partial(normlab.GroupNorm, num_groups=1)),
        ({"scale", "bias"}, set(), {"mean", "var"}),
    ),
    "batch to ghost": (
        (normlab.BatchNorm, ghost),
        ({"scale", "bias", "mean", "var"}, set(), set()),
    ),
    "group to batch": (
        (partial(normlab.GroupNorm, num_groups=1), nn.BatchNorm),
        ({"scale", "bias"}, {"mean", "var"}, set()),
    ),
    "layer to root mean square": (
        (normlab.LayerNorm, normlab.RMSNorm),
        ({"scale"}, set(), {"bias"}),
    ),
    "layer to dynamic tanh": (
        (normlab.LayerNorm, normlab.DynamicTanh),
        ({"scale", "bias"}, {"alpha"}, set()),
    ),
    "batch to EvoNorm": (
        (normlab.BatchNorm, normlab.EvoNormB0),
        ({"scale", "bias", "var"}, {"v"}, {"mean"}),
    ),
    "layer to scale": (
        (normlab.LayerNorm, normlab.ScaleNorm),
        (set(), {"scale"}, {"scale", "bias"}),
    ),
    "cumulative to renorm": (
        (partial(normlab.BatchNorm, momentum=None), normlab.BatchRenorm),
        ({"scale", "bias", "mean", "var"}, {"count"}, {"count"}),
    ),
    "batch to none": (
        (normlab.BatchNorm, normlab.Identity),
        (set(), set(), {"scale", "bias", "mean", "var"}),
    ),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_what_both_layers_have_is_carried_over(swap):
    layers, fates = SWAPS[swap]
    variables, converted = convert(*layers)
    for fate, expected in zip(("carried", "new", "dropped"), fates, strict=True):
        assert names(converted.paths(fate)) == expected
    for path in converted.paths("carried"):
        before, after = variables, converted.variables
        for name in path.split("/"):
            before, after = before[name], after[name]
        np.testing.assert_array_equal(after, before)


def test_a_bias_that_the_new_layer_lacks_stands_in_the_linear_layer_before_it():
    _, converted = convert(normlab.BatchNorm, normlab.RMSNorm)
    assert "params/dense_0/bias" in converted.paths("new")
    assert not np.any(converted.variables["params"]["dense_0"]["bias"])


def test_a_scale_that_is_kept_less_one_is_carried_as_what_it_means():
    zero_centred = partial(normlab.RMSNorm, zero_centred=True)
    variables, converted = convert(normlab.RMSNorm, zero_centred)
    before, after = (it["params"]["norm_0"]["scale"] for it in (variables, converted.variables))
    np.testing.assert_allclose(after, before - 1, rtol=1e-6)
    variables, converted = convert(zero_centred, normlab.LayerNorm)
    before, after = (it["params"]["norm_0"]["scale"] for it in (variables, converted.variables))
    np.testing.assert_allclose(after, before + 1, rtol=1e-6)


class Unnamed(nn.Module):
    """Its layers are named after their classes by Flax."""

    norm: type

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = self.norm()(nn.Dense(3)(x))
        return x


def test_layers_are_paired_in_the_order_of_their_calls_where_names_differ():
    x = jnp.ones((2, 3))
    source = Unnamed(normlab.LayerNorm)
    variables = initial(source, x, trained=True)
    converted = surgery.convert(source, variables, Unnamed(normlab.RMSNorm), x)
    before, after = variables["params"], converted.variables["params"]
    for i in (0, 1):
        np.testing.assert_array_equal(
            after[f"RMSNorm_{i}"]["scale"], before[f"LayerNorm_{i}"]["scale"]
        )
    assert set(converted.paths("dropped")) == {"params/LayerNorm_0/bias", "params/LayerNorm_1/bias"}


def test_layers_are_paired_by_path_where_there_are_not_as_many():
    x = jnp.ones((2, 3))
    source = nn.Sequential([normlab.LayerNorm(), nn.Dense(3), normlab.LayerNorm()])
    target = nn.Sequential([nn.Dense(3), nn.Dense(3), normlab.RMSNorm()])
    converted = surgery.convert(source, initial(source, x, trained=True), target, x)
    assert converted.paths("carried") == (
        "params/layers_1/bias",
        "params/layers_1/kernel",
        "params/layers_2/scale",
    )
    # The scale of a norm would have fitted into the bias of the layer that stands there now.
    assert "params/layers_0/bias" in converted.paths("new")
    assert "params/layers_0/bias" in converted.paths("dropped")


def test_the_record_prints_as_a_table_of_what_is_not_just_the_same():
    _, converted = convert(normlab.LayerNorm, normlab.ScaleNorm)
    lines = str(converted).splitlines()
    assert lines[0] == "Conversion; 4 more variables were carried over as they are"
    assert any(
        "params/norm_0/scale" in line
        and "LayerNorm to ScaleNorm" in line
        and "new" in line
        and "the source has the shape 5" in line
        for line in lines
    )
    assert not any("dense_0/kernel" in line for line in lines)


def test_a_model_that_is_its_layer_converts():
    x = jnp.ones((2, 3))
    source = normlab.BatchNorm()
    variables = initial(source, x, trained=True, use_running_average=True)
    converted = surgery.convert(source, variables, normlab.LayerNorm(), x)
    np.testing.assert_array_equal(
        converted.variables["params"]["scale"], variables["params"]["scale"]
    )
    assert converted.paths("dropped") == ("batch_stats/mean", "batch_stats/var")
