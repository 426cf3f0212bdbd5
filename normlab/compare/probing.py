"""Probes of reported runs, as their study asks for them: when they look, and where that is kept."""

import time
from collections.abc import Sequence
from typing import Any

import jax

from ..train import Moment, Programs, StateHook
from ..train import probing as program_of
from .grid import Run
from .store import Probed, Store


def probe_hooks(
    store: Store,
    runs: Sequence[Run],
    names: Sequence[str],
    programs: Programs,
    start: Moment | None,
) -> list[StateHook]:
    """Returns what looks into runs that are trained at a time.

    Args:
        store: The study's, which what is found is written to.
        runs: The runs.
        names: Their names.
        programs: Of them.
        start: Where they go on from; what was found up to there is kept.
    """
    asked = runs[0].study.probes
    if not asked:
        return []
    writes = jax.process_index() == 0
    if writes:
        for name in names:
            store.begin_probes(name, None if start is None else start.step)
    seeds = [run.seed for run in runs]
    _, traced = programs.inputs(seeds, [run.study.optimizer.traced() for run in runs])
    together: dict[int, list[str]] = {}
    for probe, spec in asked.items():
        together.setdefault(spec.every or programs.length.record_every, []).append(probe)

    def looking(every: int, probes: Sequence[str]) -> StateHook:
        probing = program_of(programs, probes)

        def look(moment: Moment) -> None:
            if start is not None and moment.step <= start.step:
                return
            begun = time.perf_counter()
            found = probing(moment.state, traced)
            seconds = time.perf_counter() - begun
            if writes:
                for name, of_run in zip(names, found, strict=False):
                    for probe, values in of_run.items():
                        told: Any = {quantity: {**of} for quantity, of in values.items()}
                        store.write_probed(
                            name,
                            Probed(step=moment.step, probe=probe, seconds=seconds, values=told),
                        )

        return StateHook(every, look, first=True, counts=False)

    return [looking(every, probes) for every, probes in together.items()]
