"""The residual network for small images."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..spec import Spec
from .block import (
    ACTIVATIONS,
    Activation,
    Norm,
    NormPosition,
    needs_bias,
    normalize_and_activate,
)
from .convolution import convolution

Depth = Literal[8, 20, 32, 44, 56, 110]
WIDTHS = (16, 32, 64)


class ResNet(nn.Module):
    """Three stages of residual blocks of two 3x3 convolutions, mean over positions, linear head.

    Of depth 6 n + 2: n blocks at each of 16, 32 and 64 channels, the image halved between stages.
    Shortcuts have no parameters: where the shape changes they take every other position and add
    channels of zeros (option A of the paper).

    Source: He, Zhang, Ren and Sun, 2016, "Deep Residual Learning for Image Recognition", section
    4.2.

    Attributes:
        depth: Number of layers with weights.
        classes: Number of logits.
        norm: Constructor of the norm layers, called with `name=`.
        activation: Name of the activation.
        norm_position: Whether a norm stands before or after the activation. The one that ends a
            block stands before the addition either way.
        dtype: Dtype of the computation; logits are float32.
    """

    depth: int
    classes: int
    norm: Norm
    activation: Activation = "relu"
    norm_position: NormPosition = "before"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch _"]:
        """Returns the logits of a batch of images."""
        act = (self.activation, self.norm_position)
        norm = self.norm(name="norm_0")
        x = self._convolve(x, WIDTHS[0], 1, needs_bias(norm, self.norm_position), "conv_0")
        x = normalize_and_activate(x, norm, *act, train=train)
        blocks = (self.depth - 2) // 6
        for stage, width in enumerate(WIDTHS):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                place = f"{stage}_{block}"
                inner, last = (self.norm(name=f"norm_{place}_{i}") for i in (0, 1))
                y = self._convolve(
                    x, width, stride, needs_bias(inner, self.norm_position), f"conv_{place}_0"
                )
                y = normalize_and_activate(y, inner, *act, train=train)
                y = self._convolve(y, width, 1, needs_bias(last, "before"), f"conv_{place}_1")
                y = last(y, use_running_average=not train).astype(y.dtype)
                shortcut = x[:, ::stride, ::stride]
                more = width - x.shape[-1]
                shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, more)))
                x = ACTIVATIONS[self.activation](y + shortcut)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)

    def _convolve(self, x: Array, width: int, stride: int, bias: bool, name: str) -> Array:
        return nn.Conv(
            width,
            (3, 3),
            strides=stride,
            use_bias=bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
            conv_general_dilated=convolution,
            name=name,
        )(x)


class ResNetSpec(Spec):
    """The residual network of a study; fields as in `ResNet`."""

    name: Literal["resnet"] = "resnet"
    depth: Depth = 8
    activation: Activation = "relu"
    norm_position: NormPosition = "before"

    def build(self, norm: Norm, classes: int, dtype: Any) -> ResNet:
        """Returns the model with the given norm."""
        fields = self.model_dump(exclude={"name"})
        return ResNet(**fields, norm=norm, classes=classes, dtype=dtype)
