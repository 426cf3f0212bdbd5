"""Language modelling: the next token of a text, at each of its positions."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from pydantic import Field

from ..metrics import NEXT_TOKEN, Metric
from ..spec import Targets
from .objective import Objective

BYTES = 256


class NextToken(Objective):
    """The token that comes next, after each but the last of an example, by cross-entropy.

    Examples are the numbers of tokens, (N, T). The model is given the first T - 1 of them, and
    returns logits (N, T - 1, tokens). Metrics are the perplexity, which is e to the power of the
    mean cross-entropy, and, of at most 256 tokens, which bytes are, the same in bits for each.

    Attributes:
        padding: Number of the token that fills up examples, whose prediction is left out; None
            where there is no such token.
    """

    name: Literal["next_token"] = "next_token"
    padding: int | None = Field(default=None, ge=0)

    targets: ClassVar[Targets] = "none"
    metrics: ClassVar[Mapping[str, Metric]] = NEXT_TOKEN

    def examples(self, inputs: Array, targets: Array | None) -> tuple[Array, Any, Array]:
        """Returns the tokens but the last, those but the first, and which of these count."""
        if not jnp.issubdtype(inputs.dtype, jnp.integer) or inputs.ndim != 2 or inputs.shape[1] < 2:
            raise ValueError(
                f"objective.name=next_token: an example is {inputs.dtype}{list(inputs.shape[1:])}; "
                "expected the numbers of at least two tokens, integers of shape (N, T), as int32."
            )
        wanted = inputs[:, 1:]
        counts = jnp.ones(wanted.shape, jnp.float32)
        if self.padding is not None:
            counts = (wanted != self.padding).astype(jnp.float32)
        return inputs[:, :-1], wanted, counts

    def check(self, model: str, output: Any, places: tuple[int, ...], outputs: int) -> Array:
        """Refuses a padding that no example can have, too."""
        if self.padding is not None and self.padding >= outputs:
            raise ValueError(
                f"objective.padding={self.padding} is none of the tokens, which are 0 to "
                f"{outputs - 1}, so that nothing is left out; leave it out, or give the token that "
                "fills up examples."
            )
        return super().check(model, output, places, outputs)

    def loss(
        self, output: Float[Array, "batch places tokens"], target: Int[Array, "batch places"]
    ) -> Float[Array, "batch places"]:
        """Returns the cross-entropy of each token."""
        return optax.softmax_cross_entropy_with_integer_labels(output, target)

    def measure(
        self, output: Float[Array, "batch places tokens"], target: Int[Array, "batch places"]
    ) -> dict[str, Array]:
        """Returns the cross-entropy in bits, where the tokens may be bytes."""
        if output.shape[-1] > BYTES:
            return {}
        return {"bits_per_byte": self.loss(output, target) / math.log(2)}

    def finish(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Makes the perplexity of the mean cross-entropy."""
        with np.errstate(over="ignore"):
            perplexity = np.exp(means["loss"])
        return {"perplexity": float(perplexity)} | {
            name: float(mean) for name, mean in means.items()
        }

    def expected(self, places: tuple[int, ...], outputs: int) -> str:
        """Says what logits of tokens are."""
        return (
            f"logits, floating of shape {(*places, outputs)}: for each of the tokens that it was "
            f"given those of the next one, one for each of the {outputs} tokens, and nothing "
            "beside."
        )
