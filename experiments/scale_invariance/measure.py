"""Whether trained networks depend on the size of the weights of their hidden layers."""

from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import normlab
from normlab.data import DataSpec, load
from normlab.results import read_results

EXAMPLES, STEPS, FACTOR = 256, 20, 2.0
RATE, DECAY = 0.1, 0.002


def measure(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    results = read_results(folder)
    data = load(DataSpec.model_validate(results.config["data"]))
    rows = data.train[:EXAMPLES]
    images = jnp.asarray((data.images[rows].astype(np.float32) - data.mean) / data.deviation)
    # Of labels that were learned gradients are as good as zero: these are of the example before.
    labels = jnp.roll(jnp.asarray(data.labels[rows]), 1)
    programs = {}
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in results.runs.filter(phase="final").iter_rows(named=True):
        model, variables = normlab.load(folder / "weights" / run["id"])
        if run["arm"] not in programs:
            programs[run["arm"]] = jax.jit(_program(model, images, labels))
        told = programs[run["arm"]](variables)
        for name, value in told.items():
            found[name][run["arm"]][run["seed"]] = float(value)
    return found


def _program(model, images, labels):
    def outputs(hidden, variables):
        params = {**variables["params"]}
        for name, kernel in hidden.items():
            params[name] = {**params[name], "kernel": kernel}
        given = {**variables, "params": params}
        return model.apply(given, images, train=True, mutable=["batch_stats"])[0]

    def loss(hidden, variables):
        logits = outputs(hidden, variables)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def trained(hidden, variables, rate, decay):
        """Returns the outputs after steps of the weights of the hidden layers alone."""

        def step(_, hidden):
            gradient = jax.grad(loss)(hidden, variables)
            return jax.tree.map(lambda w, g: w - rate * (g + decay * w), hidden, gradient)

        return outputs(jax.lax.fori_loop(0, STEPS, step, hidden), variables)

    def told(variables):
        hidden = {
            name: given["kernel"]
            for name, given in variables["params"].items()
            if name.startswith("dense_")
        }
        larger = jax.tree.map(lambda leaf: FACTOR * leaf, hidden)
        gradient = jax.grad(loss)(hidden, variables)
        cosines = [
            jnp.abs(jnp.vdot(hidden[name], gradient[name]))
            / (jnp.linalg.norm(hidden[name]) * jnp.linalg.norm(gradient[name]))
            for name in hidden
        ]
        size, at_larger = (
            optax.global_norm(it) for it in (gradient, jax.grad(loss)(larger, variables))
        )
        one = trained(hidden, variables, RATE, DECAY)
        other = trained(larger, variables, FACTOR**2 * RATE, DECAY / FACTOR**2)
        return {
            "cosine_of_weights_and_gradient": jnp.max(jnp.stack(cosines)),
            "gradient_at_doubled_weights_over_gradient": FACTOR * at_larger / size,
            "distance_of_outputs_after_rescaled_training": jnp.sqrt(
                jnp.mean(jnp.square(other - one))
            )
            / jnp.std(one),
        }

    return told
