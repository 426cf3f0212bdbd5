"""The Vision Transformer for small images."""

from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from pydantic import model_validator

from ..spec import Count, Few, Spec
from .block import ACTIVATIONS, Activation, Norm, Takes, needs_bias, normalize

BlockNorm = Literal["pre", "post"]


class ViT(nn.Module):
    r"""Patches of an image as tokens, blocks of attention and perceptron, mean over tokens, head.

    With a norm in front of each branch ("pre") or behind each addition ("post") a block is

    .. math:: x \leftarrow x + f(\mathrm{norm}(x)) \qquad x \leftarrow \mathrm{norm}(x + f(x))

    for f first the attention and then the perceptron; with "pre" one more norm stands before the
    mean. Norms get (batch, tokens, width), so batch norm pools over examples and tokens. There is
    no class token: its values are distributed unlike those of patches, and statistics over tokens
    would mix the two. A norm that contains its activation applies it in its place; the model's own
    activation is that of the perceptron only.

    Sources: Dosovitskiy et al., 2021, "An Image is Worth 16x16 Words"; mean instead of class token:
    Beyer, Zhai and Kolesnikov, 2022, "Better plain ViT baselines for ImageNet-1k"; the two places
    of the norm: Xiong et al., 2020, "On Layer Normalization in the Transformer Architecture"; norm
    of queries and keys: Henry et al., 2020, and as here, with any norm and the usual factor before
    the softmax, Dehghani et al., 2023, "Scaling Vision Transformers to 22 Billion Parameters".

    Raises:
        ValueError: At the call, if the patches do not divide the image or the heads the width.

    Attributes:
        classes: Number of logits.
        norm: Constructor of the norm layers, called with `name=`.
        patch_size: Height and width of a patch.
        width: Features of a token.
        depth: Number of blocks.
        heads: Heads of the attention.
        mlp_ratio: Width of the perceptron's hidden layer over that of a token.
        block_norm: Where the norms of a block stand: "pre" or "post".
        query_key_norm: Whether queries and keys are normalized before their product, by two norms
            that get (batch, tokens, heads, width / heads).
        activation: Name of the activation.
        dtype: Dtype of the computation; logits and the softmax of the attention are float32.
    """

    classes: int
    norm: Norm
    patch_size: int = 4
    width: int = 64
    depth: int = 4
    heads: int = 4
    mlp_ratio: int = 4
    block_norm: BlockNorm = "pre"
    query_key_norm: bool = False
    activation: Activation = "gelu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch _"]:
        """Returns the logits of a batch of images."""
        _check_heads(self.heads, self.width)
        x = self._dense(self.width, "patches")(self._patches(x))
        positions = self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        x = x + positions[None].astype(x.dtype)
        for block in range(self.depth):
            attend = partial(self._attend, block=block, train=train)
            perceive = partial(self._perceive, block=block)
            for name, branch in (("attention", attend), ("mlp", perceive)):
                norm = self.norm(name=f"norm_{block}_{name}")
                if self.block_norm == "pre":
                    x = x + branch(normalize(x, norm, train=train))
                else:
                    x = normalize(x + branch(x), norm, train=train)
        if self.block_norm == "pre":
            x = normalize(x, self.norm(name="norm_last"), train=train)
        x = jnp.mean(x, axis=1)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)

    def _patches(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch tokens pixels"]:
        batch, height, width, channels = x.shape
        size = self.patch_size
        if height % size or width % size:
            fitting = [n for n in range(1, height + 1) if height % n == width % n == 0]
            raise ValueError(
                f"ViT: patches of {size} x {size} do not divide an image of {height} x {width}. "
                f"Use one of patch_size={', '.join(map(str, fitting))}."
            )
        x = x.reshape(batch, height // size, size, width // size, size, channels)
        return x.swapaxes(2, 3).reshape(batch, -1, size * size * channels)

    def _attend(self, x: Array, *, block: int, train: bool) -> Array:
        def heads(name: str, normed: bool) -> Array:
            norm = self.norm(name=f"norm_{block}_{name}") if normed else None
            bias = norm is None or needs_bias(norm, "before")
            y = self._dense(self.width, f"{name}_{block}", bias)(x)
            y = y.reshape(*y.shape[:2], self.heads, -1)
            return y if norm is None else normalize(y, norm, train=train)

        query, key = heads("query", self.query_key_norm), heads("key", self.query_key_norm)
        y = jax.nn.dot_product_attention(query, key, heads("value", normed=False))
        return self._dense(self.width, f"output_{block}")(y.reshape(x.shape))

    def _perceive(self, x: Array, *, block: int) -> Array:
        x = self._dense(self.mlp_ratio * self.width, f"hidden_{block}")(x)
        return self._dense(self.width, f"dense_{block}")(ACTIVATIONS[self.activation](x))

    def _dense(self, width: int, name: str, bias: bool = True) -> nn.Dense:
        initializer = nn.initializers.xavier_uniform()
        return nn.Dense(width, use_bias=bias, dtype=self.dtype, kernel_init=initializer, name=name)


class ViTSpec(Spec):
    """The Vision Transformer of a study; fields as in `ViT`."""

    takes: ClassVar[Takes] = "values"

    name: Literal["vit"] = "vit"
    patch_size: Few = 4
    width: Count = 64
    depth: Few = 4
    heads: Few = 4
    mlp_ratio: Few = 4
    block_norm: BlockNorm = "pre"
    query_key_norm: bool = False
    activation: Activation = "gelu"

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ViTSpec":
        _check_heads(self.heads, self.width)
        return self

    def build(self, norm: Norm, classes: int, dtype: Any) -> ViT:
        """Returns the model with the given norm."""
        fields = self.model_dump(exclude={"name"})
        return ViT(**fields, norm=norm, classes=classes, dtype=dtype)


def _check_heads(heads: int, width: int) -> None:
    if width % heads:
        raise ValueError(
            f"heads={heads} do not divide width={width}; make the width a multiple of the heads"
        )
