"""How long a run is, and at which of its steps it is looked at."""

from typing import NamedTuple


class Length(NamedTuple):
    """How long a run is, in steps of the optimizer.

    Attributes:
        steps: All of it.
        record_every: Between two records of the curve; one comes after the last step in any case.
        evaluate_every: Between two evaluations on the validation split; likewise.
    """

    steps: int
    record_every: int
    evaluate_every: int

    @property
    def points(self) -> int:
        """How many records the curve of a run to its end has."""
        return -(-self.steps // self.record_every)

    def first(self, count: int) -> list[int]:
        """Returns the steps of the first records of the curve; of all where there are no more."""
        every = self.record_every
        steps = list(range(every, min(count, self.points) * every + 1, every))
        return [*steps[:-1], min(steps[-1], self.steps)] if steps else []

    def cut(self, points: int) -> "Length":
        """Returns the length of a run that stops after so many records of its curve."""
        return self._replace(steps=min(self.steps, self.record_every * points))

    def is_evaluated(self, step: int) -> bool:
        """Whether a record comes with an evaluation on the validation split."""
        return step == self.steps or step % self.evaluate_every == 0


def length_of(
    steps_per_epoch: int,
    *,
    epochs: int | None,
    steps: int | None,
    validate_every: int = 1,
    evaluate_every: int | None = None,
) -> Length:
    """Returns how long a run is, by the fields of `TrainSpec` that say so."""
    if epochs is not None:
        every = validate_every * steps_per_epoch
        return Length(epochs * steps_per_epoch, steps_per_epoch, every)
    assert steps is not None  # or there would be epochs
    every = min(evaluate_every or max(1, steps // 20), steps)
    return Length(steps, every, every)
