"""What a practitioner takes away: lines of advice, each with the prediction that bears it out."""

from typing import Any, Literal

from pydantic import Field

from ..errors import UserError
from ..spec import Spec
from .judge import Judged, Verdict
from .rule import Words
from .words import measured_in_words


class When(Spec):
    """What an arm of a study is like that a line is about; all that is given must hold.

    Attributes:
        layers: Its layer is one of these.
        models: Its model is one of these.
        batch_at_most: It has so many examples in a batch, or fewer.
        batch_at_least: It has so many, or more.
        activation: The activation of its model.
    """

    layers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    batch_at_most: int | None = None
    batch_at_least: int | None = None
    activation: str | None = None

    def holds(self, layer: str, model: Any, batch_size: int) -> bool:
        """Whether a line is about an arm.

        Args:
            layer: Name of its layer.
            model: What its study says of its model.
            batch_size: Examples in a batch.
        """
        return (
            (not self.layers or layer in self.layers)
            and (not self.models or model.name in self.models)
            and self.activation in (None, getattr(model, "activation", None))
            and (self.batch_at_most is None or batch_size <= self.batch_at_most)
            and (self.batch_at_least is None or batch_size >= self.batch_at_least)
        )


class Line(Spec):
    """One line of the guide.

    Attributes:
        says: What to do, in a sentence.
        when: What it is about; nothing for all.
        experiment: Whose result is behind it.
        prediction: Which of its predictions, from 1.
        outcome: What that prediction came to, as the line relies on it.
    """

    says: Words
    when: When = When()
    experiment: str
    prediction: int = Field(ge=1)
    outcome: Literal["supported", "refuted"]

    def judged(self, verdict: Verdict | None) -> Judged:
        """Returns the prediction that is behind the line.

        Raises:
            UserError: There is no result, or another one than the line relies on.
        """
        told = f"the guide's line {self.says!r} relies on {self.experiment}"
        if verdict is None:
            raise UserError(f"{told}, which was not run")
        if self.prediction > len(verdict.predictions):
            raise UserError(f"{told}, which has no prediction {self.prediction}")
        judged = verdict.predictions[self.prediction - 1]
        if judged.outcome != self.outcome:
            raise UserError(
                f"{told}, whose prediction {self.prediction} is {judged.outcome} and not "
                f"{self.outcome}; change the line"
            )
        return judged


class Guide(Spec):
    """All lines, in the order in which they are read.

    Attributes:
        lines: These.
    """

    lines: tuple[Line, ...]


def because(line: Line, judged: Judged, unit: str) -> str:
    """What is behind a line, in words: "26.3 [24.1, 28.5] points; supported: ..."."""
    counted = "points" if unit == "%" else unit
    of = f" {counted}" if counted and not judged.prediction.log else ""
    return f"{measured_in_words(judged)}{of}; {judged.outcome}: {judged.prediction.says}"
