"""How trained networks fare on test images of another brightness or contrast."""

from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import normlab
from normlab.data import DataSpec, load
from normlab.results import read_results

BATCH, EXAMPLES = 100, 4000

# Of values from 0 to 255.
SHIFTS = {
    "brighter": lambda images: np.minimum(images + 80, 255),
    "darker": lambda images: images * 0.4,
    "fainter": lambda images: 127 + 0.4 * (images - 127),
}


def measure(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    results = read_results(folder)
    data = load(DataSpec.model_validate(results.config["data"]))
    rows = data.test[:EXAMPLES]
    images, labels = data.images[rows].astype(np.float32), data.labels[rows]

    def batches(images):
        images = (images - data.mean) / data.deviation
        return jnp.asarray(images.reshape(-1, BATCH, *images.shape[1:]), jnp.float32)

    plain = batches(images)
    shifted = [batches(shift(images)) for shift in SHIFTS.values()]
    programs = {}
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in results.runs.filter(phase="final").iter_rows(named=True):
        model, variables = normlab.load(folder / "weights" / run["id"])

        def by_running(variables, given, model=model):
            return jax.lax.map(lambda batch: model.apply(variables, batch, train=False), given)

        def by_test_batch(variables, given, model=model):
            def outputs(batch):
                return model.apply(variables, batch, train=True, mutable=["batch_stats"])[0]

            return jax.lax.map(outputs, given)

        # One model an arm.
        running, tested = programs.setdefault(
            run["arm"], (jax.jit(by_running), jax.jit(by_test_batch))
        )

        def right(program, given, variables=variables):
            return float(np.mean(np.argmax(program(variables, given), -1).ravel() == labels))

        on_shifted = float(np.mean([right(running, it) for it in shifted]))
        by_theirs = float(np.mean([right(tested, it) for it in shifted]))
        told = {
            "accuracy_on_shifted_images": on_shifted,
            "gain_by_test_statistics_on_shifted_images": by_theirs - on_shifted,
            "loss_by_test_statistics_on_images_as_they_are": (
                right(running, plain) - right(tested, plain)
            ),
        }
        for name, value in told.items():
            found[name][run["arm"]][run["seed"]] = value
    return found
