"""What a study may be asked for at most, the same for one that is configured and one that is read.

Without JAX, since the page of a study is made without it.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

# Bounds of what is listed or enumerated: values of a path, arms, points of a search, runs.
MOST_VALUES, MOST_ARMS, MOST_POINTS, MOST_RUNS = 1_000, 1_000, 10_000, 100_000


def _plausible_margin(given: float) -> float:
    if not 0.05 <= given <= 20:
        meant = f"; as a share, {given:g} is margin_points={100 * given:g}" * (0 < given < 0.05)
        raise ValueError(
            f"{given:g} points were given; expected between 0.05 and 20 points of a percentage"
            f"{meant}"
        )
    return given


def _plausible_level(given: float) -> float:
    if given > 0.5:
        raise ValueError(
            f"{given:g} is the level of the tests; for intervals of {100 * given:g}% give "
            f"{1 - given:g}"
        )
    return given


# Fewer than the distance between the seeds of tuning and those of the reported runs.
Seeds = Annotated[int, Field(ge=1, le=10_000)]
Trials = Annotated[int, Field(ge=1, le=MOST_POINTS)]
Extensions = Annotated[int, Field(ge=0, le=20)]
SomeValues: Any = Field(min_length=1, max_length=MOST_VALUES)
MarginPoints = Annotated[float, AfterValidator(_plausible_margin)]
Margin = Annotated[float, Field(gt=0)]
Significance = Annotated[float, Field(ge=1e-3, lt=1), AfterValidator(_plausible_level)]


def refuse_too_many(
    variants: int, levels: int, tasks: int, seeds: int, points: int, tuning_seeds: int
) -> None:
    """Refuses what would take minutes to list, by numbers alone.

    Args:
        variants: How many there are.
        levels: Combinations of the levels of all factors.
        tasks: How many there are; 0 for one without a name.
        seeds: Of each arm's reported runs.
        points: Of its search.
        tuning_seeds: At each point.

    Raises:
        ValueError: That says which there are too many of.
    """
    arms = variants * levels * max(1, tasks)
    told = f"{variants} variants at {levels} levels of factors on {max(1, tasks)} tasks"
    if arms > MOST_ARMS:
        raise ValueError(f"{told} make {arms} arms; expected at most {MOST_ARMS}")
    if points > MOST_POINTS:
        raise ValueError(
            f"tune has a grid of {points} points; expected at most {MOST_POINTS}, or draw some "
            "of them with trials, as in trials: 100"
        )
    runs = arms * (points * tuning_seeds + seeds)
    if runs > MOST_RUNS:
        raise ValueError(
            f"{told}, each with {points} points of {tuning_seeds} seeds and {seeds} final runs, "
            f"make {runs} runs; expected at most {MOST_RUNS}"
        )
