"""Successive halving: tuning runs that stop early, and the points of a search that go on.

Each arm's points are trained for an eighth of a run first; the better half of them, by what tuning
selects by, for a quarter, half of these for a half, and the rest for a whole run. Each of these is
a run of its own from the beginning, so that a study that is stopped goes on with the same choice,
wherever its runs are made, and takes up to half of the time of all points to their end.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..inference.measure import Measure
from ..length import length_of
from .selection import trials
from .store import Result

# Parts of a run that each rung is long.
_PARTS = (8, 4, 2, 1)


class Rung(NamedTuple):
    """Runs of equal length.

    Attributes:
        until: Points of their curves after which they stop; None for whole runs.
        points: How many points of the search they are made at.
    """

    until: int | None
    points: int


def rungs(train: Mapping[str, Any], points: int) -> list[Rung]:
    """Returns the rungs of an arm, the last one of whole runs.

    What would decide nothing is left out: a rung of a single point, and one as long as the last.

    Args:
        train: The fields of `TrainSpec` that say how long a run is.
        points: Of its search.
    """
    fields = ("epochs", "steps", "validate_every", "evaluate_every")
    whole = length_of(1, **{key: train[key] for key in fields if key in train}).points
    made: list[Rung] = []
    for place, parts in enumerate(_PARTS):
        until, kept = -(-whole // parts), -(-points // 2**place)
        rung = Rung(until if until < whole else None, kept)
        decides = rung.until is None or kept > 1
        if decides and rung.until not in (it.until for it in made):
            made.append(rung)
    return made


def going_on(
    results: Iterable[Result], arm: str, measure: Measure, now: Rung, further: Rung
) -> list[dict[str, Any]]:
    """Returns the values of the points that go on to the next rung, the best ones first.

    Args:
        results: Of the arm's tuning.
        arm: Its name.
        measure: What is selected by.
        now: The rung that is done.
        further: The next one.
    """
    done = [it for it in results if it.until == now.until]
    return [trial.values for trial in trials(done, arm, measure)[: further.points]]


def length_at(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a stored configuration says of the length of runs, with changes by path."""
    train = dict(config["train"])
    for path, value in changes.items():
        part, _, field = path.partition(".")
        if part == "train":
            if field in ("epochs", "steps"):
                train |= {"epochs": None, "steps": None}
            train[field] = value
    return {"epochs": None, "steps": None, **train}
