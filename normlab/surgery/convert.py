"""A trained model with other normalization layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from jaxtyping import PRNGKeyArray
from rich.table import Table

from ..linen import BatchRenorm
from .given import Path, as_given, check_batch, flattened, is_state, variables_of, with_training
from .layers import Calling, How, Layer, check_linen, find_layers
from .optimizers import Origin, carry, optimization_of
from .table import Printed, table

Fate = Literal["carried", "new", "dropped"]
Pair = tuple[Layer | None, Layer | None]


@dataclass(frozen=True)
class Change:
    """What became of one variable.

    Attributes:
        path: Its path, collection first; in the target, or in the source if it was dropped.
        fate: `"carried"` over from the source, `"new"` with its initial value, or `"dropped"`.
        shape: Its shape.
        layers: Classes of the normalization layer it belongs to, before and after, `"nothing"`
            where there is none; empty outside of such layers.
        why: The reason, where the name alone does not say it.
    """

    path: Path
    fate: Fate
    shape: tuple[int, ...]
    layers: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Converted(Printed):
    """The variables of the target, and how they came about.

    Attributes:
        variables: For the target model, in the form in which those of the source were given.
        changes: What became of every variable, in the order of the paths, and of all that the
            optimizer keeps, under `optimizer_state`.
        optimizer_state: State of the optimizer that was given; None without one. Of a state of
            training it is the `opt_state`; for a model of Flax NNX it is an `nnx.Optimizer`.
    """

    variables: Any
    changes: tuple[Change, ...]
    optimizer_state: Any = None

    def paths(self, fate: Fate) -> tuple[str, ...]:
        """Returns the paths of the variables of one fate, as in `"params/norm_0/scale"`."""
        return tuple("/".join(it.path) for it in self.changes if it.fate == fate)

    def __rich__(self) -> Table:
        """Returns the table of what belongs to normalization layers, or was not just carried."""
        rows = [
            (
                "/".join(it.path),
                " to ".join(it.layers),
                _in_words(it.shape),
                it.fate,
                it.why,
            )
            for it in self.changes
            if it.layers or it.fate != "carried"
        ]
        rest = len(self.changes) - len(rows)
        title = f"Conversion; {rest} more variables were carried over as they are"
        return table(title, ("variable", "layer", "shape", "fate", "why"), rows)


def convert(
    source: nn.Module,
    variables: Any,
    target: nn.Module,
    x: Any,
    *,
    key: PRNGKeyArray | None = None,
    optimizer: optax.GradientTransformation | None = None,
    optimizer_state: Any = None,
    **how: Unpack[How],
) -> Converted:
    """Takes the variables of a trained model over into one with other normalization layers.

    Normalization layers are paired in the order of their calls if both models have as many, and by
    their paths if not. A variable is carried over where the target has one of the same name and
    shape: scale and bias between most layers, running mean and variance among those that keep them,
    and everything outside of normalization layers. What is then missing has its initial value. A
    scale that one layer keeps less 1 (`RMSNorm(zero_centred=True)`) is carried as what it means.

    The function of the network changes with its layers. Running statistics that are new wait for
    training or `recalibrate`.

    Usage::

        group = model.clone(norm=functools.partial(normlab.GroupNorm, num_groups=8))
        converted = surgery.convert(model, variables, group, x)
        print(converted)
        logits = group.apply(converted.variables, x, train=False)

    Args:
        source: The trained Linen model.
        variables: Its variables, or a state of training with them.
        target: The same model with other normalization layers.
        x: A batch that both take.
        key: For the variables that are new.
        optimizer: The optimizer that is to go on with the target; that of a state of training goes
            on anyhow.
        optimizer_state: Its state, for `variables["params"]`. What it keeps of a parameter that is
            carried over, such as momentum, is carried too.
        how: How the models are called: `call`, `method`, `rngs`; see `How`.

    Returns:
        The variables of the target, with a record of what was carried, new and dropped.
    """
    check_linen(source)
    check_linen(target)
    check_batch(x)
    key = jax.random.key(0) if key is None else key
    optimization = optimization_of(variables, optimizer, optimizer_state, "convert")
    call, rngs = Calling.of(how)
    keys = {**(rngs if isinstance(rngs, Mapping) else {"params": rngs}), "params": key}
    shapes = jax.eval_shape(nn.init(call, target), keys, x)
    new = flattened(shapes)
    old = flattened(variables_of(variables))
    before = find_layers(source, variables, x, **how)
    after = find_layers(target, shapes, x, **how)
    changes, origins = carry_over(old, new, before, after)
    needed = [change.path for change in changes if change.fate == "new"]
    if needed:
        new.update(jax.jit(partial(_initial, nn.init(call, target), needed))(keys, x))
    converted, state = as_given(variables, unflatten_dict(new)), None
    if optimization:
        before, after = (
            held.params if is_state(held) else held["params"] for held in (variables, converted)
        )
        state, fates = carry(optimization, before, after, origins)
        changes += of_optimizer(fates)
        if is_state(converted):
            converted = with_training(converted, target, state)
    ordered = tuple(sorted(changes, key=lambda change: change.path))
    return Converted(converted, ordered, state)


def carry_over(
    old: dict[Path, Any], new: dict[Path, Any], before: tuple[Layer, ...], after: tuple[Layer, ...]
) -> tuple[list[Change], dict[Path, Origin]]:
    """Takes over what a source and a target have in common.

    Args:
        old: Flattened variables of the source.
        new: Those of the target, or their shapes; what is carried over replaces them.
        before: The normalization layers of the source.
        after: Those of the target.

    Returns:
        What became of every variable, and what each parameter that was carried over comes from.
    """
    pairs = _pairs(before, after)
    # A layer without a counterpart takes part as well: nothing outside of it may have its place.
    by_source = {it.path: (it, None) for it in before} | {pair[0].path: pair for pair in pairs}
    by_target = {it.path: (None, it) for it in after} | {pair[1].path: pair for pair in pairs}
    changes: list[Change] = []
    origins: dict[Path, Origin] = {}
    left = dict(old)
    for path, value in new.items():
        pair = _owner(path, by_target)
        origin = (path[0], *pair[0].path, path[-1]) if pair[0] and pair[1] else path
        why = _why_new(path[-1], pair, _owner(origin, by_source), left.get(origin), value)
        if not why:
            new[path] = _carried(path[-1], pair, left.pop(origin), value)
            if path[0] == "params":
                origins[path[1:]] = Origin(origin[1:])
        changes.append(_change(path, "new" if why else "carried", value, pair, why))
    for path, value in left.items():
        changes.append(_change(path, "dropped", value, _owner(path, by_source), ""))
    return changes, origins


def of_optimizer(fates: list[tuple[Path, tuple[int, ...], bool]]) -> list[Change]:
    """Returns what became of the arrays that an optimizer keeps, as `carry` tells it."""
    return [
        Change(
            ("optimizer_state", *path),
            "carried" if carried else "new",
            shape,
            (),
            "" if carried else "the source's optimizer has none of this shape",
        )
        for path, shape, carried in fates
    ]


def _initial(init: Any, paths: list[Path], keys: Any, x: Any) -> dict[Path, Any]:
    """Initializes some variables; compiled, it computes no others."""
    variables = flattened(init(keys, x))
    return {path: variables[path] for path in paths}


def _pairs(before: tuple[Layer, ...], after: tuple[Layer, ...]) -> list[tuple[Layer, Layer]]:
    """Says which normalization layer stands where which one stood."""
    if len(before) == len(after):
        return list(zip(before, after, strict=True))
    by_path = {it.path: it for it in before}
    return [(by_path[it.path], it) for it in after if it.path in by_path]


def _owner(path: Path, pairs: Mapping[Path, Pair]) -> Pair:
    """Returns the layers before and after that a variable belongs to, as far as there are any."""
    inside = (pairs[path[1:end]] for end in range(1, len(path)) if path[1:end] in pairs)
    return next(inside, (None, None))


def _why_new(name: str, pair: Pair, owner: Pair, old: Any, new: Any) -> str:
    """Returns why a variable cannot be carried over, or nothing if it can.

    Args:
        name: Its name.
        pair: The layers before and after that it belongs to.
        owner: Those that the old variable belongs to.
        old: The variable that would be carried over; None if there is none.
        new: What the target keeps there.
    """
    if old is None:
        return "the source has none"
    if pair != owner:
        return "no layer of its kind stands here in the source"
    shapes = jnp.shape(nn.meta.unbox(old)), jnp.shape(nn.meta.unbox(new))
    if shapes[0] != shapes[1]:
        return f"the source has the shape {_in_words(shapes[0])}"
    schedules = {isinstance(it.module, BatchRenorm) for it in pair if it}
    if name == "count" and len(schedules) == 2:
        return "BatchRenorm counts for its schedule, others for their average"
    return ""


def _carried(name: str, pair: Pair, old: Any, new: Any) -> Any:
    """Returns an old value as the new layer keeps it."""
    less = [name == "scale" and getattr(it and it.module, "zero_centred", False) for it in pair]
    if less[0] != less[1]:
        old = jax.tree.map(lambda a: a + 1 if less[0] else a - 1, old)
    dtype = nn.meta.unbox(new).dtype
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), old)


def _change(path: Path, fate: Fate, value: Any, pair: Pair, why: str) -> Change:
    kinds = tuple(it.kind if it else "nothing" for it in pair) if any(pair) else ()
    return Change(path, fate, jnp.shape(nn.meta.unbox(value)), kinds, why)


def _in_words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "of a number"
