"""The plain convolutional network."""

from typing import Annotated, Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from pydantic import Field, model_validator

from ..spec import Count, Few, Spec
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
from .convolution import convolution

Initialization = Literal["he_normal", "glorot_uniform"]


class CNN(nn.Module):
    """3x3 convolutions, each with norm and activation, and a linear head.

    With channels (32, 64), padding "valid", head "flatten" and the norm after the activation, it is
    the well-known Keras example: Conv 32, BatchNorm, Conv 64, BatchNorm, Flatten, Dense.

    Raises:
        ValueError: At the call, if the image is too small for the convolutions.

    Attributes:
        channels: Channels of each convolution.
        classes: Number of logits.
        norm: Constructor of the norm layers, called with `name=`.
        strides: Stride of each convolution; 1 for all if empty.
        padding: "same" or "valid".
        head: What comes before the linear head: all positions ("flatten") or their mean
            ("global_average").
        initialization: Initializer of all kernels, by its name in Flax.
        activation: Name of the activation.
        norm_position: Whether the norm stands before or after the activation.
        weights: How the convolutions' weights are normalized, by the wrappers of normlab:
            "standardized", "scaled_standardized", "weight_norm", "spectral_norm", or "plain" for
            not at all. The head's are not.
        dropout: Share of the features before the head that is left out in training.
        dtype: Dtype of the computation; logits are float32.
    """

    channels: tuple[int, ...]
    classes: int
    norm: Norm
    strides: tuple[int, ...] = ()
    padding: Literal["same", "valid"] = "same"
    head: Literal["flatten", "global_average"] = "flatten"
    initialization: Initialization = "he_normal"
    activation: Activation = "relu"
    norm_position: NormPosition = "before"
    weights: Weights = "plain"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch _"]:
        """Returns the logits of a batch of images."""
        initializer = getattr(nn.initializers, self.initialization)()
        strides = self.strides or (1,) * len(self.channels)
        for i, (channels, stride) in enumerate(zip(self.channels, strides, strict=True)):
            norm = self.norm(name=f"norm_{i}")
            if self.padding == "valid" and min(x.shape[1:3]) < 3:
                raise ValueError(
                    f"CNN: nothing of the image is left for convolution {i + 1} of "
                    f"{len(self.channels)}, whose input has {x.shape[1]} x {x.shape[2]} positions. "
                    'Use fewer channels, or padding="same".'
                )
            conv = nn.Conv(
                channels,
                (3, 3),
                strides=stride,
                padding=self.padding.upper(),
                use_bias=needs_bias(norm, self.norm_position),
                dtype=self.dtype,
                kernel_init=initializer,
                conv_general_dilated=convolution,
                name=f"conv_{i}",
            )
            before = self.activation if i else None
            x = apply_linear(conv, x, self.weights, before, train=train)
            x = normalize_and_activate(x, norm, self.activation, self.norm_position, train=train)
        x = x.reshape(x.shape[0], -1) if self.head == "flatten" else jnp.mean(x, axis=(1, 2))
        x = drop(x, self.dropout, train=train)
        head = nn.Dense(self.classes, dtype=self.dtype, kernel_init=initializer, name="head")
        return head(x).astype(jnp.float32)


class CNNSpec(Spec):
    """The plain convolutional network of a study; fields as in `CNN`."""

    takes: ClassVar[Takes] = "values"

    name: Literal["cnn"] = "cnn"
    channels: Annotated[tuple[Count, ...], Field(min_length=1, max_length=1_000)] = (32, 64)
    strides: tuple[Few, ...] = ()
    padding: Literal["same", "valid"] = "same"
    head: Literal["flatten", "global_average"] = "flatten"
    initialization: Initialization = "he_normal"
    activation: Activation = "relu"
    norm_position: NormPosition = "before"
    weights: Weights = "plain"
    dropout: Share = 0.0

    @model_validator(mode="after")
    def _a_stride_for_each(self) -> "CNNSpec":
        if self.strides and len(self.strides) != len(self.channels):
            raise ValueError(
                f"strides={list(self.strides)} are {len(self.strides)}, but there are "
                f"{len(self.channels)} convolutions in channels={list(self.channels)}; give one "
                "stride for each, or none"
            )
        return self

    def build(self, norm: Norm, classes: int, dtype: Any) -> CNN:
        """Returns the model with the given norm."""
        fields = self.model_dump(exclude={"name"})
        return CNN(**fields, norm=norm, classes=classes, dtype=dtype)
