"""How far a study is, as its folder tells while it runs or lies still; without JAX."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean

from ..spec import displayed
from .arm import Arm, arms, title
from .store import Failure, Label, Result, Store, left_aside_in_words


@dataclass(frozen=True)
class Count:
    """Runs of an arm, or of all arms.

    Attributes:
        planned: Runs of the study, as far as its search is known by now.
        done: Those with a result.
        diverged: Those of these that diverged.
        failed: Those whose last attempt failed.
        running: Those that some process is at.
    """

    planned: int = 0
    done: int = 0
    diverged: int = 0
    failed: int = 0
    running: int = 0

    @property
    def left(self) -> int:
        """Those without a result."""
        return self.planned - self.done

    def __add__(self, other: "Count") -> "Count":
        return Count(*(getattr(self, it.name) + getattr(other, it.name) for it in fields(self)))


@dataclass(frozen=True)
class Status:
    """How far a study is.

    Attributes:
        arms: Title -> runs of the arm.
        runs: Title -> the names of these runs, as far as they are known.
        seconds_left: Wall time that is left, by what the finished runs of each arm took and by how
            many are running now; None before the first result.
        failures: The runs whose last attempt failed.
        command: The command that the study was started with.
        left_aside: Tells which files cannot be used and why, in a line each.
    """

    arms: dict[str, Count]
    runs: dict[str, set[str]]
    seconds_left: float | None
    failures: list[Failure] = field(default_factory=list)
    command: str = ""
    left_aside: list[str] = field(default_factory=list)

    @property
    def total(self) -> Count:
        """All arms together."""
        return sum(self.arms.values(), Count())


def read_status(folder: str | Path, *, claims: bool = True) -> Status:
    """Reads how far a study is.

    Args:
        folder: The study's.
        claims: Whether to find out which runs some process is at, for which its locks are tried.

    Raises:
        NoStudyError: The folder holds no study.
        StoreError: A file that is not of a single run is damaged.
    """
    store = Store(folder)
    config, environment = store.config(), store.environment()
    planned_arms = arms(config["variants"], config.get("factors") or {}, config.get("tasks") or {})
    # Before others may claim or finish more, so that no run is counted as both.
    running = store.running() if claims else set()
    results = {it.id: it for it in store.results()}
    failures = store.failures()
    plan = store.plan() or {it.id: it for it in results.values()}
    counts, seconds, of_arm = {}, {}, {}
    for key in map(_key, planned_arms):
        mine = {run for run, label in plan.items() if _key(label) == key}
        tuning = sum(run.startswith("tune-") for run in mine)
        done = [results[run] for run in mine if run in results]
        counts[key] = Count(
            planned=tuning + config["seeds"],
            done=len(done),
            diverged=sum(it.diverged for it in done),
            failed=sum(it.id in mine and it.id not in running for it in failures),
            running=len(running & mine - results.keys()),
        )
        seconds[key] = _mean_seconds(done)
        of_arm[key] = mine
    known = _mean_seconds(results.values())
    left = None
    if known is not None:
        each = {key: known if own is None else own for key, own in seconds.items()}
        at_a_time = max(1, sum(it.running for it in counts.values()))
        left = sum(it.left * each[key] for key, it in counts.items()) / at_a_time
    command = displayed(str(environment.get("command", "")))
    by_title: dict[str, Count] = {}
    runs: dict[str, set[str]] = {}
    for arm in planned_arms:
        name = arm.displayed.title
        by_title[name] = by_title.get(name, Count()) + counts[_key(arm)]
        runs[name] = runs.get(name, set()) | of_arm[_key(arm)]
    return Status(by_title, runs, left, failures, command, left_aside_in_words(store.left_aside))


def _key(where: Arm | Label) -> tuple[str, str]:
    return (where.name if isinstance(where, Arm) else where.arm, where.task)


def _mean_seconds(results: Iterable[Result]) -> float | None:
    seconds = [it.seconds for it in results]
    return fmean(seconds) if seconds else None


def failures_in_words(failures: Sequence[Failure]) -> list[str]:
    """Tells which runs failed and why, in a line each; nothing where none did."""
    if not failures:
        return []
    many = "1 run" if len(failures) == 1 else f"{len(failures)} runs"
    told = [f"{many} failed; the study, started again, makes them anew:"]
    for it in failures:
        first = next(iter(it.message.splitlines()), "")
        where = f" ({it.place})" if it.place else ""
        told.append(displayed(f"  {it.id} ({title(it.arm, it.task)}): {first}{where}"))
    return told
