"""Which adapter a model takes, and the class or function that makes it."""

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from flax import linen as nn

from .as_functions import Functions, FunctionsNetwork
from .as_linen import LinenNetwork
from .network import Network

if TYPE_CHECKING:
    from .as_nnx import NNXNetwork


def _of_nnx() -> "type[NNXNetwork] | None":
    """The adapter of NNX; None where nobody has imported NNX, which takes a third of a second."""
    if "flax.nnx" not in sys.modules:
        return None
    from .as_nnx import NNXNetwork

    return NNXNetwork


def kind_of(told: str, maker: Any) -> type[Network]:
    """Returns the adapter of what a class or function makes.

    Args:
        told: How the message begins.
        maker: The class or function.

    Raises:
        ValueError: If it makes no model of a kind that is known.
    """
    kinds: tuple[type[Network] | None, ...] = (LinenNetwork, _of_nnx(), FunctionsNetwork)
    for kind in kinds:
        if kind is not None and kind.is_made_by(maker):
            return kind
    raise ValueError(
        f"{told}: {maker!r} is not a class of flax.linen.Module or flax.nnx.Module, nor a function "
        "that returns a pair (init, apply)."
    )


def network_of(model: Any) -> Network:
    """Returns a model as training sees it.

    Args:
        model: A Linen module, a partial of a class of NNX modules that lacks `rngs` alone, or a
            pair of functions.

    Raises:
        TypeError: If it is of no kind that is known.
    """
    if isinstance(model, nn.Module):
        return LinenNetwork(model)
    of_nnx = _of_nnx()
    if of_nnx is not None and isinstance(model, partial) and of_nnx.is_made_by(model.func):
        return of_nnx(model)
    if isinstance(model, tuple) and len(model) >= 2 and all(map(callable, model[:2])):
        return FunctionsNetwork(Functions(*model))
    raise TypeError(
        f"{model!r} is no model; expected a flax.linen.Module, a functools.partial of a class of "
        "flax.nnx.Module, or two functions (init, apply)."
    )
