"""A study as its folder tells it: configuration, environment, results and what they mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compare.paths import with_values
from ..compare.statistics import Summary, summarize
from ..compare.store import Result, Store


@dataclass(frozen=True)
class Study:
    """A study, finished or under way.

    Attributes:
        config: The resolved configuration.
        environment: Versions, device, git revision and command.
        results: The runs that belong to the configuration.
        left_out: How many other runs the folder holds, left behind by what was changed since.
        summary: What they mean.
        tuned: Dotted path -> values tried; empty when nothing is tuned.
        planned: Phase -> number of runs that the configuration asks for.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    results: tuple[Result, ...]
    left_out: int
    summary: Summary
    tuned: dict[str, list[Any]]
    planned: dict[str, int]

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.config["study"])

    @property
    def setting(self) -> str:
        """What the study is about, in a few words."""
        parts = [self.config[key]["name"] for key in ("data", "model", "optimizer")]
        counts = {
            "epoch": self.config["train"]["epochs"],
            "variant": len(self.summary.variants),
            "seed": self.config["seeds"],
        }
        parts += [f"{count} {word}{'s' * (count != 1)}" for word, count in counts.items()]
        return " \N{MIDDLE DOT} ".join(parts)

    def done(self, phase: str) -> int:
        """How many runs of a phase are there."""
        return sum(result.phase == phase for result in self.results)


def read_study(folder: str | Path) -> Study:
    """Reads the folder that `normlab compare` wrote or is writing.

    Raises:
        NoStudyError: The folder holds no study.
        StoreError: A file is damaged, or runs come from different configurations.
    """
    store = Store(folder)
    config, environment, stored = store.config(), store.environment(), store.results()
    variants = list(config["variants"])
    tuned = {path: it for path, it in (config.get("tune") or {}).items() if path != "seeds"}
    results = tuple(it for it in stored if _belongs(it, config, tuned, environment))
    points = math.prod(len(values) for values in tuned.values())
    return Study(
        config=config,
        environment=environment,
        results=results,
        left_out=len(stored) - len(results),
        summary=summarize(results, variants, config["baseline"], config.get("target_accuracy")),
        tuned=tuned,
        planned={
            "tune": len(variants) * points * config["tune"]["seeds"] if tuned else 0,
            "final": len(variants) * config["seeds"],
        },
    )


def _belongs(
    result: Result,
    config: Mapping[str, Any],
    tuned: Mapping[str, Sequence[Any]],
    environment: Mapping[str, Any],
) -> bool:
    """Whether a run is one of this configuration and environment.

    A study that is changed and run again leaves runs behind that no longer count. What determined
    a run is compared with what would determine it now, as far as both are written down.
    """
    if result.variant not in config["variants"]:
        return False
    if result.phase == "tune" and not (
        result.values.keys() == tuned.keys()
        and all(value in tuned[path] for path, value in result.values.items())
    ):
        return False
    now = with_values(config, result.values) | {
        **environment,
        "variant": config["variants"][result.variant],
    }
    return all(now[key] == value for key, value in result.identity.items() if key in now)
