"""The objectives that a study can name: normlab's, and a user's own by registration."""

import inspect
import typing
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, Union

from pydantic import Field, create_model

from ..metrics import Metric
from ..modules import enter
from ..registration import check_name, is_plain, refuse_taken
from ..spec import Targets
from .classification import Classification
from .multilabel import Multilabel
from .next_token import NextToken
from .objective import Objective
from .per_pixel import PerPixel
from .regression import Regression

# What a study knows without registration, for type checkers.
ObjectiveSpec = Annotated[
    Classification | Multilabel | Regression | NextToken | PerPixel, Field(discriminator="name")
]

OBJECTIVES: dict[str, type[Any]] = {
    "classification": Classification,
    "multilabel": Multilabel,
    "regression": Regression,
    "next_token": NextToken,
    "per_pixel": PerPixel,
}

# What an objective may have of its own -> what it is given.
_METHODS = {
    "loss": ("output", "target"),
    "measure": ("output", "target"),
    "finish": ("means",),
    "fitted": ("targets",),
    "examples": ("inputs", "targets"),
}


def register_objective(name: str, objective: Any = None) -> Any:
    """Adds an objective to those that a study can name, as a call or as a decorator.

    `Objective` shows one. A configuration can then say `objective: {name: pinball, share: 0.5}`
    once it names the module, as in `modules: [my_objectives]`.

    Args:
        name: How configurations call it.
        objective: A class derived from `normlab.Objective`, with a `loss`. Its annotated fields,
            of plain types (numbers, words, truth values, tuples of them), can be set.

    Returns:
        The class, or a decorator that returns it.

    Raises:
        ValueError: If the name is none or taken, or the class cannot stand in a study.
    """
    check_name("register_objective", name)
    if objective is None:
        return partial(register_objective, name)
    taken = OBJECTIVES.get(name)
    told = f"register_objective({name!r})"
    refuse_taken("register_objective", name, taken and getattr(taken, "code", taken), objective)
    _check(told, objective)
    names: Any = Literal[name]  # pyright: ignore[reportInvalidTypeForm]
    spec = create_model(
        objective.__name__, __base__=objective, __module__=objective.__module__, name=(names, name)
    )
    entry: Any = spec
    entry.code = objective
    enter(OBJECTIVES, name, entry)
    return objective


def objective_spec_type() -> Any:
    """Returns the type that validates an objective: one record per objective, told by `name`."""
    return Annotated[Union[tuple(OBJECTIVES.values())], Field(discriminator="name")]  # noqa: UP007


def _check(told: str, objective: Any) -> None:
    """Refuses what could not stand in a study.

    Raises:
        ValueError: That says what is wrong with it.
    """
    if not (isinstance(objective, type) and issubclass(objective, Objective)):
        raise ValueError(
            f"{told}: {objective!r} is not a class derived from normlab.Objective; write "
            "`class Mine(normlab.Objective):`, with a method loss."
        )
    if objective.loss is Objective.loss:
        raise ValueError(
            f"{told}: {objective.__qualname__} has no loss; add a method loss(self, output, "
            "target) that returns a number for each example."
        )
    if objective.__init__ is not Objective.__init__:
        raise ValueError(
            f"{told}: {objective.__qualname__} has an __init__, but a study makes it of its "
            "fields; annotate what can be set, as in share: float = 0.9, and compute the rest in "
            "its methods."
        )
    made = objective.model_construct()
    for method, given in _METHODS.items():
        try:
            inspect.signature(getattr(made, method)).bind(*given)
        except TypeError as error:
            raise ValueError(
                f"{told}: {method} of {objective.__qualname__} must take {' and '.join(given)}, by "
                f"their places: {error}."
            ) from error
    of_class = [it for it in ("targets", "takes_shares", "metrics") if it in objective.model_fields]
    if of_class:
        raise ValueError(
            f"{told}: {objective.__qualname__} annotates {', '.join(of_class)}, which makes that a "
            f"field of each study; leave out the annotation, as in {of_class[0]} = ..."
        )
    kinds = typing.get_args(Targets)
    if objective.targets not in kinds:
        raise ValueError(
            f"{told}: targets={objective.targets!r}; expected one of {', '.join(kinds)}."
        )
    if objective.takes_shares and objective.targets != "classes":
        raise ValueError(
            f"{told}: takes_shares=True, but there are shares of classes alone, and targets="
            f"{objective.targets!r}; leave it out."
        )
    metrics: Any = objective.metrics
    if not isinstance(metrics, Mapping) or not all(
        isinstance(name, str) and name.isidentifier() and isinstance(it, Metric)
        for name, it in metrics.items()
    ):
        raise ValueError(
            f"{told}: metrics={metrics!r}; expected names, as words with underscores, and what "
            "they mean, as in metrics = {'pinball': normlab.Metric(higher_is_better=False)}."
        )
    wrong = [
        f"{name}: {field.annotation}"
        for name, field in objective.model_fields.items()
        if name != "name" and not is_plain(field.annotation)
    ]
    if wrong:
        raise ValueError(
            f"{told}: the fields {', '.join(wrong)} of {objective.__qualname__} cannot stand in a "
            "configuration; expected numbers, words, truth values, or tuples of them. Annotate "
            "what shall not be set as typing.ClassVar."
        )
