"""One step: the loss of a batch, its gradient, and the metrics as sums."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from .state import TrainState


class Metrics(NamedTuple):
    """Exact sums over examples, which add up over batches of any size.

    Attributes:
        examples: How many examples.
        loss: Sum of their cross-entropy, without label smoothing.
        correct: How many were classified rightly.
    """

    examples: Float[Array, ""]
    loss: Float[Array, ""]
    correct: Float[Array, ""]


def no_metrics() -> Metrics:
    """The metrics of no example."""
    return Metrics(*(jnp.zeros(()) for _ in Metrics._fields))


def measure(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    mask: Bool[Array, " batch"] | None = None,
) -> Metrics:
    """Sums loss and correct answers over the examples that the mask does not leave out."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    kept = jnp.ones_like(correct) if mask is None else mask
    # A loss of what is left out may be anything, also NaN, which no factor of 0 would remove.
    return Metrics(
        jnp.sum(kept, dtype=jnp.float32),
        jnp.sum(jnp.where(kept, losses, 0)),
        jnp.sum(kept & correct, dtype=jnp.float32),
    )


def checked_logits(model: nn.Module, output: Any, examples: int, classes: int) -> Array:
    """Returns what a model gives back, in float32 at least, in which the loss is computed.

    Args:
        model: The model, for the message.
        output: What its call returned.
        examples: How many examples it was called with.
        classes: How many classes the data set has.

    Raises:
        ValueError: If these are no logits, one row an example and one column a class.
    """
    shape: Any = getattr(output, "shape", None)
    dtype: Any = getattr(output, "dtype", None)
    if shape != (examples, classes) or not jnp.issubdtype(dtype, jnp.floating):
        returned = f"an array {dtype}{list(shape)}" if shape is not None else type(output).__name__
        raise ValueError(
            f"{type(model).__name__} returns {returned}; expected logits, floating of shape "
            f"({examples}, {classes}): one row for each of the {examples} examples that it was "
            f"given, one column for each of the {classes} classes of the data set. Let it return "
            "what a dense layer of `classes` features makes of the examples, and nothing beside."
        )
    return output.astype(jnp.promote_types(dtype, jnp.float32))


def train_step(
    model: nn.Module,
    transformation: optax.GradientTransformation,
    classes: int,
    label_smoothing: float,
    state: TrainState,
    images: Num[Array, "batch ..."],
    labels: Int[Array, " batch"],
    dropout_key: PRNGKeyArray,
) -> tuple[TrainState, Metrics]:
    """Takes one step of gradient descent on the mean cross-entropy of a batch.

    Args:
        model: The model; called with `train=True`.
        transformation: The optimizer.
        classes: How many classes the data set has.
        label_smoothing: Share of each label that is spread over all classes.
        state: The state before.
        images: The batch: floating, or integers as the numbers of tokens.
        labels: Its classes.
        dropout_key: Decides what the model draws, as which features it leaves out.

    Returns:
        The state after, and the metrics of the batch as it was before.
    """

    def loss_of(params: Any):
        variables: Any = {"params": params, "batch_stats": state.batch_stats}
        output, updated = model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        logits = checked_logits(model, output, len(images), classes)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), label_smoothing)
        loss = jnp.mean(optax.softmax_cross_entropy(logits, targets))
        return loss, (measure(logits, labels), updated.get("batch_stats", {}))

    gradients, (metrics, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = transformation.update(gradients, state.opt_state, state.params)
    return (
        state.replace(
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            step=state.step + 1,
        ),
        metrics,
    )
