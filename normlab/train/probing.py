"""Probes of runs that are trained: one compiled program for all of them, at a fixed batch."""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..probes import PROBES, Problem
from .processes import fetched
from .programs import Programs
from .state import TrainState

MOST_EXAMPLES = 256
"""Of a batch that probes look at, which bounds what they cost."""

# Probe -> quantity -> layer, parameter or step -> value.
Found = dict[str, dict[str, dict[str, float]]]


class Probing:
    """The program of some probes, for all seeds and rates.

    Probes see the first examples of the validation split, as they come in an evaluation, and the
    network as it is called in training. What they ask about a step of gradient descent is asked of
    one at the learning rate of the run, before its schedule.

    Args:
        programs: The programs of the runs.
        probes: Names of `normlab.probes.PROBES`.
    """

    def __init__(self, programs: Programs, probes: Sequence[str]):
        self._programs, self._probes = programs, tuple(probes)
        # Dictionaries come out of a program sorted by name; here layers stand as they are called.
        self._names: list[tuple[str, str, str]] = []
        feed = programs.feed
        self._part = part = next(iter(feed.evaluation("validation")))[0]
        counts = jax.jit(lambda shared, part: feed.evaluated(shared, part, 0)[1])
        # A split that is smaller than a batch is filled up.
        self._examples = min(int(fetched(counts(feed.shared, part)).sum()), MOST_EXAMPLES)
        self._compiled = programs.compiled_on_state(self._found, part)

    def __call__(self, state: TrainState, traced: Mapping[str, Array]) -> list[Found]:
        """Returns what the probes find of each run, those of places left over included."""
        told = self._compiled(state, traced, self._programs.feed.shared, self._part)
        width = self._programs.width
        columns = [fetched(it).reshape(-1) for it in told]
        found: list[Found] = [{} for _ in range(width)]
        for (probe, quantity, of), column in zip(self._names, columns, strict=True):
            for run in range(width):
                quantities = found[run].setdefault(probe, {})
                quantities.setdefault(quantity, {})[of] = float(column[run])
        return found

    def _found(
        self, state: TrainState, traced: Mapping[str, Array], shared: Any, part: Any
    ) -> list[Array]:
        steps = self._programs.steps
        batch, _ = self._programs.feed.evaluated(shared, part, 0)
        inputs, targets = jax.tree.map(lambda leaf: leaf[: self._examples], batch)
        problem = Problem(
            steps.network,
            steps.objective,
            state.params,
            state.batch_stats,
            inputs,
            targets,
            jax.random.key(0),
        )
        rate = jnp.asarray(traced["learning_rate"])
        told = {name: PROBES[name](problem, rate) for name in self._probes}
        self._names[:] = [
            (probe, quantity, of)
            for probe, quantities in told.items()
            for quantity, found in quantities.items()
            for of in found
        ]
        return [
            jnp.asarray(value, jnp.float32)
            for quantities in told.values()
            for found in quantities.values()
            for value in found.values()
        ]


# By the programs, which do not last longer for it.
_made: WeakKeyDictionary[Programs, dict[tuple[str, ...], Probing]] = WeakKeyDictionary()


def probing(programs: Programs, probes: Sequence[str]) -> Probing:
    """Returns the program of some probes, compiled once for all runs of some programs."""
    made, names = _made.setdefault(programs, {}), tuple(probes)
    if names not in made:
        made[names] = Probing(programs, names)
    return made[names]
