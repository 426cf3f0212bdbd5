"""What a folder held before a study is run in it, where that was another study: told, and kept."""

import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

from .fingerprint import telling
from .grid import Run
from .store import NoStudyError, Result, Store, StoreError
from .study import Study
from .workbench import Workbench

_ABSENT = object()
_VERSIONS = ("packages", "device")
# What determines a run and stands neither in the configuration nor among the versions.
_UNSEEN = {
    "code": "the code of normlab, or of a layer or model of your own",
    "data_fingerprint": "the examples that were read",
}


def keep_former(
    store: Store,
    study: Study,
    environment: Mapping[str, Any],
    bench: Workbench,
    runs: Sequence[Run],
    finished: Set[str],
) -> list[str]:
    """Keeps what a folder says of its study, if the study to be run there now is another.

    It is another if its configuration asks for something else, or if its runs are made anew since
    packages, device, code or data have changed.

    Args:
        store: The folder.
        study: The study to be run.
        environment: Its versions and device.
        bench: Says what determines a run.
        runs: The runs of the study, as far as they are known.
        finished: The ids of the results in the folder.

    Returns:
        Lines that tell what was changed, what no longer counts and where all is kept; none if the
        folder holds no study, or this one.
    """
    try:
        config, before, plan = store.config(), store.environment(), store.plan() or {}
    except NoStudyError:
        return []
    except StoreError as error:
        return [f"{error} What the folder says so far is kept in {store.keep_former()}."]
    done = plan.keys() & finished
    counted = done & {bench.name(run) for run in runs}
    anew = []
    if counted < done:
        places = {_place(run, run.arm.name, run.arm.task): run for run in runs}
        for result in map(store.result, sorted(done - counted)):
            if result is None:
                continue
            before_it = result.labelled(plan[result.id])
            if run := places.get(_place(before_it, before_it.arm, before_it.task)):
                anew.append((result.identity, bench.identify(run)[1]))
    changes = _changes(telling(config), telling(study.model_dump(mode="json")))
    if not changes and not anew:
        return []
    then, now = ({key: it.get(key) for key in _VERSIONS} for it in (before, environment))
    changes += _changes(then, now)
    changes += [
        f"{words}: changed"
        for key, words in _UNSEEN.items()
        if any(its.get(key) != new[key] for its, new in anew)
    ]
    return [
        f"{store.folder} held another study until now; what is different:",
        *(f"  {change}" for change in changes),
        f"{len(counted)} of its {len(done)} finished runs count here so far; all of them are kept.",
        f"Its page, figures and settings are kept in {store.keep_former()}. To have a folder for "
        "each of the two, give another one with --out.",
    ]


def _place(run: Run | Result, arm: str, task: str) -> str:
    return json.dumps([run.phase, arm, task, run.seed, run.values], sort_keys=True)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    told = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            told += _changes(old, new, f"{prefix}{key}.")
        elif old != new:
            told.append(f"{prefix}{key}: {_words(old)} -> {_words(new)}")
    return told


def _words(value: Any) -> str:
    return "not set" if value is _ABSENT else json.dumps(value)
