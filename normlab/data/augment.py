"""Random changes of training images: mirror images, crops, cutout, and mixup with their labels."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

Moves = Literal["none", "flip", "crop_flip"]

MARGIN = 4


class Augmentation(NamedTuple):
    """How training images are changed at random.

    Attributes:
        moves: As in `moved`.
        cutout: As in `cut_out`; None for none.
        mixup: As in `mixed_up`; None for none.
    """

    moves: Moves = "none"
    cutout: int | None = None
    mixup: float | None = None


def moved(
    key: PRNGKeyArray, images: Num[Array, "batch *image"], moves: Moves
) -> Num[Array, "batch *image"]:
    """Moves each image of a batch by itself.

    Args:
        key: Decides which images are changed, and how.
        images: In the units of their files, (batch, H, W, C); where nothing is changed, of any
            shape.
        moves: "flip" for mirror images, left and right exchanged, of half of them;
            "crop_flip" for a crop of each, moved by up to 4 pixels each way with zeros coming in,
            before that.
    """
    crop_key, flip_key = jax.random.split(key)
    if moves == "crop_flip":
        images = _crop(crop_key, images)
    if moves != "none":
        mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def cut_out(
    key: PRNGKeyArray, images: Float[Array, "batch h w c"], side: int
) -> Float[Array, "batch h w c"]:
    """Sets a square of each image to 0 (DeVries and Taylor, 2017).

    Its centre is any pixel, so that a part of it may lie outside.

    Args:
        key: The key of the step, of which the squares take a part of their own.
        images: Standardized, so that 0 is the mean.
        side: Of the square, in pixels.
    """
    count, *sizes, _ = images.shape
    centres = jax.random.randint(jax.random.fold_in(key, 2), (count, 2), 0, jnp.array([sizes]))
    first = centres - side // 2

    def within(axis: int) -> Array:
        places = jnp.arange(sizes[axis])[None]
        start = first[:, axis, None]
        return (places >= start) & (places < start + side)

    inside = within(0)[:, :, None] & within(1)[:, None, :]
    return jnp.where(inside[..., None], jnp.zeros((), images.dtype), images)


def mixed_up(
    key: PRNGKeyArray,
    images: Float[Array, "batch *image"],
    labels: Int[Array, " batch"],
    alpha: float,
    classes: int,
) -> tuple[Float[Array, "batch *image"], Float[Array, "batch {classes}"]]:
    """Mixes each example with another of the batch, in one proportion (Zhang et al., 2018).

    Args:
        key: The key of the step, of which mixing takes a part of its own.
        images: Standardized.
        labels: Their classes.
        alpha: The share of the first is drawn from the beta distribution of (alpha, alpha).
        classes: How many there are.

    Returns:
        Images, and what share of each class they have.
    """
    share_key, partner_key = jax.random.split(jax.random.fold_in(key, 3))
    share = jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32)
    partners = jax.random.permutation(partner_key, len(images))

    def mixed(values: Array) -> Array:
        of_both = values.astype(jnp.float32)
        return (share * of_both + (1 - share) * of_both[partners]).astype(values.dtype)

    return mixed(images), mixed(jax.nn.one_hot(labels, classes))


def _crop(key: PRNGKeyArray, images: Num[Array, "batch h w c"]) -> Num[Array, "batch h w c"]:
    padded = jnp.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * MARGIN + 1)

    def crop(image: Array, corner: Array) -> Array:
        return lax.dynamic_slice(image, (*corner, jnp.int32(0)), images.shape[1:])

    return jax.vmap(crop)(padded, corners)
