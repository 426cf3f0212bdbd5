"""Whether scale and shift undo batch norm: by hand, and as they were learned."""

from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import normlab
from normlab.data import DataSpec, load
from normlab.models import network_of
from normlab.probes import reporting, undone
from normlab.results import read_results

EXAMPLES = 1024


def measure(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    results = read_results(folder)
    data = load(DataSpec.model_validate(results.config["data"]))
    rows = data.test[:EXAMPLES]
    images = jnp.asarray((data.images[rows].astype(np.float32) - data.mean) / data.deviation)
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in results.runs.filter(phase="final").iter_rows(named=True):
        model, variables = normlab.load(folder / "weights" / run["id"])
        reports = _reports(model, variables, images)
        told = {
            "share_of_sigmoids_that_is_not_linear": float(
                np.mean([_bend(np.asarray(it.outputs)) for it in reports.values()])
            )
        }
        if "norm_0" in variables["params"] and "scale" in variables["params"]["norm_0"]:
            params, state = network_of(model).init(jax.random.key(run["seed"]), images)
            first = _reports(model, {"params": params, "batch_stats": state}, images)
            ratio = _distance(reports) / _distance(first)
            told["distance_from_undoing_at_the_end_over_the_beginning"] = ratio
            told["difference_after_undoing"] = _difference(model, variables["params"], images)
        for name, value in told.items():
            found[name][run["arm"]][run["seed"]] = value
    return found


def _reports(model, variables, images):
    with reporting() as reports:
        model.apply(variables, images, train=True, mutable=["batch_stats"])
    return reports


def _bend(given: np.ndarray) -> float:
    """The share of the variance of the sigmoids that no line explains, unit by unit."""
    returned = 1 / (1 + np.exp(-given.astype(np.float64)))
    given, returned = (it - np.mean(it, 0) for it in (given.astype(np.float64), returned))
    explained = np.sum(given * returned, 0) ** 2 / np.sum(given**2, 0)
    return float(np.mean(1 - explained / np.sum(returned**2, 0)))


def _distance(reports) -> float:
    """How far layers are from undoing themselves, in deviations of their inputs."""
    of_layers = [undone(it) for it in reports.values()]
    return float(np.mean([np.hypot(it["undone"], it["undone_bias"]) for it in of_layers]))


def _difference(model, params, images) -> float:
    """By how much outputs differ between norms that undo themselves, and none at all."""
    outputs = {}
    for undoes in (True, False):
        x = images.reshape(len(images), -1)
        for place in range(len(model.hidden)):
            x = x @ params[f"dense_{place}"]["kernel"]
            if undoes:
                layer = normlab.BatchNorm(use_running_average=False)
                scale, bias = jnp.sqrt(jnp.var(x, 0) + layer.epsilon), jnp.mean(x, 0)
                x = layer.apply(
                    {"params": {"scale": scale, "bias": bias}}, x, mutable=["batch_stats"]
                )[0]
            x = jax.nn.sigmoid(x)
        outputs[undoes] = x @ params["head"]["kernel"] + params["head"]["bias"]
    largest = jnp.max(jnp.abs(outputs[True] - outputs[False]))
    return float(largest / jnp.std(outputs[False]))
