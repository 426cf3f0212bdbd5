"""What is told of a run as it goes, and when."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..objectives import Sums
from .state import TrainState


@dataclass(frozen=True)
class Record:
    """A point of the curve of one run.

    Attributes:
        step: Steps done.
        train: Metrics of the steps since the point before, as they ran.
        validation: Metrics on the validation split; None after which there was no evaluation.
    """

    step: int
    train: dict[str, float]
    validation: dict[str, float] | None = None


class Moment(NamedTuple):
    """Where several runs that are trained at a time stand; also where they can go on from.

    Attributes:
        step: Steps done, by each of them.
        state: Their state, on the device, which the next step uses up: what shall last must be
            copied or fetched before the hook returns.
        sums: Sums since the last point of their curves, likewise.
        curves: The points of the curve of each, but for one that is due at this step.
        seconds: Wall time until then, compilation excluded.
    """

    step: int
    state: TrainState
    sums: Sums
    curves: list[list[Record]]
    seconds: float


@dataclass(frozen=True)
class StateHook:
    """Is handed the state, before the next steps use it up.

    Attributes:
        every: Steps between two calls; one comes after the last step in any case.
        call: What is called.
        asked: Whether it is to be called as well where the loop stops next, for whatever reason.
        first: Whether it is called before the first step as well.
        counts: Whether its time is a part of the runs'.
    """

    every: int
    call: Callable[[Moment], None]
    asked: Callable[[], bool] = lambda: False
    first: bool = False
    counts: bool = True


@dataclass(frozen=True)
class RecordHook:
    """Is told each new point of a curve, while the next steps run already.

    Attributes:
        call: Called with the place of a run among those that are trained at a time, and the point.
    """

    call: Callable[[int, Record], None]


Hook = StateHook | RecordHook
