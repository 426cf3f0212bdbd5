"""The points of a search: a grid or random draws, the same for every arm, and values beyond."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from ..spec import Spec

# The share of a range, on its scale, that counts as its edge.
EDGE = 0.05


class Range(Spec):
    """Numbers to draw from.

    Attributes:
        low: The smallest.
        high: The largest.
        scale: On which the draws are uniform.
    """

    low: float
    high: float
    scale: Literal["log", "linear"] = "log"

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} must be less than high={self.high:g}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(
                f"low={self.low:g} has no logarithm; give a positive one, or scale: linear"
            )
        return self

    def at(self, share: float) -> float:
        """Returns the number at a share of the way from low to high, on the scale."""
        if self.scale == "linear":
            return self.low + share * (self.high - self.low)
        return math.exp(math.log(self.low) + share * math.log(self.high / self.low))

    def at_edge(self, value: float) -> bool:
        """Whether a number lies within `EDGE` of an end, on the scale."""
        return not self.at(EDGE) < value < self.at(1 - EDGE)


Space = Mapping[str, tuple[Any, ...] | Range]


def points(space: Space, trials: int | None) -> list[dict[str, Any]]:
    """Returns the points to try, each once: the full grid, or so many draws.

    Draw k of a path depends on the path and on k alone, so that more draws, or another path beside
    it, leave it as it is. Draws from lists that are equal are one point.

    Args:
        space: Dotted path -> values, or a range.
        trials: How many points to draw; None for the grid.
    """
    if not space:
        return []
    if trials is None:
        lists = [values for values in space.values() if isinstance(values, tuple)]
        return [dict(zip(space, point, strict=True)) for point in itertools.product(*lists)]
    draws = {path: _draws(path, values, trials) for path, values in space.items()}
    drawn = dict.fromkeys(zip(*draws.values(), strict=True))
    return [dict(zip(space, point, strict=True)) for point in drawn]


def _draws(path: str, values: tuple[Any, ...] | Range, count: int) -> list[Any]:
    # RandomState, since NumPy promises that its numbers stay the same for ever.
    shares = np.random.RandomState(list(path.encode())).random_sample(count).tolist()
    if isinstance(values, Range):
        return [values.at(share) for share in shares]
    return [values[int(share * len(values))] for share in shares]


def at_edge(best: Any, tried: Iterable[Any], drawn_from: Range | None = None) -> bool:
    """Whether a better value may lie beyond those tried on a path.

    Args:
        best: The best value.
        tried: The values tried, those of a grid that went on included.
        drawn_from: The range that they were drawn from, if it was one.

    Returns:
        Of a range, whether the best value lies within `EDGE` of an end. Of at least two numbers,
        whether it is the smallest or largest tried; but not for 0, where what is tuned ends. False
        for words, switches, and a number alone.
    """
    if drawn_from is not None:
        return drawn_from.at_edge(best)
    tried = set(tried)
    return len(tried) > 1 and _are_numbers(tried) and best in {min(tried), max(tried)} - {0}


def values_beyond(grid: Sequence[Any], best: Iterable[Any]) -> list[float]:
    """Continues a grid of numbers by one value on each side where an arm's best value lies.

    A grid whose ratios vary less than its steps goes on by the ratio of its outermost two values,
    any other by their distance. Of two values, ratios count if the one is at least double.

    Args:
        grid: The values tried on one path.
        best: The best value of each arm.

    Returns:
        The further values, none for words, switches, or fewer than two numbers.
    """
    if not _are_numbers(grid):
        return []
    tried = sorted(map(float, set(grid)))
    if len(tried) < 2:
        return []
    chosen, beyond = set(best), []
    for end, neighbour in ((tried[0], tried[1]), (tried[-1], tried[-2])):
        if end in chosen:
            further = end * end / neighbour if _is_geometric(tried) else 2 * end - neighbour
            beyond.append(float(f"{further:.6g}"))
    return beyond


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(it, int | float) and not isinstance(it, bool) for it in values)


def _is_geometric(values: Sequence[float]) -> bool:
    if values[0] <= 0:
        return False
    if len(values) == 2:
        return values[1] >= 2 * values[0]
    ratios = [math.log(b / a) for a, b in itertools.pairwise(values)]
    steps = [b - a for a, b in itertools.pairwise(values)]
    return max(ratios) / min(ratios) <= max(steps) / min(steps)
