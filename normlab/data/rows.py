"""Examples that are read where they lie, when they are asked for."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .reading import refuse_more_than_memory

# Examples that are read at a time where all are gone through.
BLOCK = 128


class Rows(ABC):
    """Examples of one shape and type that need not lie in memory; a thread does not mind others.

    Attributes:
        shape: As of an array of them all.
        dtype: As of such an array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @abstractmethod
    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Reads examples by their numbers."""

    def __len__(self) -> int:
        return self.shape[0]


class Brought(Rows):
    """Rows of an array, or of rows, as a function brings them into the form of examples.

    Args:
        source: These.
        bring: Some of them, and their numbers -> the examples.
    """

    def __init__(self, source: Any, bring: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self._source, self._bring = source, bring
        example = self[np.zeros(1, np.int32)]
        self.shape = (len(source), *example.shape[1:])
        self.dtype = example.dtype

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self._bring(np.asarray(self._source[indices]), indices)


class Joined(Rows):
    """Arrays or rows one after the other."""

    def __init__(self, parts: Sequence[Any]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        numbers = np.searchsorted(self._ends, indices, side="right")
        taken = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for number in np.unique(numbers):
            here = numbers == number
            start = self._ends[number] - len(self._parts[number])
            taken[here] = self._parts[number][indices[here] - start]
        return taken


def gathered(name: str, parts: Sequence[Any]) -> np.ndarray:
    """Reads parts into one array in memory.

    Raises:
        DataError: They are more than `MEMORY_SHARE` of the memory that is available.
    """
    rows = [part for part in parts if isinstance(part, Rows)]
    size = sum(math.prod(part.shape) * part.dtype.itemsize for part in rows)
    refuse_more_than_memory(f"{name}: its examples take", size, streams=True)
    return np.concatenate(
        [it for part in parts for it in (blocks(part) if isinstance(part, Rows) else [part])]
    )


def blocks(examples: Any, indices: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Goes through examples in their order, some at a time.

    Args:
        examples: An array or rows.
        indices: Which; None for all.
    """
    if indices is None:
        indices = np.arange(len(examples))
    for start in range(0, len(indices), BLOCK):
        yield examples[indices[start : start + BLOCK]]
