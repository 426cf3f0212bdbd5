"""Where arms of a seed do not start from the same weights, results and page name them."""

from collections.abc import Callable

import pytest
from flax import linen as nn
from flax import nnx
from flax.nnx import bridge

import normlab
from normlab.compare.pairing import unpaired
from normlab.compare.store import Result, Store
from normlab.models import MODELS
from normlab.variants import VARIANTS

STUDY = {
    "study": "pairs",
    "data": {"name": "digits", "batch_size": 32, "train_examples": 64},
    "train": {"epochs": 1},
    "variants": {"none": {"layer": "identity"}, "batch": {"layer": "batch_norm"}},
    "seeds": 2,
}


class Bridged(nn.Module):
    """An NNX network inside: its norm, if there is one, draws keys before the head does."""

    norm: Callable
    classes: int

    @nn.compact
    def __call__(self, x, *, train):
        draws = self.norm.func is normlab.BatchNorm

        class Network(nnx.Module):
            def __init__(self, *, rngs):
                self.first = nnx.Linear(64, 8, rngs=rngs)
                self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs) if draws else None
                self.head = nnx.Linear(8, 10, rngs=rngs)

            def __call__(self, x):
                x = self.first(x)
                return self.head(x if self.norm is None else self.norm(x))

        return bridge.to_linen(Network)(x.reshape(len(x), -1))


class Shaped(nn.Module):
    """A network that is wider with one of the norms."""

    norm: Callable
    classes: int

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(9 if self.norm.func is normlab.BatchNorm else 8)(x.reshape(len(x), -1))
        return nn.Dense(self.classes)(self.norm()(x, use_running_average=not train))


class Drawing(nn.Module):
    """A norm with random weights of its own."""

    @nn.compact
    def __call__(self, x, use_running_average=None):
        return x + nn.Dense(x.shape[-1])(x)


class Plain(nn.Module):
    """A network whose layers have the names that Flax gives them."""

    norm: Callable
    classes: int

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(self.norm()(nn.Dense(8)(x.reshape(len(x), -1)), use_running_average=not train))
        return nn.Dense(self.classes)(x)


@pytest.fixture(autouse=True)
def _forget_what_is_registered():
    yield
    for name in ("bridged", "shaped", "plain"):
        MODELS.pop(name, None)
    VARIANTS.pop("drawing", None)


@pytest.mark.parametrize(
    ("name", "model", "path"),
    [
        ("bridged", Bridged, "ToLinen_0/head/kernel"),
        ("shaped", Shaped, "Dense_0/kernel and 1 more"),
    ],
)
def test_arms_that_do_not_start_from_the_same_weights_are_named(tmp_path, name, model, path):
    """The page called them paired."""
    normlab.register_model(name, model)
    results = normlab.compare(STUDY, out=tmp_path, model={"name": name})
    (said,) = results.unpaired
    assert said.startswith(f"batch is not paired with none in its initial weights: {path} differ")
    assert said in results.report.read_text("utf-8")
    assert said.partition(":")[0] in repr(results)


def test_arms_that_differ_in_their_norms_alone_are_paired(tmp_path):
    normlab.register_model("plain", Plain)
    normlab.register("drawing", Drawing)
    variants = {it: {"layer": it} for it in ("identity", "batch_norm", "layer_norm", "drawing")}
    results = normlab.compare(
        {**STUDY, "variants": variants}, out=tmp_path, model={"name": "plain"}
    )
    assert results.unpaired == []
    told = {
        (it.arm, it.seed): it.initial_weights and sorted(it.initial_weights)
        for it in Store(tmp_path).results()
    }
    kernels = ["Dense_0/kernel", "Dense_1/kernel"]
    assert told == {(it, seed): None if seed else kernels for it in variants for seed in (0, 1)}


def test_weights_of_other_names_are_the_same_if_their_values_are():
    def made(arm, weights):
        return Result.model_construct(arm=arm, initial_weights=weights)

    ours = {"a/kernel": [1.0, 0.5, -0.5, 3.0, 4.0]}
    for theirs, paired in (
        ({"b/kernel": [1.0001, 0.5, -0.5, 3.0, 4.0]}, True),
        ({"a/kernel": [1.0, 0.5, -0.6, 3.0, 4.0]}, False),
        ({"a/kernel": [1.0, 0.5, -0.5, 4.0, 3.0]}, False),
        ({**ours, "c": [2.0, 1.0, 3.0, 2.0]}, False),
        ({}, False),
    ):
        results = [made("x", ours), made("y", theirs)]
        assert (unpaired(results, {"x": "y", "y": "y"}) == []) == paired
