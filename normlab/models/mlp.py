"""The multilayer perceptron."""

from typing import Annotated, Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from pydantic import Field

from ..spec import Count, Spec
from .block import (
    Activation,
    Norm,
    NormPosition,
    Share,
    Takes,
    Weights,
    apply_linear,
    drop,
    needs_bias,
    normalize_and_activate,
)


class MLP(nn.Module):
    """Dense layers, each with norm and activation, and a linear head.

    Attributes:
        hidden: Width of each hidden layer.
        classes: Number of logits.
        norm: Constructor of the norm layers, called with `name=`.
        activation: Name of the activation.
        norm_position: Whether the norm stands before or after the activation.
        weights: How the hidden layers' weights are normalized, by the wrappers of normlab:
            "standardized", "scaled_standardized", "weight_norm", "spectral_norm", or "plain" for
            not at all. The head's are not.
        dropout: Share of the features before the head that is left out in training.
        dtype: Dtype of the computation; logits are float32.
    """

    hidden: tuple[int, ...]
    classes: int
    norm: Norm
    activation: Activation = "relu"
    norm_position: NormPosition = "before"
    weights: Weights = "plain"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch ..."], *, train: bool) -> Float[Array, "batch _"]:
        """Returns the logits of a batch of inputs of any shape."""
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden):
            norm = self.norm(name=f"norm_{i}")
            dense = nn.Dense(
                width,
                use_bias=needs_bias(norm, self.norm_position),
                dtype=self.dtype,
                kernel_init=nn.initializers.he_normal(),
                name=f"dense_{i}",
            )
            before = self.activation if i else None
            x = apply_linear(dense, x, self.weights, before, train=train)
            x = normalize_and_activate(x, norm, self.activation, self.norm_position, train=train)
        x = drop(x, self.dropout, train=train)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)


class MLPSpec(Spec):
    """The multilayer perceptron of a study; fields as in `MLP`."""

    takes: ClassVar[Takes] = "values"

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Count, ...], Field(min_length=1, max_length=1_000)] = (128, 128)
    activation: Activation = "relu"
    norm_position: NormPosition = "before"
    weights: Weights = "plain"
    dropout: Share = 0.0

    def build(self, norm: Norm, classes: int, dtype: Any) -> MLP:
        """Returns the model with the given norm."""
        fields = self.model_dump(exclude={"name"})
        return MLP(**fields, norm=norm, classes=classes, dtype=dtype)
