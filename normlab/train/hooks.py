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
    """Where several runs that are trained at a time stand, on the device.

    Attributes:
        step: Steps done, by each of them.
        state: Their state, which the next step uses up: what shall last must be copied or fetched
            before the hook returns.
        sums: Sums since the last point of their curves.
    """

    step: int
    state: TrainState
    sums: Sums


@dataclass(frozen=True)
class StateHook:
    """Is handed the state, before the next steps use it up.

    Attributes:
        every: Steps between two calls; one comes after the last step in any case.
        call: What is called.
    """

    every: int
    call: Callable[[Moment], None]


@dataclass(frozen=True)
class RecordHook:
    """Is told each new point of a curve, while the next steps run already.

    Attributes:
        call: Called with the place of a run among those that are trained at a time, and the point.
    """

    call: Callable[[int, Record], None]


Hook = StateHook | RecordHook
