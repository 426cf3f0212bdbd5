"""A small decoder-only transformer on tokens, as GPT-2 is one."""

from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num
from pydantic import field_validator, model_validator

from ..errors import nearest
from ..spec import Count, Few, Spec
from ..variants import VARIANTS
from .block import ACTIVATIONS, Activation, Norm, Share, Takes, needs_bias, normalize
from .network import Roles, marked

Around = Literal["pre", "post", "peri"]
Positions = Literal["learned", "rotary"]

# Of all weights and of positions, as the code of GPT-2 draws them.
_DEVIATION, _DEVIATION_OF_POSITIONS = 0.02, 0.01
_ROTARY_BASE = 10_000.0


class GPT(nn.Module):
    r"""Tokens as vectors, blocks of causal attention and perceptron, logits of each next token.

    With norms in front of each branch ("pre"), behind each addition ("post"), or around each branch
    ("peri") a block is

    .. math::
        x \leftarrow x + f(\mathrm{norm}(x)) \qquad x \leftarrow \mathrm{norm}(x + f(x)) \qquad
        x \leftarrow x + \mathrm{norm}(f(\mathrm{norm}(x)))

    for f first the attention and then the perceptron. One more norm stands before the logits with
    "pre" and "peri", and one behind the embedding with "peri". A norm that contains its activation
    applies it in its place.

    Norms get each token as an example, (batch tokens, width), so that what comes later is part of
    no statistics but those of a batch, in training: in evaluation, and in training with all layers
    that take none over the batch, a logit depends on the tokens up to its own alone.

    Weights and embeddings are drawn with deviation 0.02, those that end a branch with that over
    the root of the number of branches, learned positions with 0.01; biases start at 0. Dropout is
    that of the embedding and of what each branch adds.

    Sources: Radford et al., 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2),
    with its code for the initial weights; the places of the norms: Xiong et al., 2020, "On Layer
    Normalization in the Transformer Architecture", and Kim et al., 2025, "Peri-LN: Revisiting
    Normalization Layer in the Transformer Architecture"; norm of queries and keys: Henry et al.,
    2020, "Query-Key Normalization for Transformers", here with any norm and the usual factor
    before the softmax; scaled embedding: Zhu et al., 2025, "Transformers without Normalization",
    for its language models; rotary positions: Su et al., 2021, "RoFormer"; one matrix for embedding
    and logits: Press and Wolf, 2017, "Using the Output Embedding to Improve Language Models".

    Raises:
        ValueError: At the call, if the input is no batch of tokens, the heads do not divide the
            width, or it is longer than the positions that were learned.

    Attributes:
        classes: Number of tokens there are.
        norm: Constructor of the norm layers, called with `name=`.
        width: Features of a token.
        depth: Number of blocks.
        heads: Heads of the attention.
        mlp_ratio: Width of the perceptron's hidden layer over that of a token.
        norm_position: Where the norms of a block stand: "pre", "post" or "peri".
        query_key_norm: Constructor of two norms for queries and keys, which get each head of each
            token as an example, (batch tokens heads, width / heads); None for none.
        positions: "learned", a vector for each position, or "rotary", turning queries and keys.
        tie_embeddings: Whether the embedding also makes the logits, which then have no bias.
        scale_embedding: Whether a token's vector is multiplied by a learned number that starts at
            the root of the width. Layers that do not divide by the size of what they get, as
            dynamic tanh, need it to learn: what they get is else as small as the embedding is
            drawn.
        dropout: Share of features that is left out in training.
        activation: Name of the activation.
        dtype: Dtype of the computation; logits and the softmax of the attention are float32.
    """

    classes: int
    norm: Norm
    width: int = 64
    depth: int = 4
    heads: int = 4
    mlp_ratio: int = 4
    norm_position: Around = "pre"
    query_key_norm: Norm | None = None
    positions: Positions = "learned"
    tie_embeddings: bool = True
    scale_embedding: bool = False
    dropout: float = 0.0
    activation: Activation = "gelu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Num[Array, "..."], *, train: bool
    ) -> Float[Array, "batch tokens classes"]:
        """Returns the logits of the token after each."""
        _check_tokens(x)
        _check_heads(self.heads, self.width, self.positions)
        drawn = nn.initializers.normal(_DEVIATION)
        embedding = nn.Embed(
            self.classes, self.width, dtype=self.dtype, embedding_init=drawn, name="embedding"
        )
        tokens, x = x, embedding(x)
        if self.scale_embedding:
            root = nn.initializers.constant(self.width**0.5)
            x = x * self.param("embedding_scale", root, ()).astype(x.dtype)
        if self.positions == "learned":
            x = x + self._learned_positions(tokens.shape[1]).astype(x.dtype)
        norm = partial(self._norm, train=train)
        if self.norm_position == "peri":
            x = norm(x, "norm_first")
        x = self._drop(x, "dropout_first", train=train)
        for block in range(self.depth):
            attend = partial(self._attend, block=block, train=train)
            perceive = partial(self._perceive, block=block)
            for name, branch in (("attention", attend), ("mlp", perceive)):
                place = f"norm_{block}_{name}"
                added = branch(x if self.norm_position == "post" else norm(x, place))
                if self.norm_position == "peri":
                    added = norm(added, f"{place}_after")
                x = x + self._drop(added, f"dropout_{block}_{name}", train=train)
                if self.norm_position == "post":
                    x = norm(x, place)
        if self.norm_position != "post":
            x = norm(x, "norm_last")
        if self.tie_embeddings:
            return embedding.attend(x).astype(jnp.float32)
        head = nn.Dense(
            self.classes, use_bias=False, dtype=self.dtype, kernel_init=drawn, name="head"
        )
        return head(x).astype(jnp.float32)

    def parameter_roles(self, params: Any) -> Roles:
        """Tells that the map to the logits is the head, and a weight, also where it is tied."""
        head = "embedding" if self.tie_embeddings else "head"

        def is_norm(path: tuple[str, ...]) -> bool:
            return path[0].startswith("norm_")

        return Roles(
            weights=marked(
                params,
                lambda path: not is_norm(path) and (path[-1] == "kernel" or path[0] == head),
            ),
            norms=marked(params, is_norm),
            head=marked(params, lambda path: path[0] == head),
        )

    def _learned_positions(self, tokens: int) -> Array:
        if (there := self.get_variable("params", "positions")) is not None:
            if tokens > len(there):
                raise ValueError(
                    f"GPT: {tokens} tokens, but the model has learned {len(there)} positions; give "
                    "at most as many, or take positions=rotary, which go on."
                )
            tokens_learned = len(there)
        else:
            tokens_learned = tokens
        drawn = nn.initializers.normal(_DEVIATION_OF_POSITIONS)
        return self.param("positions", drawn, (tokens_learned, self.width))[None, :tokens]

    def _attend(self, x: Array, *, block: int, train: bool) -> Array:
        def heads(name: str, normed: bool) -> Array:
            constructor = self.query_key_norm if normed else None
            norm = None if constructor is None else constructor(name=f"norm_{block}_{name}")
            bias = norm is None or needs_bias(norm, "before")
            y = self._dense(self.width, f"{name}_{block}", bias=bias)(x)
            y = y.reshape(*y.shape[:2], self.heads, -1)
            return y if norm is None else _of_examples(y, norm, train=train)

        query, key = heads("query", normed=True), heads("key", normed=True)
        if self.positions == "rotary":
            query, key = rotated(query), rotated(key)
        y = jax.nn.dot_product_attention(query, key, heads("value", False), is_causal=True)
        return self._ends(f"output_{block}")(y.reshape(x.shape))

    def _perceive(self, x: Array, *, block: int) -> Array:
        x = self._dense(self.mlp_ratio * self.width, f"hidden_{block}")(x)
        return self._ends(f"dense_{block}")(ACTIVATIONS[self.activation](x))

    def _norm(self, x: Array, name: str, *, train: bool) -> Array:
        return _of_examples(x, self.norm(name=name), train=train)

    def _drop(self, x: Array, name: str, *, train: bool) -> Array:
        return nn.Dropout(self.dropout, deterministic=not train, name=name)(x)

    def _ends(self, name: str) -> nn.Dense:
        """Ends a branch: of smaller weights, as what the branches add adds up."""
        return self._dense(self.width, name, deviation=_DEVIATION / (2 * self.depth) ** 0.5)

    def _dense(
        self, width: int, name: str, *, bias: bool = True, deviation: float = _DEVIATION
    ) -> nn.Dense:
        drawn = nn.initializers.normal(deviation)
        return nn.Dense(width, use_bias=bias, dtype=self.dtype, kernel_init=drawn, name=name)


class GPTSpec(Spec):
    """The decoder-only transformer of a study; fields as in `GPT`.

    Attributes:
        query_key_norm: "none", "same" for the norm of each variant, or the name of one layer for
            all variants, as `rms_norm`.
    """

    takes: ClassVar[Takes] = "tokens"

    name: Literal["gpt"] = "gpt"
    width: Count = 64
    depth: Few = 4
    heads: Few = 4
    mlp_ratio: Few = 4
    norm_position: Around = "pre"
    query_key_norm: str = "none"
    positions: Positions = "learned"
    tie_embeddings: bool = True
    scale_embedding: bool = False
    dropout: Share = 0.0
    activation: Activation = "gelu"

    @field_validator("query_key_norm")
    @classmethod
    def _is_known(cls, given: str) -> str:
        known = ("none", "same", *VARIANTS)
        if given not in known:
            raise ValueError(f"{given!r} is not known{nearest(given, known)}")
        return given

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "GPTSpec":
        _check_heads(self.heads, self.width, self.positions)
        return self

    def build(self, norm: Norm, classes: int, dtype: Any) -> GPT:
        """Returns the model with the given norm."""
        fields = self.model_dump(exclude={"name", "query_key_norm"})
        inside = {"none": None, "same": norm}
        if self.query_key_norm not in inside:
            inside[self.query_key_norm] = VARIANTS[self.query_key_norm].layer
        return GPT(
            **fields,
            query_key_norm=inside[self.query_key_norm],
            norm=norm,
            classes=classes,
            dtype=dtype,
        )


def rotated(x: Float[Array, "batch tokens heads width"]) -> Float[Array, "..."]:
    r"""Turns each pair of features by an angle that grows with the position.

    .. math::
        (x_{2i}, x_{2i+1}) \leftarrow
        (x_{2i} \cos m\theta_i - x_{2i+1} \sin m\theta_i,\;
        x_{2i} \sin m\theta_i + x_{2i+1} \cos m\theta_i), \quad \theta_i = 10000^{-2i/d}

    at position m, so that products of queries and keys depend on distances. Computed in float32.

    Source: Su et al., 2021, "RoFormer", section 3.2.2.
    """
    _, tokens, _, width = x.shape
    speeds = _ROTARY_BASE ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = jnp.arange(tokens, dtype=jnp.float32)[:, None] * speeds[None, :]
    cosine, sine = (it(angles)[None, :, None, :] for it in (jnp.cos, jnp.sin))
    even, odd = (x[..., start::2].astype(jnp.float32) for start in (0, 1))
    pairs = jnp.stack([even * cosine - odd * sine, even * sine + odd * cosine], axis=-1)
    return pairs.reshape(x.shape).astype(x.dtype)


def _of_examples(x: Array, norm: Any, *, train: bool) -> Array:
    """Normalizes each vector as an example of its own."""
    return normalize(x.reshape(-1, x.shape[-1]), norm, train=train).reshape(x.shape)


def _check_tokens(x: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.integer) or x.ndim != 2:
        raise ValueError(
            f"GPT: the input is {x.dtype}{list(x.shape)}; expected the numbers of tokens, integers "
            "of shape (batch, tokens), as the data set text gives them."
        )


def _check_heads(heads: int, width: int, positions: Positions) -> None:
    if width % heads:
        raise ValueError(
            f"heads={heads} do not divide width={width}; make the width a multiple of the heads"
        )
    if positions == "rotary" and width // heads % 2:
        raise ValueError(
            f"width={width} over heads={heads} is {width // heads}, but positions=rotary turns "
            "pairs of features; make it an even number"
        )
