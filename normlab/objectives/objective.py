"""What is predicted and measured: the base of every objective, and sums that give its metrics."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..metrics import LOSS, ROUNDING, Metric
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
    0.5}`; what is annotated as `ClassVar` cannot. The mean loss over what was trained on or
    evaluated is a metric of every objective, called "loss".

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

        Training asks for it by `prepared`.

        Args:
            inputs: Of a batch, as the data set has them.
            targets: Its labels; None where the data set has none.

        Returns:
            Inputs; targets, whose leading axes are those of the losses; and weights of the shape
            of the losses, 0 for what is left out.
        """
        return inputs, targets, jnp.ones(len(inputs), jnp.float32)

    def prepared(self, inputs: Array, targets: Array | None) -> tuple[Array, Any, Array]:
        """Returns what `examples` returns, once it has been found to be that.

        Raises:
            ValueError: If it is something else.
        """
        made: Any = self.examples(inputs, targets)
        told = f"{type(self).__name__}.examples"
        if not isinstance(made, tuple | list) or len(made) != 3:
            raise ValueError(
                f"{told} returns {_in_words(made)}; expected three things: inputs, targets, and "
                "weights of the shape of the losses."
            )
        given, wanted, weights = made
        if jnp.shape(weights)[:1] != inputs.shape[:1]:
            raise ValueError(
                f"{told}: weights of shape {jnp.shape(weights)}; expected ({len(inputs)}, ...), "
                "one for each loss, as jnp.ones(len(inputs))."
            )
        return given, wanted, weights

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

    def total(self, output: Array, target: Any, weights: Array) -> Array:
        """Returns the sum of the losses of what counts, which a step of training divides.

        What is left out may be anything, also NaN, which no weight of 0 would remove.
        """
        return jnp.sum(jnp.where(weights > 0, self.loss(output, target) * weights, 0))

    def measure(self, output: Array, target: Array) -> dict[str, Array]:
        """Returns by name what is averaged: a number, or several along further axes, for each.

        A loss of this name takes the place of the one that is trained by.
        """
        return {}

    def finish(self, means: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Returns the metrics, made of the means of what `measure` returned and of the loss.

        Each is a number, and one is called "loss".
        """
        return means

    def sums(self, output: Array, target: Any, weights: Array) -> Sums:
        """Sums loss and what is measured over what counts.

        What is left out may be anything, also NaN, which no weight of 0 would remove.

        Raises:
            ValueError: If loss or measure return something else than they should.
        """
        told = type(self).__name__
        losses = _of_each(f"{told}.loss", self.loss(output, target), weights.shape)
        measured = {"loss": losses}
        given: Any = self.measure(output, target)
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise ValueError(
                f"{told}.measure returns {_in_words(given)}; expected arrays by name, as in "
                "{'pinball': loss}."
            )
        for name, values in given.items():
            measured[name] = _of_each(f"{told}.measure, {name}", values, weights.shape)
        count = jnp.sum(weights, dtype=jnp.float32)

        def total(values: Array) -> Array:
            weight = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))
            kept = jnp.where(weight > 0, values * weight, 0)
            return jnp.sum(kept, axis=tuple(range(weights.ndim)), dtype=jnp.float32)

        return {name: (total(values), count) for name, values in measured.items()}

    def metrics_of(self, sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
        """Returns the metrics of sums that have been fetched.

        Raises:
            ValueError: If they are no numbers, or not within the bounds that `metrics` says.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            means = {
                name: np.asarray(np.asarray(total, np.float64) / weight)
                for name, (total, weight) in sums.items()
            }
        found = self._finished(means)
        for name, meaning in self.all_metrics().items():
            least, most = meaning.bounds
            value = found.get(name, math.nan)
            told = f"{type(self).__name__}: {name} is {value:g}, but by what its metrics say"
            share = ", since it is a share" * meaning.share
            if least is not None and value < least - ROUNDING:
                raise ValueError(f"{told} it is at least {least:g}{share}; correct one of the two.")
            if most is not None and value > most + ROUNDING:
                raise ValueError(f"{told} it is at most {most:g}{share}; correct one of the two.")
        return found

    def measured(self, sums: Mapping[str, tuple[Any, Any]]) -> list[str]:
        """Returns the names of the metrics, given any sums.

        Raises:
            ValueError: If what `finish` returns is no metrics.
        """
        # Means over nothing are NaN, which a user's own code need not take.
        return [*self._finished({name: np.ones(np.shape(it)) for name, (it, _) in sums.items()})]

    def _finished(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
        with np.errstate(invalid="ignore", divide="ignore"):
            made: Any = self.finish(means)
        told = f"{type(self).__name__}.finish"
        if not isinstance(made, Mapping) or not all(
            isinstance(name, str) and name.isidentifier() for name in made
        ):
            raise ValueError(
                f"{told} returns {_in_words(made)}; expected numbers by name, with names that are "
                "words with underscores."
            )
        if "loss" not in made:
            raise ValueError(
                f"{told} returns {', '.join(made) or 'nothing'} without loss, which tells whether "
                "a run diverges; add 'loss': means['loss']."
            )
        for name, value in made.items():
            array = np.asarray(value)
            if array.ndim or array.dtype.kind not in "iuf":
                raise ValueError(
                    f"{told}: {name} is {_in_words(value)}; expected a number, which a method "
                    "finish makes of several."
                )
        return {name: float(value) for name, value in made.items()}

    def no_sums(self, inputs: Array, targets: Array | None, outputs: int) -> Sums:
        """Returns the sums over nothing, given any batch."""
        _, wanted, weights = self.prepared(inputs, targets)
        output = jax.ShapeDtypeStruct((*weights.shape, outputs), jnp.float32)
        shapes = jax.eval_shape(self.sums, output, wanted, weights)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _of_each(told: str, values: Any, places: tuple[int, ...]) -> Array:
    """Refuses what is not a number, or several, for each of the places that have a weight."""
    try:
        array = jnp.asarray(values)
    except TypeError as error:
        raise ValueError(f"{told}: {_in_words(values)}; expected an array of numbers.") from error
    if jnp.iscomplexobj(array):
        raise ValueError(f"{told}: complex numbers; expected real ones, as jnp.abs makes them.")
    shape = array.shape
    if shape[: len(places)] != places or (told.endswith(".loss") and shape != places):
        raise ValueError(
            f"{told}: an array of shape {shape}; expected {places}, a number for each example or "
            "place: take the mean over further axes, as with .mean(-1)."
        )
    return array


def _in_words(given: Any) -> str:
    """What a user's own method returned."""
    if isinstance(given, tuple | list):
        return f"{len(given)} things"
    if isinstance(given, Mapping):
        return f"a mapping of {', '.join(map(repr, given))}"
    if (shape := getattr(given, "shape", None)) is not None:
        return f"an array {given.dtype}{[*shape]}"
    return (
        repr(given)
        if given is None or isinstance(given, str | bool)
        else f"a {type(given).__name__}"
    )


def add_sums(one: Sums, other: Sums) -> Sums:
    """Returns the sums over what either was made of."""
    return jax.tree.map(jnp.add, one, other)
