"""The decoder-only transformer: its formula in NumPy, what it sees, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from pydantic import TypeAdapter
from small_runs import programs_of, run

import normlab
from normlab.data import DataSpec, load
from normlab.models import GPT, ModelSpec, network_of
from normlab.models.gpt import rotated
from normlab.objectives import NextToken
from normlab.train import AdamSpec, TrainSpec

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 7, size=(2, 5)), jnp.int32)
small = partial(GPT, classes=7, width=8, depth=2, heads=2, mlp_ratio=3)


def drawn(model, deviation=0.5):
    """Variables drawn at random, so that no bias and no scale is at a special value."""
    variables = jax.eval_shape(partial(model.init, train=True), jax.random.key(0), TOKENS)
    generator = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(deviation * generator.normal(size=leaf.shape), leaf.dtype),
        variables,
    )


def layer_norm(vector, params):
    return oracles.layer_norm(vector, scale=params["scale"], bias=params["bias"], epsilon=1e-6)


@pytest.mark.parametrize(
    ("norm_position", "fields", "told"),
    [
        ("pre", {}, {}),
        ("post", {"positions": "rotary", "tie_embeddings": False}, {"rotary": True}),
        (
            "peri",
            {"positions": "rotary", "query_key_norm": normlab.LayerNorm, "scale_embedding": True},
            {"rotary": True, "query_key_norm": True},
        ),
    ],
)
def test_it_is_its_formula(norm_position, fields, told):
    with jax.enable_x64(True):
        norm = partial(normlab.LayerNorm, epsilon=1e-6)
        if "query_key_norm" in fields:
            fields = fields | {"query_key_norm": norm}
        model = small(norm=norm, norm_position=norm_position, dtype=jnp.float64, **fields)
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), drawn(model))
        logits = model.apply(variables, TOKENS, train=False)
    assert ("embedding_scale" in variables["params"]) == ("scale_embedding" in fields)
    assert ("head" in variables["params"]) == (fields.get("tie_embeddings") is False)
    wanted = oracles.gpt(
        variables["params"],
        np.asarray(TOKENS),
        norm_position=norm_position,
        norm=layer_norm,
        heads=2,
        depth=2,
        **told,
    )
    # The logits are float32; the softmax of the attention as well.
    np.testing.assert_allclose(logits, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("norm_position", ["pre", "post", "peri"])
@pytest.mark.parametrize("norm", ["group_norm", "batch_norm"])
def test_a_later_token_changes_no_earlier_logit(norm_position, norm):
    """Norms over all of an example saw tokens that are to be predicted."""
    spec = TypeAdapter(ModelSpec).validate_python(
        {
            "name": "gpt",
            "width": 8,
            "depth": 1,
            "heads": 2,
            "norm_position": norm_position,
            "query_key_norm": "same",
        }
    )
    layer = normlab.variants.VARIANTS[norm].layer
    given = {"num_groups": 2} if norm == "group_norm" else {}
    model = spec.build(partial(layer, **given), 7, "float32")
    variables = jax.tree.map(jnp.abs, drawn(model))
    before = model.apply(variables, TOKENS, train=False)
    after = model.apply(variables, TOKENS.at[:, 3].add(1) % 7, train=False)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any()


def test_products_of_what_is_turned_depend_on_distances_alone():
    generator = np.random.default_rng(2)
    query, key = (jnp.asarray(generator.normal(size=(1, 1, 1, 6)), jnp.float32) for _ in "qk")
    query, key = (rotated(jnp.broadcast_to(it, (1, 9, 1, 6))) for it in (query, key))
    products = np.einsum("ntid,nsid->ts", query, key)
    for distance in range(-8, 9):
        along = np.diagonal(products, distance)
        np.testing.assert_allclose(along, along[0], atol=1e-5)
    assert abs(products[0, 0] - products[0, 3]) > 1e-2


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_half_precision_is_near_single_precision(positions):
    norm = partial(normlab.RMSNorm, epsilon=1e-6)
    model = small(norm=norm, positions=positions, query_key_norm=norm)
    variables = model.init(jax.random.key(0), TOKENS, train=False)
    whole = model.apply(variables, TOKENS, train=False)
    half = model.clone(dtype=jnp.bfloat16).apply(variables, TOKENS, train=False)
    assert whole.dtype == half.dtype == jnp.float32
    assert (whole != half).any()
    np.testing.assert_allclose(half, whole, atol=0.03 * float(jnp.abs(whole).max()))


def test_weights_start_as_in_gpt_2():
    fields = {"tie_embeddings": False, "scale_embedding": True}
    model = small(norm=normlab.LayerNorm, width=64, classes=256, **fields)
    params = model.init(jax.random.key(0), TOKENS, train=False)["params"]
    for name, deviation in {
        "embedding": 0.02,
        "query_0": 0.02,
        "hidden_1": 0.02,
        "head": 0.02,
        "output_0": 0.02 / 2,
        "dense_1": 0.02 / 2,
    }.items():
        (leaf, *_) = [it for it in jax.tree.leaves(params[name]) if it.ndim == 2]
        np.testing.assert_allclose(np.std(leaf), deviation, rtol=0.08)
    assert params["positions"].shape == (5, 64)
    assert params["embedding_scale"] == 8


@pytest.mark.parametrize(("tied", "head"), [(True, "embedding"), (False, "head")])
def test_the_map_to_the_logits_is_head_and_weight(tied, head):
    network = network_of(small(norm=normlab.LayerNorm, tie_embeddings=tied))
    params, _ = network.init(jax.random.key(0), TOKENS)
    roles = network.roles(params)
    named = {
        role: {path[0].key for path, holds in jax.tree_util.tree_leaves_with_path(tree) if holds}
        for role, tree in roles._asdict().items()
    }
    assert named["head"] == {head}
    assert head in named["weights"]
    assert ("embedding" in named["weights"]) == tied
    assert all(it.startswith("norm_") for it in named["norms"])
    assert not named["norms"] & named["weights"]


def test_dropout_changes_training_alone():
    model = small(norm=normlab.LayerNorm, dropout=0.5)
    variables = drawn(model)
    train = partial(model.apply, variables, TOKENS, train=True)
    one, other = (train(rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1))
    assert (one != other).any()
    assert (model.apply(variables, TOKENS, train=False) != one).any()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"width": 10, "heads": 4}, "heads=4 do not divide width=10"),
        ({"width": 12, "heads": 4, "positions": "rotary"}, "is 3, but positions=rotary turns"),
        ({"query_key_norm": "rms_nrm"}, "'rms_nrm' is not known"),
        ({"norm_position": "around"}, "'pre', 'post' or 'peri'"),
    ],
)
def test_fields_that_do_not_fit_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        TypeAdapter(ModelSpec).validate_python({"name": "gpt", **given})


def test_other_inputs_than_tokens_and_more_of_them_than_positions_are_refused():
    model = small(norm=normlab.LayerNorm)
    with pytest.raises(ValueError, match=r"the input is float32\[1, 4\]; expected the numbers of"):
        model.init(jax.random.key(0), jnp.zeros((1, 4)), train=False)
    variables = drawn(model)
    assert model.apply(variables, TOKENS[:, :3], train=False).shape == (2, 3, 7)
    with pytest.raises(ValueError, match="10 tokens, but the model has learned 5 positions"):
        model.apply(variables, jnp.tile(TOKENS, 2), train=False)


def test_a_study_refuses_images_for_it():
    from normlab.compare.study import StudyError, study_type

    study = study_type().model_validate(
        {"study": "s", "model": {"name": "gpt"}, "variants": {"a": {"layer": "rms_norm"}}}
    )
    with pytest.raises(StudyError, match="computes with the numbers of tokens, but the data digit"):
        study.network(study.arms()[0], 10, integers=False)


def test_it_learns_what_follows_what(tmp_path):
    (tmp_path / "text").write_bytes(b"abcdefgh" * 400)
    spec = DataSpec(name="text", folder=str(tmp_path / "text"), block=16, batch_size=8)
    programs = programs_of(
        small(classes=256, norm=normlab.RMSNorm, depth=1, positions="rotary"),
        load(spec, "none"),
        optimizer=AdamSpec(name="adam", learning_rate=0.03),
        train=TrainSpec(steps=60, evaluate_every=60),
        objective=NextToken(),
    )
    (point,) = run(programs, 0).curve
    assert point.train["bits_per_byte"] > 1
    assert point.validation["bits_per_byte"] < 0.1
