"""Objectives from a study to its page, their test metrics made anew from the weights it keeps."""

import json
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import objectives as oracles

import normlab
from normlab.models import MODELS

STUDY = {
    "train": {"steps": 6, "evaluate_every": 4},
    "optimizer": {"name": "adam", "learning_rate": 0.01},
    "variants": {"rms": {"layer": "rms_norm"}},
    "seeds": 1,
    "keep": "last",
}


def compared(folder, name, arrays, **parts):
    """Runs a study on arrays of one's own; none of the batches divides an array."""
    np.savez(folder / "own.npz", **arrays)
    data = {
        "name": "npz",
        "folder": str(folder / "own.npz"),
        "batch_size": 16,
        "standardize": False,
    }
    told = {"study": name, "objective": {"name": name}, "data": data, **STUDY}
    objective = {**told["objective"], **parts.pop("objective", {})}
    return normlab.compare({**told, **parts, "objective": objective}, out=folder / "out")


def assert_test_metrics_are_those_of_the_weights(results, oracle, predict):
    """Compares the run with what the oracle makes of what its model predicts."""
    (file,) = results.folder.glob("runs/*.json")
    run = json.loads(file.read_text())
    expected = oracle(np.asarray(predict(*normlab.load(results.folder / "weights" / run["id"]))))
    assert run["test"].keys() == expected.keys()
    for metric, value in expected.items():
        assert run["test"][metric] == pytest.approx(value, rel=2e-5), metric
    assert run["curve"]["step"] == [4, 6]


def test_a_study_of_the_next_token_with_padding(tmp_path):
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 9, (90, 12)).astype(np.int32)
    tokens[np.arange(12) >= generator.integers(4, 13, (90, 1))] = 0
    results = compared(
        tmp_path,
        "next_token",
        {"x_train": tokens[:69], "x_test": tokens[69:]},
        model={"name": "gpt", "width": 8, "depth": 1, "heads": 2},
        objective={"padding": 0},
    )
    assert_test_metrics_are_those_of_the_weights(
        results,
        lambda logits: oracles.next_token(logits, tokens[69:], padding=0),
        lambda model, variables: model.apply(variables, jnp.asarray(tokens[69:, :-1]), train=False),
    )
    assert "test perplexity" in results.report.read_text()


def test_a_study_of_a_class_for_each_position(tmp_path):
    """Positions of class -1 count nowhere, in the training as in the evaluation."""

    class Pixels(nn.Module):
        norm: Callable
        classes: int

        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(6, (3, 3))(x)
            x = nn.relu(self.norm()(x, use_running_average=not train))
            return nn.Conv(self.classes, (1, 1))(x)

    generator = np.random.default_rng(0)
    images = generator.normal(size=(90, 5, 4, 2)).astype(np.float32)
    classes = (images[..., 0] > 0).astype(np.int32) + (images[..., 1] > 0.5)
    classes[generator.random(classes.shape) < 0.2] = -1
    normlab.register_model("pixels")(Pixels)
    try:
        results = compared(
            tmp_path,
            "per_pixel",
            {
                "x_train": images[:69],
                "y_train": classes[:69],
                "x_test": images[69:],
                "y_test": classes[69:],
            },
            model={"name": "pixels"},
        )
        assert_test_metrics_are_those_of_the_weights(
            results,
            lambda logits: oracles.per_pixel(logits, classes[69:]),
            lambda model, variables: model.apply(variables, jnp.asarray(images[69:]), train=False),
        )
    finally:
        MODELS.pop("pixels")
    assert "test mean IoU" in results.report.read_text()
