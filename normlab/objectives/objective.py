"""What is predicted and measured: the base of every objective, and sums that give its metrics."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..metrics import LOSS, Metric
from ..spec import Spec, Targets

# Name -> total over what was counted, and how much that was. Sums of two batches add up.
Sums = dict[str, tuple[Array, Array]]


class Objective(Spec):
    """What a network learns to predict, by which loss, and what is measured of it.

    A study of one's own objective needs a loss and what is measured, as values for each example::

        @normlab.register_objective("pinball")
        class Pinball(normlab.Objective):
            share: float = 0.9
            targets = "values"
            metrics = {"pinball": normlab.Metric(higher_is_better=False)}

            def loss(self, output, target):
                error = target - output
                return jnp.maximum(self.share * error, (self.share - 1) * error).mean(-1)

            def measure(self, output, target):
                return {"pinball": self.loss(output, target)}

    Fields that are annotated can be set in a configuration: `objective: {name: pinball, share:
    0.5}`. The mean loss over what was trained on or evaluated is a metric of every objective,
    called "loss".

    Attributes:
        targets: What the labels of a data set must be: "classes", whole numbers from 0, one an
            example; "flags", zeros and ones, (N, L); "values", numbers, (N,) or (N, K), which
            arrive as (batch, K); "positions", a class for each position, (N, H, W), where -1 is
            left out; "none", where the targets are part of the inputs.
        takes_shares: Whether a target may also be the shares of all classes, (classes,), as
            `train.mixup` makes them.
        metrics: Name -> meaning of what `finish` returns. The first is what a study selects by
            and reports unless it says otherwise; without any it is the loss.
    """

    targets: ClassVar[Targets] = "classes"
    takes_shares: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, Metric]] = {}

    @classmethod
    def all_metrics(cls) -> dict[str, Metric]:
        """Returns the meaning of all that may be measured, the first one first, the loss too."""
        return {**cls.metrics, "loss": cls.metrics.get("loss", LOSS)}

    def fitted(self, targets: np.ndarray | None) -> "Objective":
        """Returns the objective as it is for a data set.

        Args:
            targets: The labels of the examples to train on; None where the data set has none.
        """
        return self

    def examples(self, inputs: Array, targets: Array | None) -> tuple[Array, Any, Array]:
        """Returns what the network is given, what it is compared with, and what of that counts.

        Args:
            inputs: Of a batch, as the data set has them.
            targets: Its labels; None where the data set has none.

        Returns:
            Inputs; targets, whose leading axes are those of the losses; and weights of the shape
            of the losses, 0 for what is left out.
        """
        return inputs, targets, jnp.ones(len(inputs), jnp.float32)

    def check(self, model: str, output: Any, places: tuple[int, ...], outputs: int) -> Array:
        """Returns what a model gives back, in float32 at least, in which the loss is computed.

        Args:
            model: Name of the model, for the message.
            output: What its call returned.
            places: The shape of the weights: a loss for each of these.
            outputs: How many numbers a model gives for each.

        Raises:
            ValueError: If the output is not of the shape and kind that the loss takes.
        """
        shape: Any = getattr(output, "shape", None)
        dtype: Any = getattr(output, "dtype", None)
        if shape != (*places, outputs) or not jnp.issubdtype(dtype, jnp.floating):
            returned = (
                f"an array {dtype}{list(shape)}" if shape is not None else type(output).__name__
            )
            raise ValueError(
                f"{model} returns {returned}; expected {self.expected(places, outputs)}"
            )
        return output.astype(jnp.promote_types(dtype, jnp.float32))

    def expected(self, places: tuple[int, ...], outputs: int) -> str:
        """Says in a message what a model returns, to the end of the sentence."""
        return f"an array, floating of shape {(*places, outputs)}, and nothing beside."

    def loss(self, output: Array, target: Array) -> Array:
        """Returns the loss of each example, or of each place that has a weight, not negative."""
        raise NotImplementedError

    def measure(self, output: Array, target: Array) -> dict[str, Array]:
        """Returns by name what is averaged: a number, or several along further axes, for each.

        A loss of this name takes the place of the one that is trained by.
        """
        return {}

    def finish(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the metrics, made of the means of what `measure` returned and of the loss."""
        return {name: float(mean) for name, mean in means.items()}

    def sums(self, output: Array, target: Any, weights: Array) -> Sums:
        """Sums loss and what is measured over what counts.

        What is left out may be anything, also NaN, which no weight of 0 would remove.
        """
        told = type(self).__name__
        losses = _of_each(f"{told}.loss", self.loss(output, target), weights.shape)
        measured = {"loss": losses}
        for name, values in self.measure(output, target).items():
            measured[name] = _of_each(f"{told}.measure, {name}", values, weights.shape)
        count = jnp.sum(weights, dtype=jnp.float32)

        def total(values: Array) -> Array:
            weight = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))
            kept = jnp.where(weight > 0, values * weight, 0)
            return jnp.sum(kept, axis=tuple(range(weights.ndim)), dtype=jnp.float32)

        return {name: (total(values), count) for name, values in measured.items()}

    def metrics_of(self, sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
        """Returns the metrics of sums that have been fetched."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = {
                name: np.asarray(np.asarray(total, np.float64) / weight)
                for name, (total, weight) in sums.items()
            }
            return self.finish(means)

    def no_sums(self, inputs: Array, targets: Array | None, outputs: int) -> Sums:
        """Returns the sums over nothing, given any batch."""
        _, wanted, weights = self.examples(inputs, targets)
        output = jax.ShapeDtypeStruct((*weights.shape, outputs), jnp.float32)
        shapes = jax.eval_shape(self.sums, output, wanted, weights)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _of_each(told: str, values: Any, places: tuple[int, ...]) -> Array:
    """Refuses what is not a number, or several, for each of the places that have a weight."""
    shape = jnp.shape(values)
    if shape[: len(places)] != places or (told.endswith(".loss") and shape != places):
        raise ValueError(
            f"{told}: an array of shape {shape}; expected {places}, a number for each example or "
            "place: take the mean over further axes, as with .mean(-1)."
        )
    return jnp.asarray(values)


def add_sums(one: Sums, other: Sums) -> Sums:
    """Returns the sums over what either was made of."""
    return jax.tree.map(jnp.add, one, other)
