"""Classification: one class of several for each example."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from pydantic import Field

from .objective import Metric, Objective, Targets


class Classification(Objective):
    """One class of several for each example, by cross-entropy.

    Attributes:
        label_smoothing: Share of each label that is spread over all classes, in the loss that is
            trained by; the loss that is reported is without.
    """

    name: Literal["classification"] = "classification"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    targets: ClassVar[Targets] = "classes"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric(higher_is_better=True, share=True),
        "loss": Metric(higher_is_better=False),
    }

    def loss(
        self, output: Float[Array, "batch classes"], target: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        """Returns the cross-entropy with the smoothed labels."""
        one_hot = jax.nn.one_hot(target, output.shape[-1])
        return optax.softmax_cross_entropy(
            output, optax.smooth_labels(one_hot, self.label_smoothing)
        )

    def measure(
        self, output: Float[Array, "batch classes"], target: Int[Array, " batch"]
    ) -> dict[str, Array]:
        """Returns cross-entropy without smoothing, and whether the likeliest class is right."""
        return {
            "loss": optax.softmax_cross_entropy_with_integer_labels(output, target),
            "accuracy": (jnp.argmax(output, axis=-1) == target).astype(jnp.float32),
        }

    def expected(self, places: tuple[int, ...], outputs: int) -> str:
        """Says what logits are."""
        (examples,), classes = places, outputs
        return (
            f"logits, floating of shape ({examples}, {classes}): one row for each of the "
            f"{examples} examples that it was given, one column for each of the {classes} classes "
            "of the data set. Let it return what a dense layer of `classes` features makes of the "
            "examples, and nothing beside."
        )
