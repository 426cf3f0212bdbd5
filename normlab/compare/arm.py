"""The arms of a study: its variants at each level of its factors, on each of its tasks."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Factors = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Arm:
    """What is tuned by itself and repeated over seeds: a variant at some levels, on one task.

    Attributes:
        variant: The variant's name in the study.
        levels: Dotted path -> value of each factor; empty in a study without factors.
        task: The task's name; empty in a study without tasks.
        name: The variant and the levels, as in "batch, batch_size=16"; the same on every task.
    """

    variant: str
    levels: dict[str, Any]
    task: str
    name: str

    @property
    def title(self) -> str:
        """The name, with the task where there are several."""
        return f"{self.name} on {self.task}" if self.task else self.name


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

    def name(variant: str, combination: Mapping[str, Any]) -> str:
        told = [f"{short[path]}={in_words(value)}" for path, value in combination.items()]
        return ", ".join([variant, *told])

    return [
        Arm(variant, dict(combination), task, name(variant, combination))
        for task in list(tasks) or [""]
        for combination in combinations
        for variant in variants
    ]


def levels(factors: Factors) -> list[dict[str, Any]]:
    """Returns the combinations of levels: those listed, or the full grid; one if no factor."""
    if not isinstance(factors, Mapping):
        return [dict(combination) for combination in factors] or [{}]
    return [
        dict(zip(factors, point, strict=True)) for point in itertools.product(*factors.values())
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
    if value is None or isinstance(value, bool | list | tuple):
        return json.dumps(value)
    return str(value)
