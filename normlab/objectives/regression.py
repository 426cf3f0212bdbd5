"""Regression: one number or several for each example."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from pydantic import Field, PrivateAttr

from ..metrics import REGRESSION, Metric
from ..spec import Targets
from .objective import Objective


class Regression(Objective):
    """Numbers, by their squared or Huber's loss.

    Mean and standard deviation of the training targets are taken out of each target, and the
    network predicts what is left; the loss is told in these units. The root of the mean squared
    error is in the target's own. R² is one minus the share of the variance that is left, of each of
    several targets by itself, and the mean over those that vary.

    Attributes:
        loss_by: "squared", or "huber", which grows with the size of an error beyond `delta`.
        delta: Where Huber's loss ceases to be half the square, in standard deviations.
    """

    name: Literal["regression"] = "regression"
    loss_by: Literal["squared", "huber"] = "squared"
    delta: float = Field(default=1.0, gt=0)

    # Of the training targets; tuples, so that objectives can be compared.
    _mean: tuple[float, ...] = PrivateAttr(default=(0.0,))
    _deviation: tuple[float, ...] = PrivateAttr(default=(1.0,))

    targets: ClassVar[Targets] = "values"
    metrics: ClassVar[Mapping[str, Metric]] = REGRESSION

    def fitted(self, targets: np.ndarray | None) -> "Regression":
        """Takes mean and standard deviation of the training targets; 1 where that is 0."""
        assert targets is not None  # of which the kind of targets takes care
        values = targets.reshape(len(targets), -1).astype(np.float64)
        deviation = values.std(0)
        fitted = self.model_copy()
        fitted._mean = tuple(values.mean(0).tolist())
        fitted._deviation = tuple(np.where(deviation == 0, 1.0, deviation).tolist())
        return fitted

    def examples(self, inputs: Array, targets: Array | None) -> tuple[Array, Any, Array]:
        """Standardizes the targets."""
        assert targets is not None
        # One row of each, since numbers of axes must agree where a user has JAX insist on that.
        mean, deviation = (jnp.asarray([it], jnp.float32) for it in (self._mean, self._deviation))
        return inputs, (targets - mean) / deviation, jnp.ones(len(inputs), jnp.float32)

    def loss(
        self, output: Float[Array, "batch values"], target: Float[Array, "batch values"]
    ) -> Float[Array, " batch"]:
        """Returns the mean loss of the standardized values."""
        if self.loss_by == "huber":
            return jnp.mean(optax.huber_loss(output, target, delta=self.delta), axis=-1)
        return jnp.mean(jnp.square(output - target), axis=-1)

    def measure(
        self, output: Float[Array, "batch values"], target: Float[Array, "batch values"]
    ) -> dict[str, Array]:
        """Returns squared errors, targets and their squares, whose mean is near 0, of each value.

        So their variance is no small difference of large sums.
        """
        return {
            "squared_error": jnp.square(output - target),
            "target": target,
            "squared_target": jnp.square(target),
        }

    def finish(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Makes the metrics of squared errors and the moments of the targets."""
        errors = means["squared_error"]
        variance = means["squared_target"] - means["target"] ** 2
        # What rounding leaves of the variance of a constant.
        varies = variance > 1e-6 * means["squared_target"]
        explained = 1 - errors / variance
        own = errors * np.square(self._deviation)
        return {
            "rmse": float(np.sqrt(own.mean())),
            "r2": float(explained[varies].mean()) if varies.any() else float("nan"),
            "loss": float(means["loss"]),
        }

    def expected(self, places: tuple[int, ...], outputs: int) -> str:
        """Says what predictions are."""
        return (
            f"predictions, floating of shape ({places[0]}, {outputs}): one column for each of the "
            f"{outputs} values of an example, and nothing beside."
        )
