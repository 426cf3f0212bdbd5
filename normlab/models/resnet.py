"""The residual network for small images."""

from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from pydantic import model_validator

from ..spec import Spec
from .block import (
    ACTIVATIONS,
    Activation,
    Norm,
    NormPosition,
    Share,
    Takes,
    Weights,
    apply_linear,
    drop,
    needs_bias,
    normalize,
    normalize_and_activate,
)
from .convolution import convolution

Depth = Literal[8, 20, 32, 44, 56, 110]
Residual = Literal["plain", "skip_init", "fixup"]
WIDTHS = (16, 32, 64)


class ResNet(nn.Module):
    """Three stages of residual blocks of two 3x3 convolutions, mean over positions, linear head.

    Of depth 6 n + 2: n blocks at each of 16, 32 and 64 channels, the image halved between stages.
    Shortcuts have no parameters: where the shape changes they take every other position and add
    channels of zeros (option A of the paper).

    Two ways to train it without normalization stand beside the plain one:

    - `residual="skip_init"`: a learned scalar, at first 0, multiplies each branch, so that a block
      starts as the activation of its shortcut, which for "relu" is the shortcut.
    - `residual="fixup"`: the three rules of the paper. (1) The head and the last convolution of
      each branch start at 0. (2) The first convolution of each of the L branches starts at
      L^(-1/2) times its usual size. (3) A learned scalar, at first 1, multiplies each branch, and a
      learned scalar, at first 0, is added before each convolution, activation and dense layer;
      convolutions have no other bias. The authors' code trains these scalars at a tenth of the
      rate, which is left out.

    With `weights="scaled_standardized"`, `residual="skip_init"` and no norms it is close to the
    NF-ResNets of Brock, De and Smith, 2021, "Characterizing Signal Propagation to Close the
    Performance Gap in Unnormalized ResNets". Left out of these are the division of each branch's
    input by the deviation expected there, the factor 0.2 on branches, pre-activation blocks, and
    squeeze-and-excitation, stochastic depth and dropout. Adaptive gradient clipping is the
    optimizer's.

    Sources: He, Zhang, Ren and Sun, 2016, "Deep Residual Learning for Image Recognition", section
    4.2; De and Smith, 2020, "Batch Normalization Biases Residual Blocks Towards the Identity
    Function in Deep Networks"; Zhang, Dauphin and Ma, 2019, "Fixup Initialization:
    Residual Learning Without Normalization", section 3.

    Raises:
        ValueError: At the call, for normalized weights with `residual="fixup"`.

    Attributes:
        depth: Number of layers with weights.
        classes: Number of logits.
        norm: Constructor of the norm layers, called with `name=`.
        activation: Name of the activation.
        norm_position: Whether a norm stands before or after the activation. The one that ends a
            branch stands before the addition either way, even if it contains its activation, and
            the model's activation follows the addition.
        residual: How a branch joins its shortcut.
        weights: How the convolutions' weights are normalized, by the wrappers of normlab:
            "standardized", "scaled_standardized", "weight_norm", "spectral_norm", or "plain" for
            not at all. The head's are not.
        dropout: Share of the features before the head that is left out in training.
        dtype: Dtype of the computation; logits are float32.
    """

    depth: int
    classes: int
    norm: Norm
    activation: Activation = "relu"
    norm_position: NormPosition = "before"
    residual: Residual = "plain"
    weights: Weights = "plain"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch _"]:
        """Returns the logits of a batch of images."""
        _check_weights(self.residual, self.weights)
        act = (self.activation, self.norm_position)
        fixup = self.residual == "fixup"
        blocks = (self.depth - 2) // 6
        first = (len(WIDTHS) * blocks) ** -0.5 if fixup else 1.0
        last = 0.0 if fixup else 1.0

        norm = self.norm(name="norm_0")
        x = self._convolve(x, WIDTHS[0], "0", needs_bias(norm, self.norm_position), train=train)
        x = normalize_and_activate(self._shift(x, "activation_0"), norm, *act, train=train)
        for stage, width in enumerate(WIDTHS):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                place = f"{stage}_{block}"
                inner, outer = (self.norm(name=f"norm_{place}_{i}") for i in (0, 1))
                bias = needs_bias(inner, self.norm_position)
                y = self._convolve(x, width, f"{place}_0", bias, stride, first, train=train)
                y = self._shift(y, f"activation_{place}_0")
                y = normalize_and_activate(y, inner, *act, train=train)
                bias = needs_bias(outer, "before")
                y = self._convolve(y, width, f"{place}_1", bias, size=last, train=train)
                y = self._multiply(normalize(y, outer, train=train), place)
                shortcut = x[:, ::stride, ::stride]
                more = width - x.shape[-1]
                shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, more)))
                x = self._shift(y + shortcut, f"activation_{place}_1")
                x = ACTIVATIONS[self.activation](x)
        x = drop(self._shift(jnp.mean(x, axis=(1, 2)), "head"), self.dropout, train=train)
        initializer = nn.initializers.zeros if fixup else nn.initializers.lecun_normal()
        head = nn.Dense(self.classes, dtype=self.dtype, kernel_init=initializer, name="head")
        return head(x).astype(jnp.float32)

    def _convolve(
        self,
        x: Array,
        width: int,
        place: str,
        bias: bool,
        stride: int = 1,
        size: float = 1.0,
        *,
        train: bool,
    ) -> Array:
        """Convolves; `size` is that of the initial weights over the usual one."""
        layer = nn.Conv(
            width,
            (3, 3),
            strides=stride,
            use_bias=bias and self.residual != "fixup",
            dtype=self.dtype,
            # he_normal for a size of 1.
            kernel_init=nn.initializers.variance_scaling(2 * size**2, "fan_in", "truncated_normal"),
            conv_general_dilated=convolution,
            name=f"conv_{place}",
        )
        before = None if place == "0" else self.activation
        x = self._shift(x, f"conv_{place}")
        return apply_linear(layer, x, self.weights, before, train=train)

    def _shift(self, x: Array, place: str) -> Array:
        """Adds the scalar that Fixup puts before a layer."""
        if self.residual != "fixup":
            return x
        return x + self.param(f"shift_{place}", nn.initializers.zeros, ()).astype(x.dtype)

    def _multiply(self, y: Array, place: str) -> Array:
        """Multiplies a branch by its scalar, if it has one."""
        if self.residual == "plain":
            return y
        initializer = nn.initializers.constant(1.0 if self.residual == "fixup" else 0.0)
        return y * self.param(f"multiplier_{place}", initializer, ()).astype(y.dtype)


class ResNetSpec(Spec):
    """The residual network of a study; fields as in `ResNet`."""

    takes: ClassVar[Takes] = "values"

    name: Literal["resnet"] = "resnet"
    depth: Depth = 8
    activation: Activation = "relu"
    norm_position: NormPosition = "before"
    residual: Residual = "plain"
    weights: Weights = "plain"
    dropout: Share = 0.0

    @model_validator(mode="after")
    def _fixup_sizes_the_weights(self) -> "ResNetSpec":
        _check_weights(self.residual, self.weights)
        return self

    def build(self, norm: Norm, classes: int, dtype: Any) -> ResNet:
        """Returns the model with the given norm."""
        fields = self.model_dump(exclude={"name"})
        return ResNet(**fields, norm=norm, classes=classes, dtype=dtype)


def _check_weights(residual: Residual, weights: Weights) -> None:
    if residual == "fixup" and weights != "plain":
        raise ValueError(
            "residual='fixup' rests on the size of the initial weights, which "
            f"weights={weights!r} takes away; use weights='plain' or residual='skip_init'"
        )
