"""What a run is worth in a comparison.

A metric that is absent, since the run diverged or since it overflowed, is the worst there is.
"""

import math

from .store import Result


def accuracy_on_validation(run: Result) -> float:
    """Accuracy on the validation split after the last epoch; 0 for a diverged run."""
    return _worst_accuracy(next(reversed(run.curve.validation_accuracy), None), run)


def loss_on_validation(run: Result) -> float:
    """Loss on the validation split after the last epoch; infinite for a diverged run."""
    return _worst_loss(next(reversed(run.curve.validation_loss), None), run)


def accuracy_on_test(run: Result) -> float:
    """Accuracy on the test split; 0 for a diverged run."""
    return _worst_accuracy(run.test.accuracy if run.test else None, run)


def loss_on_test(run: Result) -> float:
    """Loss on the test split; infinite for a diverged run."""
    return _worst_loss(run.test.loss if run.test else None, run)


def steps_to(run: Result, target: float) -> float:
    """Steps until the first epoch end with a validation accuracy of the target; else infinite."""
    epochs = enumerate(run.curve.validation_accuracy, start=1)
    reached = (epoch for epoch, it in epochs if it is not None and it >= target)
    return float(next(reached, math.inf) * run.steps_per_epoch)


def _worst_accuracy(value: float | None, run: Result) -> float:
    return 0.0 if value is None or run.diverged else value


def _worst_loss(value: float | None, run: Result) -> float:
    return math.inf if value is None or run.diverged else value
