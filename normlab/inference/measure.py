"""What scores measure, and how they are told: name, unit, direction, digits."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Of numbers that are no shares; four tell apart what a reader compares.
SIGNIFICANT = 4
_DIGITS_OF_SHARES = 2
_BEYOND = 4  # digits that may be added to tell on which side of another a number lies


@dataclass(frozen=True)
class Measure:
    """What is measured of a run.

    Its values are as they were measured. Scores, of which the higher is the better, are made of
    them by `score`.

    Attributes:
        name: As results have it.
        higher_is_better: Whether the larger of two values is the better one.
        share: Whether values lie between 0 and 1, and are told in percent, differences in points.
        title: What to call it; its name by default, with spaces.
        unit: What it is measured in, where it has a unit and is no share.
    """

    name: str = "score"
    higher_is_better: bool = True
    share: bool = False
    title: str = ""
    unit: str = ""

    @property
    def words(self) -> str:
        """What to call it."""
        return self.title or self.name.replace("_", " ")

    @property
    def worst(self) -> float:
        """The worst value, which a diverged run counts as."""
        if self.share:
            return 0.0 if self.higher_is_better else 1.0
        return -math.inf if self.higher_is_better else math.inf

    @property
    def factor(self) -> int:
        """What values are multiplied by where they are told."""
        return 100 if self.share else 1

    @property
    def noun(self) -> str:
        """What a difference is counted in."""
        return "points" if self.share else self.unit or self.words

    def score(self, value: float) -> float:
        """The higher the better; of a score, the value."""
        return value if self.higher_is_better else 0.0 - value

    def heading(self, before: str = "") -> str:
        """The title of a column or an axis: "test accuracy, %"."""
        unit = "%" if self.share else self.unit
        return f"{before} {self.words}{', ' * bool(unit)}{unit}".strip()

    def number(self, value: float, beside: float | None = None) -> str:
        """A value as a column has it: 0.98123 -> "98.12" of a share, "0.9812" else.

        Args:
            value: The value.
            beside: The one whose digits it has, where it is an end of its interval.
        """
        if self.share:
            return in_units(value, _DIGITS_OF_SHARES, self)
        like = value if beside is None or not math.isfinite(beside) else beside
        if like and math.isfinite(like) and not 1e-3 <= abs(like) < 1e7:
            return f"{value:.{SIGNIFICANT - 1}e}".replace("inf", "\N{INFINITY}")
        return in_units(value, _decimals([like], SIGNIFICANT), self)

    def told(self, value: float, beside: float | None = None) -> str:
        """A value in a sentence, with its unit: "98.12%", "1.234 bits"; see `number`."""
        unit = "%" if self.share else f" {self.unit}" * bool(self.unit)
        return f"{self.number(value, beside)}{unit}"


# What scores are unless something else is said of them.
SHARE = Measure(share=True)
LOSS = Measure("loss", higher_is_better=False)


def digits_of(values: Iterable[float], measure: Measure) -> tuple[int, int]:
    """How many decimals differences are told with: at least, and at most."""
    least = _DIGITS_OF_SHARES if measure.share else _decimals(values, SIGNIFICANT - 1)
    return least, least + _BEYOND


def in_units(value: float, digits: int, measure: Measure, sign: str = "") -> str:
    """0.0123 -> "1.23" in points of a percentage, "0.01" of what is no share."""
    # Adding 0 turns what rounds to -0.00 into 0.00.
    text = f"{round(measure.factor * value, digits) + 0:{sign},.{digits}f}"
    return text.replace("inf", "\N{INFINITY}")


def _decimals(values: Iterable[float], significant: int) -> int:
    """The decimals at which the largest of some values has so many significant digits."""
    largest = max((abs(it) for it in values if math.isfinite(it)), default=0.0)
    return max(0, significant - 1 - math.floor(math.log10(largest))) if largest else 1
