"""Networks without normalization layers: residual scalars, Fixup's rules, normalized weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from pydantic import TypeAdapter

import normlab
from normlab.models import CNN, MLP, ModelSpec, ResNet, network_of, resnet
from normlab.models.block import needs_bias, normalize_and_activate

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
free = partial(ResNet, classes=3, norm=normlab.Identity)


@pytest.fixture(autouse=True)
def _compiles_fast(monkeypatch):
    """The library's convolution gives the same numbers and compiles in a third of the time."""
    monkeypatch.setattr(resnet, "convolution", jax.lax.conv_general_dilated)


def initial(model, images=IMAGES):
    return jax.jit(partial(model.init, train=True))(jax.random.key(1), images)


def shapes(model, images=IMAGES):
    return jax.eval_shape(partial(model.init, train=True), jax.random.key(1), images)


def drawn(tree):
    generator = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape), jnp.float32), tree
    )


def written_out(params, x):
    """A network of depth 8 without norms. Scalars that it does not have are left out."""

    def shift(x, name):
        return x + params.get(f"shift_{name}", 0.0)

    def conv(x, name, stride=1):
        kernel = params[f"conv_{name}"]["kernel"]
        order = ("NHWC", "HWIO", "NHWC")
        x = shift(x, f"conv_{name}")
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=order
        )
        bias = params[f"conv_{name}"].get("bias", jnp.zeros(kernel.shape[-1]))
        return x + bias.reshape(1, 1, 1, -1)

    x = nn.relu(shift(conv(x, "0"), "activation_0"))
    for stage, stride in ((0, 1), (1, 2), (2, 2)):
        place = f"{stage}_0"
        y = nn.relu(shift(conv(x, f"{place}_0", stride), f"activation_{place}_0"))
        y = conv(y, f"{place}_1") * params.get(f"multiplier_{place}", 1.0)
        x = x[:, ::stride, ::stride]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1])))
        x = nn.relu(shift(y + x, f"activation_{place}_1"))
    head = params["head"]
    return shift(x.mean((1, 2)), "head") @ head["kernel"] + head["bias"].reshape(1, -1)


@pytest.mark.parametrize("residual", ["skip_init", "fixup"])
def test_a_network_is_its_formula(residual):
    model = free(depth=8, residual=residual)
    params = drawn(shapes(model)["params"])
    scalars = {name for name in params if not isinstance(params[name], dict)}
    expected = {f"multiplier_{stage}_0" for stage in range(3)}
    if residual == "fixup":
        places = ["0", *(f"{stage}_0_{i}" for stage in range(3) for i in (0, 1))]
        expected |= {f"shift_{what}_{p}" for what in ("conv", "activation") for p in places}
        expected |= {"shift_head"}
    assert scalars == expected
    with_bias = {path[0] for path in flatten_dict(params) if path[-1] == "bias"}
    assert (with_bias == {"head"}) is (residual == "fixup")
    actual = jax.jit(partial(model.apply, train=False))({"params": params}, IMAGES)
    np.testing.assert_allclose(actual, jax.jit(written_out)(params, IMAGES), rtol=1e-4, atol=1e-5)


def deviation(residual, depth):
    """Standard deviation of what the head of a fresh network gets."""
    model = free(depth=depth, classes=64, residual=residual)

    @jax.jit
    def features(key):
        params = model.init(key, IMAGES, train=True)["params"]
        params["head"] = {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}
        return jnp.std(model.apply({"params": params}, IMAGES, train=False))

    return float(features(jax.random.key(1)))


@pytest.mark.parametrize("residual", ["plain", "skip_init", "fixup"])
def test_activations_of_a_fresh_network_keep_their_size_in_depth_unless_it_is_plain(residual):
    growth = deviation(residual, 20) / deviation(residual, 8)
    assert growth > 3 if residual == "plain" else growth == pytest.approx(1, abs=1e-6)


def test_fixup_starts_where_the_paper_says():
    plain, fixup = (initial(free(depth=8, residual=it))["params"] for it in ("plain", "fixup"))
    for name in ("conv_0", *(f"conv_{stage}_0_0" for stage in range(3))):
        # Three branches of two convolutions.
        factor = 1.0 if name == "conv_0" else 3**-0.5
        np.testing.assert_allclose(
            fixup[name]["kernel"], factor * plain[name]["kernel"], rtol=1e-5, atol=1e-8
        )
    for name in ("head", *(f"conv_{stage}_0_1" for stage in range(3))):
        assert not np.any(fixup[name]["kernel"])
        assert np.any(plain[name]["kernel"])
    scalars = {name: leaf for name, leaf in fixup.items() if not isinstance(leaf, dict)}
    assert all(value == name.startswith("multiplier") for name, value in scalars.items())


WIDE = jnp.asarray(np.random.default_rng(3).normal(size=(6, 4)), jnp.float32)


def normalized(kernel, weights, variables):
    """The weights that a layer computes with, in NumPy."""
    kernel = np.asarray(kernel, np.float64)
    match weights:
        case "standardized":
            return (kernel - kernel.mean(0)) / np.sqrt(kernel.var(0) + 1e-6)
        case "scaled_standardized":
            (gain,) = variables["params"]["scaled_standardized_dense_0"].values()
            return np.asarray(gain) * (kernel - kernel.mean(0)) / np.sqrt(4 * kernel.var(0))
        case "weight_norm":
            (scale,) = variables["params"]["weight_norm_dense_0"].values()
            return np.asarray(scale) * kernel / np.linalg.norm(kernel, axis=0)
        case "spectral_norm":
            return kernel / np.linalg.svd(kernel)[1][0]


@pytest.mark.parametrize(
    "weights", ["standardized", "scaled_standardized", "weight_norm", "spectral_norm"]
)
def test_a_layer_computes_with_its_normalized_weights(weights):
    model = MLP(hidden=(5,), classes=3, norm=normlab.Identity, activation="tanh", weights=weights)
    variables = initial(model, WIDE)
    variables = {**variables, "params": drawn(variables["params"])}
    step = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    for _ in range(30):  # The power iteration needs some steps; evaluation then takes none.
        variables |= step(variables, WIDE)[1]
    params = variables["params"]
    dense, head = params["dense_0"], params["head"]
    kernel = normalized(dense["kernel"], weights, variables)
    hidden = np.tanh(np.asarray(WIDE) @ kernel + np.asarray(dense["bias"])[None])
    expected = hidden @ np.asarray(head["kernel"]) + np.asarray(head["bias"])[None]
    actual = model.apply(variables, WIDE, train=False)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("activation", "allowed"), [("relu", 0.4), ("tanh", 0.4), ("silu", 0.4)])
def test_scaled_standardization_keeps_the_variance_through_activations(activation, allowed):
    model = MLP(
        hidden=(256,) * 8,
        classes=2,
        norm=normlab.Identity,
        activation=activation,
        weights="scaled_standardized",
    )
    x = jnp.asarray(np.random.default_rng(4).normal(size=(64, 256)), jnp.float32)

    @jax.jit
    def last(key):
        _, state = model.init_with_output(
            key, x, train=True, capture_intermediates=lambda module, _: module.name == "dense_7"
        )
        return jnp.var(state["intermediates"]["dense_7"]["__call__"][0])

    assert abs(float(last(jax.random.key(0))) - 1) < allowed


@pytest.mark.parametrize("weights", ["standardized", "weight_norm", "spectral_norm"])
def test_all_but_the_head_are_wrapped(weights):
    for model, layers in (
        (CNN(channels=(2, 3), classes=2, norm=normlab.Identity, weights=weights), 2),
        (free(depth=8, weights=weights), 7),
    ):
        captured = jax.eval_shape(
            partial(
                model.init_with_output,
                train=True,
                capture_intermediates=lambda module, _: weights in str(module.name),
            ),
            jax.random.key(0),
            IMAGES,
        )[1]["intermediates"]
        assert len(captured) == layers
        assert not any("head" in name for name in captured)


def test_fixup_with_normalized_weights_is_refused():
    with pytest.raises(ValueError, match="residual='fixup' rests on the size"):
        shapes(free(depth=8, residual="fixup", weights="standardized"))
    with pytest.raises(ValueError, match="which weights='weight_norm' takes away"):
        TypeAdapter(ModelSpec).validate_python(
            {"name": "resnet", "residual": "fixup", "weights": "weight_norm"}
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"residual": "fixup"},
        {"residual": "skip_init", "weights": "scaled_standardized"},
        {"weights": "weight_norm", "norm": normlab.BatchNorm},
    ],
)
def test_only_kernels_are_weights(fields):
    network = network_of(free(depth=8, **fields))
    params, _ = jax.eval_shape(network.init, jax.random.key(1), IMAGES)
    roles = network.roles(params)
    marked = flatten_dict(roles.weights)
    assert {path[0] for path, is_head in flatten_dict(roles.head).items() if is_head} == {"head"}
    assert {path for path, is_weight in marked.items() if is_weight} == {
        (name, "kernel") for name in params if name == "head" or name.startswith("conv")
    }


class Negative(nn.Module):
    """A norm that contains its activation."""

    use_bias: bool = True
    includes_activation = True

    def __call__(self, x, use_running_average=None):
        return -jnp.abs(x)


@pytest.mark.parametrize("position", ["before", "after"])
def test_a_norm_that_contains_its_activation_takes_the_place_of_the_models(position):
    y = normalize_and_activate(WIDE, Negative(), "relu", position, train=True)
    np.testing.assert_array_equal(y, -jnp.abs(WIDE))
    # It follows the linear map directly in both positions.
    assert not needs_bias(Negative(), position)
    assert needs_bias(Negative(use_bias=False), position)
    assert needs_bias(normlab.ScaleNorm(), position)  # which has no such field


def test_a_filter_response_norm_without_threshold_leaves_the_activation_to_the_model():
    images = IMAGES - 3
    for use_threshold in (True, False):
        norm = normlab.FilterResponseNorm(use_threshold=use_threshold)
        variables = norm.init(jax.random.key(0), images)
        if use_threshold:
            variables = {"params": {**variables["params"], "threshold": jnp.full(1, -9.0)}}
        y = normalize_and_activate(images, norm.bind(variables), "relu", "before", train=True)
        assert bool(jnp.any(y < 0)) is use_threshold


def test_the_model_still_activates_after_the_addition_behind_such_a_norm():
    model = ResNet(depth=8, classes=64, norm=Negative)

    @jax.jit
    def features(key):
        params = model.init(key, IMAGES, train=True)["params"]
        params["head"] = {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}
        return model.apply({"params": params}, IMAGES, train=False)

    assert float(jnp.min(features(jax.random.key(0)))) >= 0
