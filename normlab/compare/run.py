"""Running a study: what is to be run, what is there, what others are at, and what comes of it."""

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from filelock import FileLock

from .arm import Arm, title
from .executors.interface import Executor
from .executors.processes import end_unguarded
from .executors.spec import LocalSpec
from .executors.start import start_executor
from .former import keep_former
from .grid import Run, extended, final_runs, rungs_of, tuning_runs
from .halving import going_on
from .kept import has_weights, look_through, sweep_checkpoints
from .loggers import refuse_missing
from .metric import measures_of
from .selection import best_values
from .store import Failure, Label, Result, Store, StoreError, left_aside_in_words
from .study import Study, StudyError
from .workbench import Group, Workbench, label

# Seconds between two looks at what another process is at.
PATIENCE = 0.2

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Ending:
    """What a call of `run_study` came to.

    Attributes:
        done: Runs of the study that have a result.
        planned: Runs of the study.
        here: Runs that this call made.
        failures: Runs that failed in this call.
        left_out: Finished runs in the folder that are not of the study.
    """

    done: int
    planned: int
    here: int
    failures: tuple[Failure, ...]
    left_out: int


def run_study(
    study: Study,
    store: Store,
    environment: dict[str, Any],
    advance: Advance,
    tell: Callable[[str], object] = print,
    check: Callable[[], None] = lambda: None,
) -> Ending:
    """Runs what is not in the store yet: for each arm the tuning, then the reported runs.

    A run that fails is recorded and the others go on; the next call tries it again. An arm is
    repeated once all of its tuning is there, since a search with gaps would not be a fair one.
    Several processes may run one study in one folder: each makes runs that no other is at, and
    waits for the others' where it needs them.

    Args:
        study: What to compare.
        store: Takes each result as soon as it is there, so that a study can be stopped at any time
            and goes on where it stood.
        environment: Versions and device; runs made under others are not taken over.
        advance: Called with what is going on, how many runs are done, and of how many.
        tell: Called with each line that says that the study in the folder was another, or that
            some of its files cannot be used.
        check: Called again and again where work can be left; it raises to have that done.

    Raises:
        StudyError: If the folder is another study's, or a layer does not fit model or batch.
        DataError: If the data set is not there or damaged.
    """
    end_unguarded()
    refuse_missing(study.log)
    _refuse_another_study(store, study)
    here = isinstance(study.executor, LocalSpec)
    bench = Workbench(environment, check, store.folder, spread=here)
    arms = study.arms()
    advance("reading data", 0, 0)
    ladders = {arm.key: rungs_of(study, arm) for arm in arms}
    rung = dict.fromkeys(ladders, 0)
    tuning = {arm.key: tuning_runs(study, arm, until=ladders[arm.key][0].until) for arm in arms}
    every = [run for runs in tuning.values() for run in runs]
    tune_seeds = study.tune.seeds if study.tune else 0
    tuned_at = sum(it.points for ladder in ladders.values() for it in ladder)
    planned = tuned_at * tune_seeds + len(arms) * study.seeds
    work = _Work(study, store, bench, advance, tell, planned)
    for line in left_aside_in_words(store.left_aside):
        tell(line)
    plan: dict[str, Label] = {}
    _, selected_by = measures_of(study.model_dump(mode="json", include={"metric"}))
    searched, extensions = study, study.tune.extend if study.tune else 0
    repeated: dict[Any, tuple[dict[str, Any], list[Run]]] = {}  # arm's key -> values, runs

    def tuned(arm: Arm) -> bool:
        at_last = rung[arm.key] == len(ladders[arm.key]) - 1
        return at_last and not work.missing(tuning[arm.key])

    def results(arm: Arm) -> list[Result]:
        names = [(bench.name(run), label(run)) for run in tuning[arm.key]]
        return [work.result(it).labelled(where) for it, where in names]

    def best(arm: Arm) -> dict[str, Any]:
        """The best values of an arm whose tuning is done."""
        return best_values(results(arm), arm.name, selected_by)

    def next_rung() -> list[Run]:
        """The runs of the points of each arm that go on; none if all have come to their end."""
        further = []
        for arm in arms:
            ladder, place = ladders[arm.key], rung[arm.key]
            if place + 1 < len(ladder) and not work.missing(tuning[arm.key]):
                now, then = ladder[place : place + 2]
                points = going_on(results(arm), arm.name, selected_by, now, then)
                added = tuning_runs(study, arm, points, then.until)
                rung[arm.key] = place + 1
                tuning[arm.key] += added
                further += added
        plan_further(further)
        return further

    def chosen() -> list[Run]:
        """The reported runs of all arms whose tuning is done."""
        runs = []
        for arm in filter(tuned, arms):
            values = best(arm)
            if arm.key not in repeated or repeated[arm.key][0] != values:
                repeated[arm.key] = values, final_runs(study, arm, values)
            runs += repeated[arm.key][1]
        return runs

    def plan_further(runs: Sequence[Run]) -> None:
        for run in runs:
            where = label(run)
            if (other := plan.setdefault(bench.name(run), where)) != where:
                raise StudyError(
                    f"{title(other.arm, other.task)} and {run.arm.title} are the same arm: they "
                    "read the same examples and differ in nothing else; leave out one of them"
                )

    def further_tuning() -> list[Run]:
        """The runs of the next extension of the grid, now planned; none if it goes on no more."""
        nonlocal searched, extensions
        if further := next_rung():
            return further
        wider = (
            extended(searched, [best(arm) for arm in arms if tuned(arm)]) if extensions else None
        )
        if wider is None:
            extensions = 0
            return []
        searched, extensions = wider, extensions - 1
        for arm in arms:
            runs = tuning_runs(searched, arm)
            added = [run for run in runs if bench.name(run) not in plan]
            tuning[arm.key] += added
            further += added
        work.planned += len(further)
        plan_further(further)
        return further

    plan_further(every)
    # A study that was stopped or is finished takes up the extensions that it had come to.
    while not work.missing(every) and (further := further_tuning()):
        every += further
    advance("tracing", *work.counts())
    # An arm whose tuning is done needs its program as well, if it has reported runs to make.
    groups = work.groups(every, chosen())
    with closing(start_executor(study, bench, environment, store)) as where:
        where.prepare(groups)
        # Not before every program is traced: a study that cannot run leaves the folder as it was.
        known = [*every, *chosen()]
        for line in keep_former(store, study, environment, bench, known, work.finished):
            tell(line)
        store.write_config(study.model_dump(mode="json"))
        store.write_environment(environment)
        plan_further([] if extensions else chosen())
        store.write_plan(plan)
        work.complete(every, where)
        while further := further_tuning():
            store.write_plan(plan)
            work.complete(further, where)
        final = chosen()
        plan_further(final)
        store.write_plan(plan)
        work.complete(final, where)
    reported = work.finished & {bench.name(run) for run in final}
    if study.keep != "none":
        without = [it for it in reported if not has_weights(store.folder, it)]
        _tell_without(store, "weights are", without, tell)
    if study.probes:
        without = [it for it in reported if {*study.probes} - {of.probe for of in store.probes(it)}]
        _tell_without(store, "probes are", without, tell)
    left_out = len(work.finished - plan.keys())
    return Ending(*work.counts(), work.here, tuple(work.failed.values()), left_out)


@dataclass(frozen=True)
class _Claimed:
    """A group that this process has claimed."""

    group: Group
    locks: list[FileLock]

    def release(self) -> None:
        """Leaves the group to others, or to its results."""
        for lock in self.locks:
            lock.release()


class _Work:
    """What this process does of a study: what it knows to be finished, failed, or others' now."""

    def __init__(
        self,
        study: Study,
        store: Store,
        bench: Workbench,
        advance: Advance,
        tell: Callable[[str], object],
        planned: int,
    ):
        # By their names, since thousands of results would fill the memory.
        self.finished = store.finished()
        self.failed: dict[str, Failure] = {}
        self.here = 0
        self.planned = planned
        self._counted: set[str] = set()
        self._read: dict[str, Result] = {}
        self._width = study.executor.width
        self._store = store
        self._bench = bench
        self._advance = advance
        self._tell = tell

    def counts(self) -> tuple[int, int]:
        """How many runs of the study are done, as far as they were asked for, and of how many."""
        return len(self._counted), self.planned

    def result(self, name: str) -> Result:
        """Returns what a finished run came to, in brief."""
        if name not in self._read:
            result = self._store.result(name)
            if result is None:
                path = self._store.folder / "runs" / f"{name}.json"
                if (why := self._store.left_aside.get(path)) is not None:
                    raise StoreError(f"{why} Delete it and start the study again.")
                raise StoreError(f"{path} was there and is not any more. Start the study again.")
            self._read[name] = result.in_brief()
        return self._read[name]

    def missing(self, runs: Sequence[Run]) -> list[Run]:
        """Returns the runs that have no result yet."""
        return [run for run in runs if self._name(run) not in self.finished]

    def groups(self, *phases: Sequence[Run]) -> list[Group]:
        """Returns the groups of some phases that lack a result."""
        lacking = filter(self.missing, phases)
        groups = [group for runs in lacking for group in self._bench.groups(runs, self._width)]
        return [group for group in groups if self.missing(group.runs)]

    def complete(self, runs: Sequence[Run], where: Executor) -> None:
        """Makes the runs of one phase, or waits for them where another process is at them."""
        self._count(runs)
        waiting = self.groups(runs)
        active: dict[Future[list[Result | Failure]], _Claimed] = {}
        try:
            self._submit(waiting, active, where)
            while waiting or active:
                self._bench.check()
                if active:
                    done, _ = wait(active, PATIENCE, FIRST_COMPLETED)
                else:
                    done = set()
                    time.sleep(PATIENCE)
                broken = [it for it in done if it.exception()]
                ended = [(it.result(), active.pop(it)) for it in done if it not in broken]
                if not broken:
                    self._submit(waiting, active, where)  # They train while these are written.
                for results, claimed in ended:
                    self._take(results)
                    if not self.missing(claimed.group.runs):
                        sweep_checkpoints(self._store.folder, self._names(claimed.group))
                    claimed.release()
                    self._count(claimed.group.runs)
                for future in broken:  # Not before what ended beside it is written.
                    future.result()
        finally:
            for claimed in active.values():
                claimed.release()

    def _submit(
        self,
        waiting: list[Group],
        active: dict[Future[list[Result | Failure]], _Claimed],
        where: Executor,
    ) -> None:
        """Gives the executor what it has room for and no other process is at."""
        while len(active) < where.slots and (claimed := self._claim_one_of(waiting)):
            self._advance(_words(claimed.group.runs[0]), *self.counts())
            look_through(self._store.folder, self._names(claimed.group), self._tell)
            active[where.submit(claimed.group)] = claimed

    def _claim_one_of(self, waiting: list[Group]) -> _Claimed | None:
        """Claims a group for this process, and strikes off those that others have finished."""
        for group in list(waiting):
            # A claim lasts until the result is there, so that what was claimed has none or is done.
            locks = self._store.claim(self._name(run) for run in self.missing(group.runs))
            if locks is None:
                continue
            claimed = _Claimed(group, locks)
            waiting.remove(group)
            names = (self._name(run) for run in self.missing(group.runs))
            self.finished |= {name for name in names if self._store.result(name)}
            if self.missing(group.runs):
                return claimed
            claimed.release()
            self._count(group.runs)
        return None

    def _take(self, results: Sequence[Result | Failure]) -> None:
        for result in results:
            if result.id in self.finished:  # It filled a place beside one that was missing.
                continue
            if isinstance(result, Failure):
                self.failed[result.id] = result
                self._store.write_failure(result)
            else:
                self._store.write(result)
                self.finished.add(result.id)
                self.here += 1

    def _count(self, runs: Sequence[Run]) -> None:
        done = {self._name(run) for run in runs if self._name(run) in self.finished}
        if not done <= self._counted:
            self._counted |= done
            self._advance(_words(runs[0]), *self.counts())

    def _name(self, run: Run) -> str:
        return self._bench.name(run)

    def _names(self, group: Group) -> list[str]:
        return [self._name(run) for run in group.runs]


def _words(run: Run) -> str:
    return f"{'tuning' if run.phase == 'tune' else 'repeating'} {run.arm.title}"


def _tell_without(
    store: Store, what: str, without: Collection[str], tell: Callable[[str], object]
) -> None:
    """Tells which reported runs are done without what the study says that it keeps of them."""
    ended = [result for name in sorted(without) if (result := store.result(name)) is not None]
    if lacking := [result.id for result in ended if not result.diverged]:
        tell(
            f"Of {len(lacking)} finished runs no {what} kept, since the study did not say so "
            f"as they were made: {', '.join(lacking[:5])}{', ...' * (len(lacking) > 5)}. To have "
            f"them made again, delete their files in {store.folder / 'runs'}."
        )


def _refuse_another_study(store: Store, study: Study) -> None:
    try:
        there = store.config()["study"]
    except StoreError:  # There is none, or a damaged one, which is written anew.
        return
    if there != study.study:
        raise StudyError(
            f"{store.folder} holds the study {there!r}, not {study.study!r}; give another folder."
        )
