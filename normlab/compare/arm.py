"""The arms of a study: its variants at each level of its factors, on each of its tasks."""

import itertools
import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..spec import displayed

Factors = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Arm:
    """What is tuned by itself and repeated over seeds: a variant at some levels, on one task.

    Attributes:
        variant: The variant's name in the study.
        levels: Dotted path -> value of each factor; empty in a study without factors.
        task: The task's name; empty in a study without tasks.
        name: The variant and the levels, as in "batch, batch_size=16"; the same on every task. No
            other variant at no other levels of the study has this name.
        place: The levels as in the name: "batch_size=16"; empty without factors.
    """

    variant: str
    levels: dict[str, Any]
    task: str
    name: str
    place: str = ""

    @property
    def displayed(self) -> "Arm":
        """The same arm with names that charts and pages can have, as not all of former studies."""
        name, place = displayed(self.name), displayed(self.place)
        return replace(
            self, variant=displayed(self.variant), task=displayed(self.task), name=name, place=place
        )

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells the arm from all others of a study, whatever they are called."""
        return self.variant, json.dumps(self.levels, sort_keys=True), self.task

    @property
    def title(self) -> str:
        """The name, with the task where there are several; of one arm of a study alone."""
        return title(self.name, self.task)


def title(name: str, task: str) -> str:
    """An arm's name with its task; a name that could be read in two ways stands in quotes."""
    return f"{_apart(name)} on {_apart(task)}" if task else name


def _apart(words: str) -> str:
    # "on" at an end would join what stands beside it.
    ambiguous = _ON in f" {words} " or words[:1] == '"'
    return json.dumps(words, ensure_ascii=False) if ambiguous else words


_ON = " on "
# What separates the parts of a name; text of a user's that has one of them stands in quotes.
_SEPARATORS = (", ", "=", '"')


def arms(variants: Iterable[str], factors: Factors, tasks: Iterable[str]) -> list[Arm]:
    """Returns the arms of a study, task by task, in each by levels, in each of these by variant.

    Args:
        variants: Names of the variants.
        factors: As in `Study.factors`.
        tasks: Names of the tasks; none for one task without a name.
    """
    combinations = levels(factors)
    short = short_names({path for combination in combinations for path in combination})
    variants = list(variants)
    quoted = {name: _quoted(name) if short else name for name in variants}
    places = [
        ", ".join(f"{short[path]}={_level(value)}" for path, value in combination.items())
        for combination in combinations
    ]
    return [
        Arm(variant, dict(at), task, ", ".join(filter(None, [quoted[variant], place])), place)
        for task in list(tasks) or [""]
        for at, place in zip(combinations, places, strict=True)
        for variant in variants
    ]


def _quoted(text: str) -> str:
    separated = any(sign in text for sign in _SEPARATORS)
    return json.dumps(text, ensure_ascii=False) if separated else text


def _level(value: Any) -> str:
    """A level in words, no two alike: text that would be read as another value is in quotes."""
    if not isinstance(value, str):
        return in_words(value)
    try:
        json.loads(value)
    except ValueError:
        return _quoted(value) if value else '""'
    return json.dumps(value)


def levels(factors: Factors) -> list[dict[str, Any]]:
    """Returns the combinations of levels: those listed, or the full grid; one if no factor."""
    if not isinstance(factors, Mapping):
        return [dict(combination) for combination in factors] or [{}]
    return [
        dict(zip(factors, point, strict=True)) for point in itertools.product(*factors.values())
    ]


def combinations(factors: Factors) -> int:
    """Returns how many combinations of levels there are, without making them."""
    if isinstance(factors, Mapping):
        return math.prod(map(len, factors.values()))
    return max(1, len(factors))


def is_of_layer(path: str) -> bool:
    """Whether a dotted path of a search or factor means a field of layers.

    `layer.epsilon` means those of all variants, `variants.batch.momentum` that of one.
    """
    return path.partition(".")[0] in ("layer", "variants")


def field_of_layer(path: str, variant: str, fields: Container[str]) -> str | None:
    """Returns the field of a variant's layer that a dotted path means, if it means one.

    Args:
        path: As in `is_of_layer`.
        variant: The variant's name.
        fields: The fields of its layer.
    """
    for place in ("layer.", f"variants.{variant}."):
        name = path.removeprefix(place)
        if name != path and name in fields:
            return name
    return None


def paths_of(paths: Iterable[str], variant: str, fields: Container[str]) -> list[str]:
    """Returns those dotted paths of a search that are there for a variant.

    Args:
        paths: All paths.
        variant: The variant's name.
        fields: The fields of its layer. Paths of layers that do not have the field are left out.
    """
    return [
        path for path in paths if not is_of_layer(path) or field_of_layer(path, variant, fields)
    ]


def baseline_arms(arms: Sequence[Arm], baseline: str) -> dict[str, str]:
    """Returns the name of each arm -> that of the arm that it is compared with.

    Args:
        arms: The arms of a study.
        baseline: The variant that the others are compared with, at the same levels.
    """
    names = {
        json.dumps(arm.levels, sort_keys=True): arm.name for arm in arms if arm.variant == baseline
    }
    return {arm.name: names[json.dumps(arm.levels, sort_keys=True)] for arm in arms}


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Returns of each dotted path the shortest end that no other path has."""
    ends = {
        path: [".".join(path.split(".")[start:]) for start in range(path.count("."), -1, -1)]
        for path in sorted(paths)
    }
    return {
        path: next(
            end
            for end in own
            if not any(end in others for it, others in ends.items() if it != path) or end == path
        )
        for path, own in ends.items()
    }


def in_words(value: Any) -> str:
    """A level as a configuration writes it: 16, 0.1, relu, null, [8, 8]."""
    if value is None or isinstance(value, bool | list | tuple | dict):
        return json.dumps(value)
    return displayed(str(value))
