"""A convolution for CPU that is fast in training loops: patches times weights, block by block.

XLA's convolution is slow on CPU, and its gradient inside `lax.scan` is up to a hundred times slower
still, which would rule out epochs that run as one scan. A convolution is also a matrix product.
Let the row p(b, h, w) hold the kh * kw * c values of the padded input under the kernel's window at
output position (h, w) of image b. Then

    y[b, h, w, :] = p(b, h, w) @ K        K: the kernel as a matrix of (kh * kw * c, features)

All patches of a batch would be kh * kw times as large as the input. So the product runs over blocks
of a few images, whose patches stay in the cache.

The derivatives are those of this formula, and JAX finds them by itself in every mode: the gradient
to the kernel is the sum over blocks of dy^T @ patches, the one to the input adds dy @ K^T into the
windows that the patches came from. Two things make them fast. Each block is a `jax.checkpoint`, so
the patches are cut again for the backward pass and never stored. And the kernel takes part as its
transpose (features, kh * kw * c), because JAX then writes the gradient to the kernel as
dy^T @ patches, which runs up to 1.5 times faster than patches^T @ dy.

Many runs at once may be mapped by `jax.vmap` or by `jax.lax.map`. On CPU the second is faster for
convolutions, by a factor of about two: one run's matrix products keep all cores busy already, and
its blocks fit the cache.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_NHWC = ("NHWC", "HWIO", "NHWC")

# What the patches of a block may take up, in bytes. Between 1 and 2 MiB, a core's second-level
# cache, was fastest for inputs from (32, 32, 3) to (8, 8, 128); twice as much cost up to 50% more.
_BLOCK_BYTES = 2**21


def convolution(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """Convolve as `jax.lax.conv_general_dilated` does, on CPU by blocked matrix products.

    For `flax.linen.Conv(conv_general_dilated=...)`. Two-dimensional NHWC/HWIO convolutions in
    float32 or bfloat16, without dilation or groups, are blocked when they are compiled for a CPU,
    unless the types of the arrays name a sharding: a loop over images would gather them. All
    others, and all other platforms, get the library's convolution. The platform is looked at when
    the program is lowered, not when it is traced, so that a program compiled on a CPU machine for
    an accelerator holds the library's convolution.

    Args:
        lhs: Images, (batch, height, width, channels).
        rhs: Kernel, (kernel height, kernel width, channels, features), of the images' dtype.
        window_strides: As in `jax.lax.conv_general_dilated`, like all that follow.
        padding: "SAME", "SAME_LOWER", "VALID", or (low, high) for height and width.
        lhs_dilation: Dilation of the images.
        rhs_dilation: Dilation of the kernel.
        dimension_numbers: Order of the dimensions.
        feature_group_count: Number of groups of features.
        batch_group_count: Number of groups of images.
        precision: Precision of the products.
        preferred_element_type: Dtype of the result.
        out_sharding: Sharding of the result.

    Returns:
        (batch, output height, output width, features) in the dtype of `lhs`. bfloat16 is summed in
        float32, in the derivatives too.

    Raises:
        TypeError, ValueError: What `jax.lax.conv_general_dilated` raises for the same arguments.
    """
    library = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    # Before anything else, so that wrong arguments raise the library's errors.
    output = jax.eval_shape(library, lhs, rhs)
    plain = (
        lhs.ndim == 4
        and lhs.dtype in (jnp.float32, jnp.bfloat16)
        and output.size > 0
        and set(lhs_dilation or ()) | set(rhs_dilation or ()) <= {1}
        and feature_group_count == batch_group_count == 1
        and preferred_element_type is None
        and out_sharding is None
        and not any(jax.typeof(lhs).sharding.spec + jax.typeof(rhs).sharding.spec)
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
    )
    if not plain:
        return library(lhs, rhs)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    blocked = partial(
        _blocked,
        strides=window_strides,
        padding=padding,
        output_size=output.shape[1:3],
        precision=precision,
    )
    # The checkpoint lets only `lhs` and `rhs` wait for the backward pass. Without it both branches
    # would put aside what they need, each a copy. Nothing is computed twice for its sake: the
    # derivatives of a product need its factors, not its result.
    convolve = partial(lax.platform_dependent, cpu=blocked, default=library)
    return jax.checkpoint(convolve, prevent_cse=False)(lhs, rhs)


def _blocked(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    output_size: Sequence[int],
    precision: Any,
) -> Float[Array, "batch output_height output_width features"]:
    kernel_height, kernel_width, channels, features = kernel.shape
    height, width = output_size
    taps = kernel_height * kernel_width
    # All casts stand outside of the loop: the kernel's gradient is summed over blocks in float32,
    # and a cast to bfloat16 inside made the gradient to unpadded images five times slower.
    weights = kernel.reshape(taps * channels, features).T.astype(jnp.float32)
    edges = [(low, high, 0) for low, high in padding]

    def convolve(image: Float[Array, "height width channels"]) -> Float[Array, "h w features"]:
        image = lax.pad(image, jnp.float32(0), [*edges, (0, 0, 0)])
        windows = [
            lax.slice(
                image,
                (top, left, 0),
                (
                    top + (height - 1) * strides[0] + 1,
                    left + (width - 1) * strides[1] + 1,
                    channels,
                ),
                (*strides, 1),
            )
            for top in range(kernel_height)
            for left in range(kernel_width)
        ]
        patches = jnp.concatenate(windows, axis=-1)
        return lax.dot_general(patches, weights, (((2,), (1,)), ((), ())), precision)

    # A 1x1 kernel's patches are the image itself: one product does, and 0 asks `lax.map` for that.
    bytes_per_image = height * width * taps * channels * 4
    block = 0 if taps == 1 else _images_per_block(len(images), bytes_per_image)
    convolve = jax.checkpoint(convolve, prevent_cse=False)
    return lax.map(convolve, images.astype(jnp.float32), batch_size=block).astype(images.dtype)


def _images_per_block(batch: int, bytes_per_image: int) -> int:
    """Return as many images as the cache holds, or rather fewer if that divides the batch.

    What is left over when nothing near divides the batch becomes a smaller block of its own, which
    costs a copy of the images and one of the result.
    """
    most = max(1, min(batch, _BLOCK_BYTES // bytes_per_image))
    divisor = max(size for size in range(1, most + 1) if batch % size == 0)
    return divisor if 2 * divisor >= most else most
