"""What the models share: normalized weights, and how norm and activation follow a linear map."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from flax import linen as nn
from jaxtyping import Array
from pydantic import Field

from .. import linen
from ..functional import ACTIVATIONS, NONLINEARITY_GAINS, Activation

NormPosition = Literal["before", "after"]
Weights = Literal["plain", "standardized", "scaled_standardized", "weight_norm", "spectral_norm"]
Norm = Callable[..., nn.Module]
# What a model computes with: real values, the numbers of tokens, or either.
Takes = Literal["values", "tokens", "either"]
Share = Annotated[float, Field(ge=0, lt=1)]


def apply_linear(
    layer: nn.Module, x: Array, weights: Weights, activation: Activation | None, *, train: bool
) -> Array:
    """Applies a dense layer or convolution, its weights normalized in the way named.

    Args:
        layer: Dense layer or convolution.
        x: Its input.
        weights: How its weights are normalized. "standardized" needs a norm behind the layer.
        activation: The activation that the input comes from; None for the input of the model.
            Scaled weight standardization gives back the variance that it has taken away.
        train: Whether the state of spectral normalization moves.
    """
    name = f"{weights}_{layer.name}"
    match weights:
        case "standardized":
            return linen.WeightStandardization(layer, name=name)(x)
        case "scaled_standardized":
            gain = NONLINEARITY_GAINS[activation or "identity"]
            scaled = linen.ScaledWeightStandardization(layer, nonlinearity_gain=gain, name=name)
            return scaled(x)
        case "weight_norm":
            return linen.WeightNorm(layer, name=name)(x)
        case "spectral_norm":
            return linen.SpectralNorm(layer, name=name)(x, update_stats=train)
        case "plain":
            return layer(x)


def needs_bias(norm: nn.Module, position: NormPosition) -> bool:
    """Whether a linear map needs a bias: not if a norm with one follows it directly.

    A norm that has no field `use_bias` counts as one without a bias. One that contains its
    activation follows directly in either position.
    """
    follows_directly = position == "before" or _includes_activation(norm)
    return not (follows_directly and getattr(norm, "use_bias", False))


def normalize(x: Array, norm: Any, *, train: bool) -> Array:
    """Applies a norm and keeps the dtype of the input.

    A norm may return more precision than it was given; what follows shall not compute with it.
    """
    return norm(x, use_running_average=not train).astype(x.dtype)


def normalize_and_activate(
    x: Array, norm: Any, activation: Activation, position: NormPosition, *, train: bool
) -> Array:
    """Applies norm and activation, the norm before or after, and keeps the dtype of the input.

    A norm whose `includes_activation` is true takes the place of both.
    """
    if _includes_activation(norm):
        return normalize(x, norm, train=train)
    activate = ACTIVATIONS[activation]
    if position == "before":
        return activate(normalize(x, norm, train=train))
    return normalize(activate(x), norm, train=train)


def drop(x: Array, share: float, *, train: bool) -> Array:
    """Leaves out a share of the features in training; those that stay are scaled up to match."""
    return nn.Dropout(share, deterministic=not train, name="dropout")(x)


def _includes_activation(norm: Any) -> bool:
    return getattr(norm, "includes_activation", False)
