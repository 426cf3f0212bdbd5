"""Which adapter a model takes, and the class or function that makes it."""

from functools import partial
from typing import Any

from flax import linen as nn

from .as_functions import Functions, FunctionsNetwork
from .as_linen import LinenNetwork
from .as_nnx import NNXNetwork
from .network import Network

_KINDS: tuple[type[Network], ...] = (LinenNetwork, NNXNetwork, FunctionsNetwork)


def kind_of(told: str, maker: Any) -> type[Network]:
    """Returns the adapter of what a class or function makes.

    Args:
        told: How the message begins.
        maker: The class or function.

    Raises:
        ValueError: If it makes no model of a kind that is known.
    """
    for kind in _KINDS:
        if kind.is_made_by(maker):
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
    if isinstance(model, partial) and NNXNetwork.is_made_by(model.func):
        return NNXNetwork(model)
    if isinstance(model, tuple) and len(model) >= 2 and all(map(callable, model[:2])):
        return FunctionsNetwork(Functions(*model))
    raise TypeError(
        f"{model!r} is no model; expected a flax.linen.Module, a functools.partial of a class of "
        "flax.nnx.Module, or two functions (init, apply)."
    )
