"""Results of runs that were never made, for the tests of what they mean."""

import random

from normlab.compare.store import Curve, Evaluation, Result

RATE = "optimizer.learning_rate"


def run(phase, variant, seed, accuracy=0.9, loss=0.3, *, rate=0.1, diverged=False, **changes):
    """A run whose validation accuracy is `accuracy`, or the curve given."""
    curve = accuracy if isinstance(accuracy, list) else [accuracy]
    fields = {
        "id": f"{phase}-{variant}-{seed}-{random.getrandbits(64)}",
        "phase": phase,
        "variant": variant,
        "arm": variant,
        "seed": seed,
        "values": {RATE: rate},
        "status": "diverged" if diverged else "finished",
        "steps_per_epoch": 10,
        "curve": Curve(
            train_loss=curve,
            train_accuracy=curve,
            validation_loss=[loss] * len(curve),
            validation_accuracy=curve,
        ),
        "test": None if diverged or phase == "tune" else Evaluation(loss=loss, accuracy=curve[-1]),
        "seconds": 1.0,
        "identity": {},
    }
    return Result(**(fields | changes))


def finals(variant, accuracies, **changes):
    return [run("final", variant, seed, it, **changes) for seed, it in enumerate(accuracies)]
