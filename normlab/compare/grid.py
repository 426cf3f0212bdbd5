"""What to run: the runs of a study, each with all that determines it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from ..variants import OVERRIDABLE
from . import fingerprint
from .arm import Arm
from .halving import Rung, rungs
from .search import values_beyond
from .store import run_id
from .study import PARTS, Study, value_in, with_changes

# Tuning must not see the seeds that are reported, however many those are.
FIRST_TUNING_SEED = 1_000_000


@dataclass(frozen=True)
class Run:
    """One training run of a study.

    Attributes:
        study: The study as the arm sees it, with the tuned values of this run in their places.
        phase: `"tune"` or `"final"`.
        arm: The arm.
        seed: Decides initial weights and order of examples.
        values: The tuned values, by dotted path.
        until: Points of its curve after which a tuning run stops early; None for a whole run.
        setting: What runs that differ in their seed alone have alike of their identity.
    """

    study: Study
    phase: Literal["tune", "final"]
    arm: Arm
    seed: int
    values: dict[str, Any]
    setting: Mapping[str, Any]
    until: int | None = None

    def identity(self, versions: dict[str, Any]) -> dict[str, Any]:
        """All that determines the result of this run, however the study came to ask for it.

        The phase, the variant's name and which values were tuned belong to it, though they change
        no number: to rename a variant, or to tune over a single value, makes its runs anew.

        Args:
            versions: Versions of packages, device and data that the result depends on as well.
        """
        return {**self.setting, "seed": self.seed, **versions}


def identifier(run: Run, identity: dict[str, Any]) -> str:
    """Names a run: readable, and different for whatever differs in its identity."""
    return run_id(run.phase, run.arm.variant, run.seed, identity)


def single_run(study: Study, arm: Arm, seed: int) -> Run:
    """A reported run of an arm with the study's own values."""
    (run,) = make_runs(study, "final", arm, [seed], {})
    return run


def tuning_runs(
    study: Study,
    arm: Arm,
    points: Iterable[dict[str, Any]] | None = None,
    until: int | None = None,
) -> list[Run]:
    """The tuning runs of an arm: every point of the search with every seed.

    Args:
        study: The study.
        arm: The arm.
        points: Of these points alone; None for all of the search.
        until: As of a run.
    """
    if study.tune is None:
        return []
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + study.tune.seeds)
    return [
        run
        for values in (study.points(arm) if points is None else points)
        for run in make_runs(study, "tune", arm, seeds, values, until)
    ]


def rungs_of(study: Study, arm: Arm) -> list[Rung]:
    """The rungs of an arm's tuning, where the study has it stop early; else whole runs alone."""
    points = len(study.points(arm))
    if study.tune is None or not study.tune.stop_early:
        return [Rung(None, points)]
    return rungs(study.for_arm(arm).train.model_dump(), points)


def extended(study: Study, best: Sequence[Mapping[str, Any]]) -> Study | None:
    """Returns a study whose grid goes on where the best value of some arm lies at its edge.

    Args:
        study: The study, or what this function made of it before.
        best: The best values of each arm, by dotted path.

    Returns:
        The study with further values for all arms; None where there are none, or none that the
        study allows, as a momentum of 1.
    """
    if study.tune is None or study.tune.trials is not None:
        return None
    wider: dict[str, Any] = {}
    for path, grid in study.tune.space.items():
        if isinstance(grid, tuple):
            beyond = values_beyond(grid, [values[path] for values in best if path in values])
            if allowed := [value for value in beyond if _is_allowed(study, path, value)]:
                wider[path] = (*grid, *allowed)
    if not wider:
        return None
    tune = type(study.tune).model_validate(study.tune.model_dump() | wider)
    return study.model_copy(update={"tune": tune})


def _is_allowed(study: Study, path: str, value: float) -> bool:
    try:
        for arm in study.arms():
            if path in study.space_of(arm):
                make_runs(study, "tune", arm, [], {path: value})
    except ValidationError:
        return False
    return True


def final_runs(study: Study, arm: Arm, values: dict[str, Any]) -> list[Run]:
    """The reported runs of an arm: its tuned values on fresh seeds, the same for every arm."""
    return make_runs(study, "final", arm, range(study.seeds), values)


def make_runs(
    study: Study,
    phase: Literal["tune", "final"],
    arm: Arm,
    seeds: Iterable[int],
    values: dict[str, Any],
    until: int | None = None,
) -> list[Run]:
    """Puts the values of an arm and of one of its points in their places, for some seeds."""
    changed = type(study).model_validate(with_changes(study.with_arm(arm), values, arm.variant))
    # As the study understands them: a rate of 1 and one of 1.0 are the same run.
    dumped = changed.model_dump(mode="json")
    understood = {path: value_in(dumped, path, arm.variant) for path in values}
    setting = _setting(changed, phase, arm, understood)
    if until is not None:
        setting["until"] = until
    return [Run(changed, phase, arm, seed, understood, setting, until) for seed in seeds]


def _setting(study: Study, phase: str, arm: Arm, values: Mapping[str, Any]) -> dict[str, Any]:
    """All that determines the result of a run but its seed and the versions it is made with."""
    parts = fingerprint.telling(study.model_dump(mode="json", include={*PARTS}))
    del parts["data"]["folder"]  # The fingerprint of the data says what was found there.
    spec = study.variants[arm.variant]
    # What the variant overrides stands in the parts.
    layer = spec.model_dump(mode="json", exclude={*OVERRIDABLE})
    model, objective = type(study.model), type(study.objective)
    user_code = (
        spec.layer_class,
        getattr(model, "maker", model),
        getattr(objective, "code", objective),
    )
    return {
        **parts,
        "variant": {"name": arm.variant, **layer},
        "code": [fingerprint.of_normlab(), *map(fingerprint.of_user_code, user_code)],
        "values": values,
        "phase": phase,
    }
