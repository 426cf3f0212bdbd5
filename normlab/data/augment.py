"""Random changes of training images: mirror images and crops."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Num, PRNGKeyArray

Augmentation = Literal["none", "flip", "crop_flip"]

MARGIN = 4


def augment(
    key: PRNGKeyArray, images: Num[Array, "batch *image"], augmentation: Augmentation
) -> Num[Array, "batch *image"]:
    """Changes each image of a batch by itself.

    Args:
        key: Decides which images are changed, and how.
        images: In the units of their files, (batch, H, W, C); where nothing is changed, of any
            shape.
        augmentation: "flip" for mirror images, left and right exchanged, of half of them;
            "crop_flip" for a crop of each, moved by up to 4 pixels each way with zeros coming in,
            before that.
    """
    crop_key, flip_key = jax.random.split(key)
    if augmentation == "crop_flip":
        images = _crop(crop_key, images)
    if augmentation != "none":
        mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def _crop(key: PRNGKeyArray, images: Num[Array, "batch h w c"]) -> Num[Array, "batch h w c"]:
    padded = jnp.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * MARGIN + 1)

    def crop(image: Array, corner: Array) -> Array:
        return lax.dynamic_slice(image, (*corner, jnp.int32(0)), images.shape[1:])

    return jax.vmap(crop)(padded, corners)
