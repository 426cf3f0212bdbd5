"""Which arms start from the same weights as their baselines, outside of their norm layers."""

import math
from collections.abc import Iterable, Mapping, Sequence

from .store import Result

# Programs that train several runs at a time round differently.
TOLERANCE = 1e-3


def unpaired(results: Iterable[Result], baselines: Mapping[str, str]) -> list[str]:
    """Tells in a sentence each which arms do not start from the weights of their baselines.

    Args:
        results: The results of a study; final runs of the first seed tell their initial weights.
        baselines: Name of each arm -> that of the arm that it is compared with.
    """
    starts: dict[tuple[str, str], Mapping[str, Sequence[float]]] = {
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


def _without_a_match(
    weights: Mapping[str, Sequence[float]], others: Mapping[str, Sequence[float]]
) -> list[str]:
    """The paths of weights that none of the others equals, whatever that one is called."""
    return [
        path
        for path, told in weights.items()
        if not any(_close(told, it) for it in (others.get(path, ()), *others.values()))
    ]


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two lists of root mean square, first value, last value and shape are of one array."""
    if one[3:] != other[3:] or len(one) != len(other):
        return False
    return all(
        math.isclose(a, b, rel_tol=0, abs_tol=TOLERANCE * abs(one[0]))
        for a, b in zip(one[:3], other[:3], strict=True)
    )
