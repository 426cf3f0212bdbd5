"""The Vision Transformer: its formula in NumPy, its size, its norms, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.special import erf, softmax

import normlab
from normlab.models import ModelSpec, ViT
from normlab.variants import VARIANTS

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 8, 2)), jnp.float32)
small = partial(ViT, classes=3, patch_size=2, width=8, depth=2, heads=2, mlp_ratio=3)


def drawn(model):
    """Variables drawn at random, so that no bias and no scale is at a special value."""
    variables = jax.eval_shape(partial(model.init, train=True), jax.random.key(0), IMAGES)
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: 0.5 * generator.normal(size=leaf.shape), variables)


def in_numpy(params, images, *, block_norm, query_key_norm, patch=2, depth=2, heads=2):
    """The logits, patch by patch and head by head, in double precision."""

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * params[name]["scale"] + params[name]["bias"]

    def attention(x, block):
        width = x.shape[-1] // heads
        found = []
        for head in range(heads):
            q, k, v = (
                (
                    x @ params[f"{name}_{block}"]["kernel"]
                    + params[f"{name}_{block}"].get("bias", 0)
                )[..., head * width : (head + 1) * width]
                for name in ("query", "key", "value")
            )
            if query_key_norm:
                q, k = norm(q, f"norm_{block}_query"), norm(k, f"norm_{block}_key")
            weights = softmax(q @ k.swapaxes(1, 2) / np.sqrt(width), axis=-1)
            found.append(weights @ v)
        return dense(np.concatenate(found, -1), f"output_{block}")

    def perceptron(x, block):
        x = dense(x, f"hidden_{block}")
        return dense(x * (1 + erf(x / np.sqrt(2))) / 2, f"dense_{block}")

    _, height, width, _ = images.shape
    tokens = [
        images[:, top : top + patch, left : left + patch].reshape(len(images), -1)
        for top in range(0, height, patch)
        for left in range(0, width, patch)
    ]
    x = dense(np.stack(tokens, 1), "patches") + params["positions"]
    for block in range(depth):
        for name, branch in (("attention", attention), ("mlp", perceptron)):
            place = f"norm_{block}_{name}"
            if block_norm == "pre":
                x = x + branch(norm(x, place), block)
            else:
                x = norm(x + branch(x, block), place)
    x = norm(x, "norm_last") if block_norm == "pre" else x
    return dense(x.mean(1), "head")


@pytest.mark.parametrize(("block_norm", "query_key_norm"), [("pre", True), ("post", False)])
def test_it_is_its_formula(monkeypatch, block_norm, query_key_norm):
    # The approximate GELU differs by 5e-4 from the exact one, which the formula has.
    exact = partial(jax.nn.gelu, approximate=False)
    monkeypatch.setitem(normlab.models.block.ACTIVATIONS, "gelu", exact)
    fields = {"block_norm": block_norm, "query_key_norm": query_key_norm}
    model = small(norm=normlab.LayerNorm, **fields)
    variables = drawn(model)
    actual = jax.jit(partial(model.apply, train=False))(variables, IMAGES)
    expected = in_numpy(variables["params"], np.asarray(IMAGES, np.float64), **fields)
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("width", "heads", "parameters"), [(192, 3, 5_717_416), (384, 6, 22_050_664)]
)
def test_it_has_the_parameters_of_deit_but_for_the_class_token(width, heads, parameters):
    """Touvron et al., 2021: DeiT-Ti and DeiT-S, 5.7 and 22.1 million."""
    model = ViT(
        classes=1000, norm=normlab.LayerNorm, patch_size=16, width=width, depth=12, heads=heads
    )
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(partial(model.init, train=True), jax.random.key(0), images)
    token_and_its_position = 2 * width
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == parameters - token_and_its_position


def test_batch_norm_pools_over_examples_and_tokens_and_in_queries_over_heads_too():
    norm = partial(normlab.BatchNorm, momentum=0.0)
    model = small(norm=norm, depth=1, query_key_norm=True)
    init = jax.jit(partial(model.init, train=True))
    variables = init(jax.random.key(0), IMAGES)

    @jax.jit
    def train(variables):
        return model.apply(
            variables,
            IMAGES,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, method: (
                method == "__call__" and module.name in ("query_0", "norm_0_attention")
            ),
        )[1]

    state = train(variables)
    (query,) = state["intermediates"]["query_0"]["__call__"]
    (normed,) = state["intermediates"]["norm_0_attention"]["__call__"]
    assert normed.shape == (3, 8, 8)
    np.testing.assert_allclose(np.mean(normed, (0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(np.var(normed, (0, 1)), 1, atol=1e-2)
    # A bias before batch norm would be taken away by it.
    assert "bias" not in variables["params"]["query_0"]
    by_head = np.asarray(query).reshape(3, 8, 2, 4)
    statistics = state["batch_stats"]["norm_0_query"]
    np.testing.assert_allclose(statistics["mean"], by_head.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(statistics["var"], by_head.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("query_key_norm", [True, False])
def test_normed_queries_and_keys_bound_the_attention_logits(query_key_norm):
    """Dehghani et al., 2023: growing projections must not turn attention into one-hot vectors."""
    norm = partial(normlab.LayerNorm, epsilon=0.0)
    model = small(norm=norm, depth=1, query_key_norm=query_key_norm)
    variables = drawn(model)
    params = dict(variables["params"])
    params |= {
        name: jax.tree.map(lambda leaf: 100 * leaf, params[name]) for name in ("query_0", "key_0")
    }
    apply = jax.jit(partial(model.apply, train=False))
    before, after = (
        np.asarray(apply({"params": p}, IMAGES)) for p in (variables["params"], params)
    )
    assert np.allclose(before, after, atol=1e-4) is query_key_norm


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_variant_can_stand_in_it(variant):
    # As many features a head as the default number of groups.
    model = small(norm=VARIANTS[variant].layer, width=32, depth=1, heads=1, query_key_norm=True)
    images = jax.ShapeDtypeStruct((64, 4, 8, 2), jnp.float32)
    logits, _ = jax.eval_shape(
        partial(model.init_with_output, train=True), jax.random.key(0), images
    )
    assert logits.shape == (64, 3)


def test_an_image_that_patches_do_not_divide_is_refused_with_what_would():
    model = small(norm=normlab.Identity, patch_size=3)
    with pytest.raises(ValueError, match=r"patches of 3 x 3 .* 4 x 8\. Use .*patch_size=1, 2, 4"):
        jax.eval_shape(partial(model.init, train=True), jax.random.key(0), IMAGES)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="heads=3 do not divide width=8"):
        jax.eval_shape(
            partial(small(norm=normlab.Identity, heads=3).init, train=True),
            jax.random.key(0),
            IMAGES,
        )
    with pytest.raises(ValueError, match="heads=5 do not divide width=64"):
        TypeAdapter(ModelSpec).validate_python({"name": "vit", "heads": 5})
