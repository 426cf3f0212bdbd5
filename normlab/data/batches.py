"""What happens to a data set inside a compiled training run: order, batches, standardization."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray


def shuffled_batches(
    key: PRNGKeyArray,
    indices: Int[Array, " n"],
    batch_size: int,
    groups: Int[Array, " n"] | None = None,
) -> Int[Array, "steps {batch_size}"]:
    """Cuts a fresh permutation of the training indices into the whole batches of one epoch.

    `n % batch_size` examples at the end of the permutation are left out, other ones each epoch,
    so that every step sees a batch of the same size.

    Args:
        key: One key for each epoch.
        indices: Which examples to train on.
        batch_size: Examples in each batch.
        groups: Of each example. The permutation is then sorted by group before it is cut, and the
            batches are shuffled: a batch has one group, but for those in which one group ends
            and the next begins.

    Returns:
        `n // batch_size` rows of indices, no example twice.

    Raises:
        ValueError: `batch_size` exceeds the number of examples.
    """
    steps = indices.shape[0] // batch_size
    if steps == 0:
        raise ValueError(
            f"batch_size={batch_size} is more than the {indices.shape[0]} training examples, so "
            f"that an epoch would have no step; expected at most {indices.shape[0]}."
        )
    kept = steps * batch_size
    if groups is None:
        return jax.random.permutation(key, indices)[:kept].reshape(steps, batch_size)
    of_examples, of_batches = jax.random.split(key)
    order = jax.random.permutation(of_examples, indices.shape[0])[:kept]
    order = order[jnp.argsort(groups[order], stable=True)]
    return jax.random.permutation(of_batches, indices[order].reshape(steps, batch_size))


def padded_batches(
    indices: Int[np.ndarray, " n"], batch_size: int
) -> tuple[Int[np.ndarray, "steps {batch_size}"], Bool[np.ndarray, "steps {batch_size}"]]:
    """Cuts indices into batches that hold each of them once, whatever the batch size.

    That is done once for a study, outside of its programs.

    Args:
        indices: Which examples to evaluate.
        batch_size: Examples in each batch.

    Returns:
        `ceil(n / batch_size)` rows of indices in their order, the last one filled up with index
        0, and a mask that is False at what was filled up.
    """
    n = indices.shape[0]
    padding = -n % batch_size
    mask = np.arange(n + padding) < n
    filled = np.pad(indices, (0, padding))
    return filled.reshape(-1, batch_size), mask.reshape(-1, batch_size)


def standardize(
    images: Num[Array, "*batch c"],
    mean: Float[Array, "..."] | None,
    deviation: Float[Array, "..."] | None,
    dtype: DTypeLike = jnp.float32,
) -> Num[Array, "*batch c"]:
    """Returns `(images - mean) / deviation`, computed in float32; int32 as it is.

    Args:
        images: uint8, floating or int32, features last.
        mean: Of the last axis, or of the last axes, in the units of the images, as
            `Dataset.mean`; None to leave the values as they are.
        deviation: Likewise, as `Dataset.deviation`.
        dtype: Of the result, but for int32.
    """
    if images.dtype == jnp.int32:
        return images
    if mean is None or deviation is None:
        return images.astype(dtype)
    of_each = (1,) * (images.ndim - mean.ndim) + mean.shape
    centred = images.astype(jnp.float32) - mean.reshape(of_each)
    return (centred / deviation.reshape(of_each)).astype(dtype)
