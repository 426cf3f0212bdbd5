"""Classification: one class of several for each example."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int
from pydantic import Field

from ..metrics import CLASSIFICATION, Metric
from ..spec import Targets
from .objective import Objective

# The class of each example, or the shares that it has of all.
Labels = Int[Array, " batch"] | Float[Array, "batch classes"]

# Classes from which on it is told whether the label is among the five likeliest.
TOP_5_FROM = 20


class Classification(Objective):
    """One class of several for each example, by cross-entropy.

    Metrics are the accuracy and, of 20 classes or more, the top-5 accuracy: whether the label is
    among the five likeliest classes.

    Attributes:
        label_smoothing: Share of each label that is spread over all classes, in the loss that is
            trained by; the loss that is reported is without.
    """

    name: Literal["classification"] = "classification"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    targets: ClassVar[Targets] = "classes"
    takes_shares: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = CLASSIFICATION

    def loss(self, output: Float[Array, "batch classes"], target: Labels) -> Float[Array, " batch"]:
        """Returns the cross-entropy with the smoothed labels."""
        shares = target if target.ndim == 2 else jax.nn.one_hot(target, output.shape[-1])
        return optax.softmax_cross_entropy(
            output, optax.smooth_labels(shares, self.label_smoothing)
        )

    def measure(self, output: Float[Array, "batch classes"], target: Labels) -> dict[str, Array]:
        """Returns cross-entropy without smoothing, and whether the likeliest classes are right."""
        if target.ndim == 2:
            loss = optax.softmax_cross_entropy(output, target)
            target = jnp.argmax(target, axis=-1)
        else:
            loss = optax.softmax_cross_entropy_with_integer_labels(output, target)
        measured = {
            "loss": loss,
            "accuracy": (jnp.argmax(output, axis=-1) == target).astype(jnp.float32),
        }
        if output.shape[-1] >= TOP_5_FROM:
            _, likeliest = lax.top_k(output, 5)
            found = jnp.any(likeliest == target[:, None], axis=-1)
            measured["top_5_accuracy"] = found.astype(jnp.float32)
        return measured

    def expected(self, places: tuple[int, ...], outputs: int) -> str:
        """Says what logits are."""
        (examples,), classes = places, outputs
        return (
            f"logits, floating of shape ({examples}, {classes}): one row for each of the "
            f"{examples} examples that it was given, one column for each of the {classes} classes "
            "of the data set. Let it return what a dense layer of `classes` features makes of the "
            "examples, and nothing beside."
        )
