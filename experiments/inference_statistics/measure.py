"""How trained networks fare on the test split by other statistics than their running averages."""

from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import normlab
from normlab.data import DataSpec, load
from normlab.results import read_results

BATCH = 32


def measure(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    results = read_results(folder)
    data = load(DataSpec.model_validate(results.config["data"]))

    def batches(rows):
        images = (data.images[rows].astype(np.float32) - data.mean) / data.deviation
        return list(images[: len(rows) // BATCH * BATCH].reshape(-1, BATCH, *images.shape[1:]))

    train, test = batches(data.train), jnp.stack(batches(data.test))
    labels = data.labels[data.test][: test.shape[0] * BATCH]
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in results.runs.filter(phase="final").iter_rows(named=True):
        model, variables = normlab.load(folder / "weights" / run["id"])

        @jax.jit
        def by_running(variables, model=model):
            return jax.lax.map(lambda batch: model.apply(variables, batch, train=False), test)

        @jax.jit
        def by_test_batch(variables, model=model):
            def outputs(batch):
                return model.apply(variables, batch, train=True, mutable=["batch_stats"])[0]

            return jax.lax.map(outputs, test)

        def right(outputs):
            return float(np.mean(np.argmax(outputs, -1).ravel() == labels))

        # A different batch for each seed, which no run has had as such.
        one = [train[run["seed"] % len(train)]]
        by_all, by_one = (
            normlab.surgery.recalibrate(model, variables, given) for given in (train, one)
        )
        own = right(by_running(variables))
        told = {
            "gain_of_the_statistics_of_all_training_examples": right(by_running(by_all)) - own,
            "loss_by_the_statistics_of_a_training_batch": own - right(by_running(by_one)),
            "loss_by_the_statistics_of_the_test_batch": own - right(by_test_batch(variables)),
        }
        for name, value in told.items():
            found[name][run["arm"]][run["seed"]] = value
    return found
