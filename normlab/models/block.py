"""What the models share: activations, and the order of linear map, norm and activation."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import linen as nn
from jaxtyping import Array

Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid"]
NormPosition = Literal["before", "after"]
Norm = Callable[..., nn.Module]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jax.nn.tanh,
    "sigmoid": jax.nn.sigmoid,
}


def needs_bias(norm: nn.Module, position: NormPosition) -> bool:
    """Whether a linear map needs a bias: not if a norm with one follows it directly."""
    return position == "after" or not getattr(norm, "use_bias", False)


def normalize_and_activate(
    x: Array, norm: Any, activation: Activation, position: NormPosition, *, train: bool
) -> Array:
    """Applies norm and activation, the norm before or after, and keeps the dtype of the input.

    A norm may return more precision than it was given; what follows shall not compute with it.
    """
    activate = ACTIVATIONS[activation]
    if position == "before":
        return activate(norm(x, use_running_average=not train).astype(x.dtype))
    return norm(activate(x), use_running_average=not train).astype(x.dtype)
