"""By how much the variance in evaluation differs from the running one."""

from collections import defaultdict
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import normlab
from normlab.data import DataSpec, load
from normlab.probes import reporting
from normlab.results import read_results

EXAMPLES = 4000


def measure(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    results = read_results(folder)
    data = load(DataSpec.model_validate(results.config["data"]))
    images = data.images[data.test[:EXAMPLES]].astype(np.float32)
    images = jnp.asarray((images - data.mean) / data.deviation)
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for run in results.runs.filter(phase="final").iter_rows(named=True):
        if run["arm"].startswith("layer"):
            continue  # which keeps no statistics
        model, variables = normlab.load(folder / "weights" / run["id"])
        with reporting() as reports:
            model.apply(variables, images, train=False)
        _, *behind = reports.values()
        found[run["arm"]][run["seed"]] = float(np.mean([_shift(it) for it in behind]))
    return {"variance_shift": found}


def _shift(report) -> float:
    """The mean over the units of a norm; a unit that never varies is left out."""
    there = np.var(np.asarray(report.inputs, np.float64), 0)
    kept = np.asarray(report.running["var"], np.float64)
    varies = (there > 0) & (kept > 0)
    ratio = kept[varies] / there[varies]
    return float(np.mean(np.maximum(ratio, 1 / ratio)))
