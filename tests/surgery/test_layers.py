"""Which normalization layers are found in a model, and how models are told to evaluate."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from flax import nnx
from surgery.models import DIGITS, OneLayer, cnn, initial

import normlab
from normlab import surgery
from normlab.variants import VARIANTS


def test_layers_are_found_in_the_order_of_their_calls_without_computing_anything():
    model = cnn()
    shapes = jax.eval_shape(partial(initial, model, train=True))
    found = surgery.find_layers(model, shapes, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))
    assert [(it.path, it.kind, it.input_shape) for it in found] == [
        (("norm_0",), "BatchNorm", (2, 4, 4, 4)),
        (("norm_1",), "BatchNorm", (2, 4, 4, 4)),
    ]
    assert all(it.keeps_statistics for it in found)


class Mixed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.LayerNorm()(x)
        x = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True)])(x)
        x = normlab.ConditionalNorm(normlab.InstanceNorm)(x[:, None], jnp.ones((len(x), 2)))[:, 0]
        return normlab.ProxyNorm()(nn.RMSNorm()(x))


def test_layers_of_flax_and_inside_of_other_modules_are_found():
    x = jnp.ones((3, 4))
    model = Mixed()
    found = surgery.find_layers(model, initial(model, x, train=True), x)
    assert [it.kind for it in found] == [
        "LayerNorm",
        "BatchNorm",
        "InstanceNorm",
        "RMSNorm",
        "ProxyNorm",
    ]
    assert [it.keeps_statistics for it in found] == [False, True, False, False, False]


def test_every_registered_layer_is_found():
    for variant in VARIANTS.values():
        groups = {"num_groups": 2} if hasattr(variant.layer, "num_groups") else {}
        model = OneLayer(variant.layer(**groups))
        x = jnp.ones((2, 3, 4))
        shapes = jax.eval_shape(partial(initial, model, x, train=True))
        assert [it.kind for it in surgery.find_layers(model, shapes, x)] == [variant.layer.__name__]


class Told(nn.Module):
    """Returns what it was told."""

    deterministic: bool | None = None

    def __call__(self, x, training, deterministic=None, use_running_average=None):
        return x, training, nn.merge_param("d", self.deterministic, deterministic)


@pytest.mark.parametrize("field", [None, True])
def test_a_model_is_told_to_evaluate_by_what_its_call_takes_and_its_fields_leave_open(field):
    assert nn.apply(surgery.evaluate, Told(field))({}, 1) == (1, False, True)


def test_any_other_call_can_be_given():
    model = cnn()
    variables = initial(model, train=True)
    found = surgery.find_layers(
        model, variables, {"image": DIGITS[:2]}, call=lambda model, x: model(x["image"], train=True)
    )
    assert len(found) == 2


def test_what_is_no_linen_model_is_refused():
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=r"LayerNorm is none.*normlab\.surgery\.nnx"):
            surgery.find_layers(normlab.nnx.LayerNorm(3, rngs=nnx.Rngs(0)), {}, DIGITS)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
