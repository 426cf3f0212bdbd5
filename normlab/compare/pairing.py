"""Which arms start from the same weights as their baselines, outside of their norm layers."""

import math
from collections.abc import Iterable, Mapping, Sequence

from .store import Result

# Programs that train several runs at a time round differently.
TOLERANCE = 1e-3

Weights = Mapping[str, Sequence[float | None]]


def unpaired(results: Iterable[Result], baselines: Mapping[str, str]) -> list[str]:
    """Tells in a sentence each which arms do not start from the weights of their baselines.

    Args:
        results: The results of a study; final runs of the first seed tell their initial weights.
        baselines: Name of each arm -> that of the arm that it is compared with.
    """
    starts: dict[tuple[str, str], Weights] = {
        (it.arm, it.task): it.initial_weights for it in results if it.initial_weights is not None
    }
    said: dict[str, None] = {}
    for (arm, task), weights in starts.items():
        baseline = baselines.get(arm)
        others = starts.get((str(baseline), task))
        if others is None:
            continue
        apart = _without_a_match(weights, others) or _without_a_match(others, weights)
        if apart:
            more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
            sentence = (
                f"{arm} is not paired with {baseline} in its initial weights: {apart[0]}{more} "
                "differ in values or shape outside of the norm layers. Their runs of a seed have "
                "the order of examples alone in common."
            )
            said[sentence] = None
    return list(said)


def _without_a_match(weights: Weights, others: Weights) -> list[str]:
    """The paths of weights that none of the others equals, whatever that one is called."""
    return [
        path
        for path, told in weights.items()
        if not any(_close(told, it) for it in (others.get(path, ()), *others.values()))
    ]


def _close(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    """Whether two lists of root mean square, first value, last value and shape are of one array."""
    if one[3:] != other[3:] or len(one) != len(other):
        return False
    scale = abs(one[0] or 0.0)
    return all(
        a == b
        if a is None or b is None
        else math.isclose(a, b, rel_tol=0, abs_tol=TOLERANCE * scale)
        for a, b in zip(one[:3], other[:3], strict=True)
    )
