"""Normalization layers that training leaves alone."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import jax
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from ..errors import UserError, nearest
from .given import Path, as_given, flattened, name_of
from .layers import Altered, Layer, LayerCall, Unbound, check_linen, intercepted
from .statistics import keeps_statistics


class Frozen(Altered):
    """A model some of whose normalization layers are frozen; see `freeze`.

    Attributes:
        statistics: Whether running statistics are frozen.
        affine: Whether what the layers learn is frozen.
        within: Names of the parts of the model that are frozen; None for all of it.
    """

    statistics: bool
    affine: bool
    within: tuple[str, ...] | None

    @nn.nowrap
    def _interception(self) -> AbstractContextManager[None]:
        if self.within is not None and not self.is_initializing():
            self._check_within(self.within)
        return intercepted(self._call_layer)

    @nn.nowrap
    def _call_layer(self, given: LayerCall) -> Any:
        module = given.module
        if module.is_initializing() or not self._covers(self._path_of(module)):
            return given.proceed()
        variables = dict(module.variables)
        if self.affine and "params" in variables:
            variables["params"] = jax.lax.stop_gradient(variables["params"])
        if self.statistics and keeps_statistics(module):
            return given.evaluate(variables)[0]
        if not self.affine:
            return given.proceed()
        may_move = {*module.variables, "intermediates"} - {"params"}
        moving = [name for name in sorted(may_move) if module.is_mutable_collection(name)]
        y, updated = given.apply(variables, moving)
        for collection, values in updated.items():
            for name, value in values.items():
                module.put_variable(collection, name, value)
        return y

    @nn.nowrap
    def _covers(self, path: Path) -> bool:
        return self.within is None or any(
            path[: len(part)] == part for part in map(_names_in, self.within)
        )

    @nn.nowrap
    def _check_within(self, within: tuple[str, ...]) -> None:
        """Refuses a name that no part of the model has: it would freeze nothing, silently."""
        parts = {path[1:end] for path in flattened(self.variables) for end in range(2, len(path))}
        for name in within:
            if _names_in(name) not in parts:
                known = sorted(map(name_of, parts))
                raise UserError(
                    f"freeze: within={name!r} names no part of the model{nearest(name, known)}"
                )


def _names_in(part: str) -> Path:
    return tuple(part.split("/"))


def freeze(
    model: nn.Module,
    *,
    statistics: bool = True,
    affine: bool = True,
    within: str | Iterable[str] | None = None,
) -> Frozen:
    """Freezes normalization layers: their statistics, what they learn, or both.

    A layer with frozen statistics normalizes by the running ones in training too, and does not move
    them. What a layer learns is frozen by a gradient of zero. That alone does not hold it against
    weight decay or the momentum of an optimizer; `trainable_mask` does.

    Usage::

        frozen = surgery.freeze(model)
        logits, updated = frozen.apply(variables, x, train=True, mutable=["batch_stats"])

    Args:
        model: A Linen model.
        statistics: Whether to freeze running statistics.
        affine: Whether to freeze the parameters of the layers.
        within: Freezes only layers in these parts of the model, named as in `"encoder/block_0"`;
            `find_layers` tells their paths. Parts that share one function compiled by `nn.jit` are
            frozen together, as the first of them.

    Returns:
        A model with the same call and the same variables in the same places.

    Raises:
        ValueError: If nothing is to be frozen.
    """
    check_linen(model)
    if not statistics and not affine:
        raise UserError("freeze: statistics=False and affine=False leave nothing to freeze.")
    if within is not None:
        within = (within,) if isinstance(within, str) else tuple(within)
        if not within or "" in within:
            raise UserError(
                f"freeze: within={within} names no part of the model; give names as in "
                '"encoder/block_0", or None to freeze all layers.'
            )
    return Frozen(Unbound(model), statistics, affine, within)


def trainable_mask(
    params: Any, layers: Iterable[Layer], *, affine: bool = False, rest: bool = True
) -> Any:
    """Tells which parameters an optimizer may change, for `optax.masked` and its kin.

    Usage, with the layers frozen, and with nothing but the layers trained::

        layers = surgery.find_layers(model, variables, x)
        mask = surgery.trainable_mask(variables["params"], layers)
        only = surgery.trainable_mask(variables["params"], layers, affine=True, rest=False)
        optimizer = optax.transforms.selective_transform(
            optax.adamw(1e-3), freeze_mask=jax.tree.map(operator.not_, mask)
        )

    `optax.masked(optimizer, mask)` alone lets the gradients of what is masked out through as they
    are, which would add them to the parameters.

    Args:
        params: The parameters of the model.
        layers: Its normalization layers, from `find_layers`, or some of them.
        affine: Whether the parameters of these layers are trained.
        rest: Whether all others are.

    Returns:
        Truth values in the structure of the parameters.

    Raises:
        ValueError: If none of the layers has parameters among these.
    """
    flat = flattened(params)
    paths = {layer.path for layer in layers}
    if paths and not any(path[:end] in paths for path in flat for end in range(len(path))):
        raise UserError(
            f"trainable_mask: none of the layers {', '.join(sorted(map(name_of, paths)))} has "
            f"parameters among {', '.join(sorted({path[0] for path in flat}))}. Give "
            'variables["params"] of the model in which the layers were found.'
        )

    def trained(path: tuple[str, ...]) -> bool:
        inside = any(path[:length] in paths for length in range(len(path)))
        return affine if inside else rest

    return as_given(params, unflatten_dict({path: trained(path) for path in flat}))
