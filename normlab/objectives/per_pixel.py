"""Segmentation: one class of several for each position of an image."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ..metrics import PER_PIXEL, Metric
from ..spec import Targets
from .objective import Objective


class PerPixel(Objective):
    """One class of several for each position, by cross-entropy; positions of class -1 are left out.

    Metrics are the mean over the classes of intersection over union, of what is predicted and what
    is there in all examples together, without classes that are neither; and the share of the
    positions that are right.
    """

    name: Literal["per_pixel"] = "per_pixel"

    targets: ClassVar[Targets] = "positions"
    metrics: ClassVar[Mapping[str, Metric]] = PER_PIXEL

    def examples(self, inputs: Array, targets: Array | None) -> tuple[Array, Any, Array]:
        """Leaves out the positions of class -1."""
        assert targets is not None  # of which the kind of targets takes care
        return inputs, jnp.maximum(targets, 0), (targets >= 0).astype(jnp.float32)

    def loss(
        self, output: Float[Array, "batch h w classes"], target: Int[Array, "batch h w"]
    ) -> Float[Array, "batch h w"]:
        """Returns the cross-entropy of each position."""
        return optax.softmax_cross_entropy_with_integer_labels(output, target)

    def measure(
        self, output: Float[Array, "batch h w classes"], target: Int[Array, "batch h w"]
    ) -> dict[str, Array]:
        """Returns which positions are right, and are of the intersection and union of a class."""
        likeliest = jnp.argmax(output, axis=-1)
        predicted, wanted = (
            jax.nn.one_hot(it, output.shape[-1], dtype=bool) for it in (likeliest, target)
        )
        return {
            "pixel_accuracy": (likeliest == target).astype(jnp.float32),
            "intersection": (predicted & wanted).astype(jnp.float32),
            "union": (predicted | wanted).astype(jnp.float32),
        }

    def finish(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Makes the mean intersection over union."""
        there = means["union"] > 0
        shares = means["intersection"][there] / means["union"][there]
        return {
            "mean_iou": float(shares.mean()) if there.any() else float("nan"),
            "pixel_accuracy": float(means["pixel_accuracy"]),
            "loss": float(means["loss"]),
        }

    def expected(self, places: tuple[int, ...], outputs: int) -> str:
        """Says what logits of positions are."""
        return (
            f"logits, floating of shape {(*places, outputs)}: at each position one for each of the "
            f"{outputs} classes of the data set, and nothing beside."
        )
