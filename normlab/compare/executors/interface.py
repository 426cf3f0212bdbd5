"""What every executor does: it takes groups of runs and gives back their results."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future

from ..store import Failure, Result
from ..workbench import Group

# How often a group is begun whose process dies.
ATTEMPTS = 3


class Executor(ABC):
    """Makes runs somewhere. Who uses it writes down the results."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many groups to give it at a time."""

    @abstractmethod
    def prepare(self, groups: Sequence[Group]) -> None:
        """Is told which groups will come, so that it can begin to compile."""

    @abstractmethod
    def submit(self, group: Group) -> Future[list[Result | Failure]]:
        """Begins to train a group; one result or failure a run, in their order."""

    @abstractmethod
    def close(self) -> None:
        """Gives up what is under way and ends all processes of its own."""
