"""The models: their parameters, where norms and biases stand, pairing, the Keras example."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from pydantic import TypeAdapter

import normlab
from normlab.models import CNN, MLP, ModelSpec, ResNet, ViT

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
MODELS = {
    "mlp": partial(MLP, hidden=(6, 5), classes=3),
    "cnn": partial(CNN, channels=(4, 6), strides=(1, 2), classes=3),
    "cnn global": partial(CNN, channels=(4,), head="global_average", padding="valid", classes=3),
    "resnet": partial(ResNet, depth=8, classes=3),
}
# It has no norm between a linear map and an activation.
VIT = {"vit": partial(ViT, width=8, depth=1, heads=2, query_key_norm=True, classes=3)}
NORMS = {
    "batch": normlab.BatchNorm,
    "batch without bias": partial(normlab.BatchNorm, use_bias=False),
    "ghost": partial(normlab.GhostBatchNorm, ghost_batch_size=2),
    "rms": normlab.RMSNorm,
    "group": partial(normlab.GroupNorm, num_groups=1),
    "identity": normlab.Identity,
}


def initial(model, images=IMAGES):
    return model.init(jax.random.key(1), images, train=True)


def shapes(model, images=IMAGES):
    return jax.eval_shape(partial(initial, model), images)


def leaves(variables):
    """Parameters by path, without those of norms."""
    flat = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    named = {"/".join(entry.key for entry in path): leaf for path, leaf in flat}
    return {name: leaf for name, leaf in named.items() if "norm" not in name}


@pytest.mark.parametrize("model", MODELS | VIT)
def test_the_same_key_gives_the_same_weights_whatever_the_norm(model):
    trees = [
        leaves(initial((MODELS | VIT)[model](norm=NORMS[n]))) for n in ("batch", "rms", "identity")
    ]
    kernels = [{n: leaf for n, leaf in tree.items() if n.endswith("kernel")} for tree in trees]
    for other in kernels[1:]:
        assert other.keys() == kernels[0].keys()
        for name in other:
            np.testing.assert_array_equal(other[name], kernels[0][name])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_bias_is_left_out_only_where_a_norm_with_bias_follows_directly(model, position, norm):
    tree = leaves(shapes(MODELS[model](norm=NORMS[norm], norm_position=position)))
    with_bias = {name.split("/")[0] for name in tree if name.endswith("bias")}
    every = {name.split("/")[0] for name in tree}
    norm_has_bias = norm in ("batch", "ghost", "group")
    without = set()
    if norm_has_bias:
        # The last convolution of a residual block is always followed by its norm.
        without = {n for n in every if n != "head" and (position == "before" or n.endswith("_1"))}
        if position == "after" and model != "resnet":
            without = set()
    assert every - with_bias == without


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("position", ["before", "after"])
def test_training_moves_running_statistics_and_evaluation_uses_them(model, position):
    made = MODELS[model](norm=normlab.BatchNorm, norm_position=position)
    variables = initial(made)
    images = 3 * IMAGES + 1
    y, updated = made.apply(variables, images, train=True, mutable=["batch_stats"])
    moved = {**variables, **updated}
    evaluated = made.apply(moved, images, train=False)
    assert y.shape == evaluated.shape == (4, 3)
    assert y.dtype == jnp.float32
    assert not np.allclose(evaluated, made.apply(variables, images, train=False))
    # In evaluation examples do not see each other.
    np.testing.assert_allclose(
        evaluated[:1], made.apply(moved, images[:1], train=False), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("model", MODELS | VIT)
def test_bfloat16_computes_in_bfloat16_whatever_the_norm_returns(model):
    made = (MODELS | VIT)[model](norm=normlab.BatchNorm, dtype=jnp.bfloat16)
    variables = initial(made)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    y, state = made.apply(
        variables,
        IMAGES,
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, nn.Conv | nn.Dense),
    )
    assert y.dtype == jnp.float32
    inner = jax.tree.leaves(state["intermediates"])
    assert {leaf.dtype for leaf in inner if leaf is not y} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_residual_networks_have_the_papers_number_of_parameters(depth, millions):
    model = ResNet(depth=depth, classes=10, norm=normlab.BatchNorm)
    params = shapes(model, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))["params"]
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert round(count / 1e6, 2 if millions < 1 else 1) == millions
    assert len([name for name in params if not name.startswith("norm")]) == depth


def test_a_residual_block_is_its_formula():
    model = ResNet(depth=8, classes=10, norm=partial(normlab.BatchNorm, use_running_average=None))
    variables = initial(model)
    params = variables["params"]

    def conv(x, name, stride=1):
        return jax.lax.conv_general_dilated(
            x,
            params[name]["kernel"],
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def norm(x, name):
        return normlab.BatchNorm().apply({"params": params[name]}, x, False)

    x = nn.relu(norm(conv(IMAGES, "conv_0"), "norm_0"))
    for stage, stride in ((0, 1), (1, 2), (2, 2)):
        y = nn.relu(norm(conv(x, f"conv_{stage}_0_0", stride), f"norm_{stage}_0_0"))
        y = norm(conv(y, f"conv_{stage}_0_1"), f"norm_{stage}_0_1")
        shortcut = x[:, ::stride, ::stride]
        zeros = jnp.zeros((*shortcut.shape[:3], y.shape[-1] - x.shape[-1]))
        x = nn.relu(y + jnp.concatenate([shortcut, zeros], -1))
    head = params["head"]
    expected = x.mean((1, 2)) @ head["kernel"] + head["bias"][None]
    actual = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_specs_build_what_they_say():
    spec = TypeAdapter(ModelSpec).validate_python(
        {"name": "cnn", "channels": [4, 8], "strides": [2, 1], "activation": "gelu"}
    )
    model = spec.build(normlab.LayerNorm, 7, "bfloat16")
    assert (model.channels, model.strides, model.activation) == ((4, 8), (2, 1), "gelu")
    assert (model.classes, model.norm, model.dtype) == (7, normlab.LayerNorm, "bfloat16")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"name": "cnn", "channels": [4, 8], "strides": [2]}, "one stride for each"),
        ({"name": "resnet", "depth": 18}, "8, 20, 32, 44, 56 or 110"),
        ({"name": "mlp", "hidden": []}, "at least 1 item"),
        ({"name": "mlp", "channels": [3]}, "Extra inputs"),
        ({"name": "vit", "block_norm": "before"}, "'pre' or 'post'"),
    ],
)
def test_specs_refuse_what_no_model_has(wrong, told):
    with pytest.raises(ValueError, match=told):
        TypeAdapter(ModelSpec).validate_python(wrong)


@pytest.fixture(scope="module")
def keras_example():
    keras = pytest.importorskip("keras", reason="Keras comes with the extra `parity`")
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


@pytest.mark.parity
def test_the_keras_example_is_the_keras_example(keras_example):
    """`configs/keras_cnn.yaml`: as many parameters, and the same outputs from the same weights."""
    from pathlib import Path

    from normlab.config import load_study

    study = load_study(Path(__file__).parents[2] / "configs/keras_cnn.yaml")
    model = study.model.build(study.variants["batch"].constructor(), 10, "float32")
    generator = np.random.default_rng(3)
    images = jnp.asarray(generator.normal(size=(5, 32, 32, 3)), jnp.float32)
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(model, images)))
    assert count == keras_example.count_params()

    for weight in keras_example.weights:
        positive = "variance" in weight.name
        drawn = generator.uniform(0.5, 2, weight.shape) if positive else None
        weight.assign(generator.normal(0, 0.1, weight.shape) if drawn is None else drawn)
    conv0, norm0, conv1, norm1, _, head = keras_example.layers
    params = {
        name: {"kernel": layer.kernel.value, "bias": layer.bias.value}
        for name, layer in (("conv_0", conv0), ("conv_1", conv1), ("head", head))
    }
    norms = {"norm_0": norm0, "norm_1": norm1}
    params |= {n: {"scale": it.gamma.value, "bias": it.beta.value} for n, it in norms.items()}
    batch_stats = {
        n: {"mean": it.moving_mean.value, "var": it.moving_variance.value}
        for n, it in norms.items()
    }
    variables = {"params": params, "batch_stats": batch_stats}
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)

    def keras_output(**training):
        with jax.numpy_rank_promotion("allow"):  # Keras adds its biases as they are
            return np.asarray(keras_example(images, **training))

    close(
        model.apply(variables, images, train=False),
        keras_output(),
    )
    trained, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    close(trained, keras_output(training=True))
    for name, layer in norms.items():
        close(updated["batch_stats"][name]["mean"], layer.moving_mean.value)
        close(updated["batch_stats"][name]["var"], layer.moving_variance.value)
