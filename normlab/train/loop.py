"""The loop: orders what programs do and what hooks are told, whatever is trained."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax

from .hooks import Hook, Moment, Record, RecordHook, StateHook
from .programs import Programs
from .state import TrainState


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        curve: The points of its curve.
        diverged: Whether it was stopped because a loss was no longer finite.
        test: Metrics on the test split; None if it diverged or was not asked for.
        seconds: Wall time, compilation excluded; of several runs at a time, each takes longer.
        state: The state at the end; None of a run that diverged.
    """

    curve: list[Record]
    diverged: bool
    test: dict[str, float] | None
    seconds: float
    state: TrainState | None


def fit(
    programs: Programs,
    seeds: Sequence[int],
    values: Sequence[Mapping[str, float]] | None = None,
    *,
    hooks: Sequence[Hook] = (),
    test: bool = False,
    start: Moment | None = None,
    until: int | None = None,
) -> list[Outcome]:
    """Trains up to `programs.width` runs at a time, from initialization to the end or divergence.

    A run that diverges has no further points, and the others go on. Where there are fewer runs
    than places, the last one is trained several times and counted once.

    Args:
        programs: The compiled programs.
        seeds: Of each run: the initial weights and the order of examples; the same seed gives
            every variant the same of both.
        values: Numbers of the optimizer, of each run, that differ from those it was built with.
        hooks: What is told of them.
        test: Whether to evaluate on the test split at the end.
        start: Where they stood, to go on from there with the same numbers; None for the beginning.
        until: Points of the curve after which all of them stop, as if they were at their end, with
            the numbers of a whole run up to there; None for whole runs.
    """
    programs.compile()
    before = time.perf_counter() - (start.seconds if start is not None else 0)
    length, count = programs.length, len(seeds)
    if until is not None:
        length = length.cut(until)
    seed, traced = programs.inputs(seeds, values or [{}] * count)
    wanting = [hook for hook in hooks if isinstance(hook, StateHook)]
    told = [hook for hook in hooks if isinstance(hook, RecordHook)]
    stops = _Stops(programs.feed.steps_per_epoch, length.record_every, length.steps)
    stops.every |= {hook.every for hook in wanting}

    def call(hook: StateHook) -> float:
        """Calls a hook, and returns the seconds of it that are none of the runs'."""
        if not hook.counts:
            jax.block_until_ready(state)
        so_far = [list(curve) for curve in curves]
        called = time.perf_counter()
        hook.call(Moment(step, state, sums, so_far, called - before))
        return 0.0 if hook.counts else time.perf_counter() - called

    if start is None:
        step, curves = 0, [[] for _ in range(count)]
        state, sums = programs.initialize(seed, traced)
        before += sum(call(hook) for hook in wanting if hook.first)
        step = stops.after(0)
        coming = programs.coming(state)
        state, sums = programs.advance(state, sums, traced, coming(step))
    else:
        step, curves = start.step, [list(curve) for curve in start.curves]
        state, sums = start.state, start.sums
        coming = programs.coming(state)
    left = [run for run in range(count) if not curves[run] or _is_finite(curves[run][-1])]
    while left:
        done = step == length.steps
        for hook in wanting:
            if done or step % hook.every == 0 or hook.asked():
                before += call(hook)
        recorded, evaluated = sums, None
        record = done or step % length.record_every == 0
        if record:
            sums = programs.no_sums()
            if done or step % length.evaluate_every == 0:
                evaluated = programs.evaluate(state, "validation")
        # The next steps are handed over before the metrics of these are waited for, so that the
        # device has no pause. After a divergence they are for nothing.
        if not done:
            parts = coming(stops.after(step) - step)
            state, sums = programs.advance(state, sums, traced, parts)
        if record:
            train = programs.metrics(recorded)
            validation = programs.metrics(evaluated) if evaluated is not None else None
            for run in left:
                point = Record(step, train[run], validation[run] if validation else None)
                curves[run].append(point)
                for hook in told:
                    hook.call(run, point)
            left = [run for run in left if _is_finite(curves[run][-1])]
        if done:
            break
        step = stops.after(step)
    tested = programs.metrics(programs.evaluate(state, "test")) if test and left else None
    seconds = time.perf_counter() - before
    return [
        Outcome(
            curves[run],
            run not in left,
            tested[run] if tested and run in left else None,
            seconds,
            programs.of_run(state, run) if run in left else None,
        )
        for run in range(count)
    ]


class _Stops:
    """The steps after which something is to be done; no steps between two are of two epochs."""

    def __init__(self, steps_per_epoch: int, record_every: int, last: int):
        self.every = {steps_per_epoch, record_every}
        self._last = last

    def after(self, step: int) -> int:
        """Returns the next one."""
        return min(self._last, *(step + every - step % every for every in self.every))


def _is_finite(record: Record) -> bool:
    losses = [record.train["loss"]]
    if record.validation is not None:
        losses.append(record.validation["loss"])
    return all(map(math.isfinite, losses))
