"""A study as its folder tells it: configuration, environment, results and what they mean."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compare.arm import Arm, arms, paths_of
from ..compare.halving import length_at, rungs
from ..compare.metric import margin_of, measures_of, target_of
from ..compare.pairing import unpaired
from ..compare.search import Range, points
from ..compare.store import Probed, Result, Store, left_aside_in_words
from ..compare.summary import Summary, summarize
from ..spec import displayed


@dataclass(frozen=True)
class Study:
    """A study, finished or under way.

    Attributes:
        folder: Where it lies.
        config: The resolved configuration.
        environment: Versions, device, git revision and command.
        results: The runs that belong to the configuration, without their `identity`.
        left_aside: Tells which files of runs cannot be used and why, in a line each.
        left_out: How many other runs the folder holds, left behind by what was changed since.
        arms: Its arms, on each of its tasks.
        summary: What they mean.
        tuned: Dotted path -> values tried; empty when nothing is tuned.
        ranges: Of these paths, those whose values were drawn from a range.
        points: Variant -> number of points that it is tuned at. They differ where a field of layers
            is tuned that some do not have.
        tune_seeds: Number of runs at each of them.
        stopped_early: Whether most of these runs were shorter, by successive halving.
        planned: Phase -> number of runs that the configuration asks for.
        inside: Run's id -> what probes found of it; empty for a study without probes.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    results: tuple[Result, ...]
    left_aside: tuple[str, ...]
    left_out: int
    arms: tuple[Arm, ...]
    summary: Summary
    tuned: dict[str, list[Any]]
    ranges: dict[str, Range]
    points: dict[str, int]
    tune_seeds: int
    stopped_early: bool
    planned: dict[str, int]
    inside: dict[str, list[Probed]]

    @property
    def name(self) -> str:
        """The study's name."""
        return displayed(str(self.config["study"]))

    @property
    def setting(self) -> str:
        """What the study is about, in a few words."""
        tasks = list((self.config.get("tasks") or {}).values())
        parts = [
            " and ".join(
                dict.fromkeys(
                    it.get(f"{key}.name", self.config[key]["name"]) for it in tasks or [{}]
                )
            )
            for key in ("data", "model", "optimizer")
        ]
        train = self.config["train"]
        counts = {
            "epoch": train.get("epochs") or 0,
            "step": train.get("steps") or 0,
            "variant": len(self.config["variants"]),
            "arm": len(self.summary.arms) if self.config.get("factors") else 0,
            "task": len(tasks),
            "seed": self.config["seeds"],
        }
        counts = {word: count for word, count in counts.items() if count}
        parts += [f"{count} {word}{'s' * (count != 1)}" for word, count in counts.items()]
        return displayed(" \N{MIDDLE DOT} ".join(parts))

    @property
    def unpaired(self) -> list[str]:
        """Which arms do not start from the weights of their baselines, in a sentence each."""
        return unpaired(self.results, self.summary.baselines)

    def done(self, phase: str) -> int:
        """How many runs of a phase are there."""
        return sum(result.phase == phase for result in self.results)


def read_study(folder: str | Path) -> Study:
    """Reads the folder that `normlab compare` wrote or is writing.

    Raises:
        NoStudyError: The folder holds no study.
        StoreError: A file that is not of a single run is damaged, or runs come from different
            configurations.
    """
    store = Store(folder)
    config, environment = store.config(), store.environment()
    stored = [it.without_identity() for it in store.each()]
    planned_arms = arms(config["variants"], config.get("factors") or {}, config.get("tasks") or {})
    shown = {(arm.name, arm.task): arm.displayed for arm in planned_arms}
    tune = dict(config.get("tune") or {})
    tune_seeds, trials = tune.pop("seeds", 1), tune.pop("trials", None)
    extend, stop_early = tune.pop("extend", 0), tune.pop("stop_early", False)
    plan = store.plan()
    if plan is not None:
        of_plan = [it.labelled(plan[it.id]) for it in stored if it.id in plan]
    else:
        of_plan = stored
    results = tuple(
        _displayed(it, shown[it.arm, it.task]) for it in of_plan if (it.arm, it.task) in shown
    )
    # Of a range, what was drawn from it so far; of a grid that goes on, what was added to it too.
    tuned: dict[str, list[Any]] = {
        path: list(
            dict.fromkeys(
                [*([] if isinstance(values, dict) else values)]
                + [it.values[path] for it in results if path in it.values]
            )
        )
        if isinstance(values, dict) or extend
        else values
        for path, values in tune.items()
    }
    ranges = {
        path: Range.model_validate(values)
        for path, values in tune.items()
        if isinstance(values, dict)
    }
    space = {path: ranges.get(path) or tuple(values) for path, values in tuned.items()}
    tried = {
        name: len(points({path: space[path] for path in paths_of(space, name, layer)}, trials))
        for name, layer in config["variants"].items()
    }
    measure, selected_by = measures_of(config)

    def made_at(arm: Arm) -> int:
        """At how many points the tuning runs of an arm are made, all lengths together."""
        if not stop_early:
            return tried[arm.variant]
        changes = {**(config.get("tasks") or {}).get(arm.task, {}), **arm.levels}
        return sum(it.points for it in rungs(length_at(config, changes), tried[arm.variant]))

    return Study(
        folder=store.folder,
        config=config,
        environment=environment,
        results=results,
        left_aside=tuple(left_aside_in_words(store.left_aside)),
        left_out=len(stored) - len(results),
        arms=tuple(shown.values()),
        summary=summarize(
            results,
            list(shown.values()),
            displayed(config["baseline"]),
            measure=measure,
            selected_by=selected_by,
            target=target_of(config),
            margin=margin_of(config),
            significance=config.get("significance", 0.05),
            ranges=ranges,
        ),
        tuned=tuned,
        ranges=ranges,
        points=tried,
        tune_seeds=tune_seeds,
        stopped_early=stop_early,
        planned={
            "tune": sum(made_at(arm) for arm in planned_arms) * tune_seeds,
            "final": len(planned_arms) * config["seeds"],
        },
        inside={
            it.id: probed
            for it in results
            if it.phase == "final" and (probed := store.probes(it.id))
        },
    )


def _displayed(result: Result, arm: Arm) -> Result:
    """A result under the names of its arm that charts and pages can have."""
    names = {"arm": arm.name, "variant": arm.variant, "task": arm.task}
    changed = {key: name for key, name in names.items() if getattr(result, key) != name}
    return result.model_copy(update=changed) if changed else result
