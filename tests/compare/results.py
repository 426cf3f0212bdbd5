"""Results of runs that were never made, for the tests of what they mean."""

import random

from normlab.compare.store import Curve, Result, run_id
from normlab.inference.measure import Measure

RATE = "optimizer.learning_rate"
ACCURACY = Measure("accuracy", share=True)


def named(result):
    """The same result with all that its identity must say, and the name that follows from it."""
    told = {"phase": result.phase, "seed": result.seed, "values": result.values}
    variant = result.identity.get("variant", {})
    told["variant"] = {**variant, "name": result.variant}
    identity = result.identity | told
    name = run_id(result.phase, result.variant, result.seed, identity)
    return result.model_copy(update={"identity": identity, "id": name})


def run(phase, variant, seed, accuracy=0.9, loss=0.3, *, rate=0.1, diverged=False, **changes):
    """A run whose validation accuracy is `accuracy`, or the curve given."""
    curve = accuracy if isinstance(accuracy, list) else [accuracy]
    per_epoch = changes.get("steps_per_epoch", 10)
    fields = {
        "id": f"{phase}-{variant}-{seed}-{random.getrandbits(64)}",
        "phase": phase,
        "variant": variant,
        "arm": variant,
        "seed": seed,
        "values": {RATE: rate},
        "status": "diverged" if diverged else "finished",
        "steps_per_epoch": per_epoch,
        "curve": Curve(
            step=[per_epoch * (place + 1) for place in range(len(curve))],
            train={"loss": curve, "accuracy": curve},
            validation={"loss": [loss] * len(curve), "accuracy": curve},
        ),
        "test": None if diverged or phase == "tune" else {"loss": loss, "accuracy": curve[-1]},
        "seconds": 1.0,
        "identity": {},
    }
    return Result(**(fields | changes))


def finals(variant, accuracies, **changes):
    return [run("final", variant, seed, it, **changes) for seed, it in enumerate(accuracies)]
