"""Multi-label classification: any number of flags for each example."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer

from ..metrics import MULTILABEL, Metric
from ..spec import Targets
from .objective import Objective


class Multilabel(Objective):
    """Flags that are set or not, each for itself, by sigmoid cross-entropy.

    A flag is predicted where its logit is above 0. Metrics are F1 of all flags of all examples
    together, `2 hits / (predicted + set)`, 0 where none is predicted or set; the share of the flags
    that are right; and the share of the examples of which all flags are.
    """

    name: Literal["multilabel"] = "multilabel"

    targets: ClassVar[Targets] = "flags"
    metrics: ClassVar[Mapping[str, Metric]] = MULTILABEL

    def loss(
        self, output: Float[Array, "batch flags"], target: Integer[Array, "batch flags"]
    ) -> Float[Array, " batch"]:
        """Returns the mean cross-entropy of the flags."""
        losses = optax.sigmoid_binary_cross_entropy(output, target.astype(output.dtype))
        return jnp.mean(losses, axis=-1)

    def measure(
        self, output: Float[Array, "batch flags"], target: Integer[Array, "batch flags"]
    ) -> dict[str, Array]:
        """Returns which flags are right, and how many are predicted, set, and both."""
        predicted, wanted = output > 0, target > 0
        right = predicted == wanted
        return {
            "flags_right": jnp.mean(right, axis=-1, dtype=jnp.float32),
            "subset_accuracy": jnp.all(right, axis=-1).astype(jnp.float32),
            "hits": jnp.sum(predicted & wanted, axis=-1, dtype=jnp.float32),
            "predicted": jnp.sum(predicted, axis=-1, dtype=jnp.float32),
            "set": jnp.sum(wanted, axis=-1, dtype=jnp.float32),
        }

    def finish(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Makes F1 of what is predicted, set, and both."""
        both = float(means["predicted"] + means["set"])
        return {
            "micro_f1": 2 * float(means["hits"]) / both if both else 0.0,
            **{name: float(means[name]) for name in ("flags_right", "subset_accuracy", "loss")},
        }

    def expected(self, places: tuple[int, ...], outputs: int) -> str:
        """Says what logits of flags are."""
        return (
            f"logits, floating of shape ({places[0]}, {outputs}): one column for each of the "
            f"{outputs} flags of the data set, and nothing beside."
        )
