"""Layers that divide by a deviation, a mean square or a length, and keep no state.

Ioffe & Szegedy 2015 (batch), Ba et al. 2016 (layer), Zhang & Sennrich 2019 (root mean square, also
of a part), Wu & He 2018 (group), Ulyanov et al. 2016 (instance), Li et al. 2019 (position), Nguyen
& Salazar 2019 (scale).
"""

import math

import numpy as np

from .basis import (
    Axes,
    Moments,
    affine,
    as_double,
    full_mask,
    moments,
    other_axes,
    standardize,
)


def batch_norm(
    x, *, axis: Axes = -1, epsilon: float = 1e-5, mask=None, scale=None, bias=None
) -> np.ndarray:
    reduced = other_axes(np.ndim(x), axis)
    return affine(standardize(x, reduced, epsilon=epsilon, mask=mask), axis, scale, bias)


def layer_norm(
    x,
    *,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    mask=None,
    scale=None,
    bias=None,
) -> np.ndarray:
    y = standardize(x, reduction_axes, epsilon=epsilon, mask=mask)
    return affine(y, feature_axes, scale, bias)


def position_norm(x, *, epsilon: float = 1e-5, mask=None, scale=None, bias=None) -> np.ndarray:
    return layer_norm(x, epsilon=epsilon, mask=mask, scale=scale, bias=bias)


def rms_norm(
    x,
    *,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    fraction: float = 1.0,
    zero_centred: bool = False,
    mask=None,
    scale=None,
    bias=None,
) -> np.ndarray:
    """The mean square is that of the first `ceil(fraction * n)` values along a single axis.

    `zero_centred` takes `scale` to be what the scale exceeds 1 by.
    """
    x = as_double(x)
    if zero_centred and scale is not None:
        scale = 1 + as_double(scale)
    if fraction == 1:
        y = standardize(x, reduction_axes, epsilon=epsilon, mask=mask, centered=False)
        return affine(y, feature_axes, scale, bias)
    last = np.moveaxis(x, reduction_axes, -1)
    counts = np.moveaxis(full_mask(x, mask), reduction_axes, -1)
    first = slice(math.ceil(fraction * last.shape[-1]))
    mean_square = moments(last[..., first], -1, counts[..., first], centered=False).variance
    y = np.moveaxis(last / np.sqrt(mean_square + epsilon), -1, reduction_axes)
    return affine(y, feature_axes, scale, bias)


def group_moments(x, num_groups: int, axes: Axes, mask=None) -> Moments:
    """Statistics over `axes` and the channels of each group, repeated over these channels.

    The groups are made by the loop over them; the channels are the last axis.
    """
    x = as_double(x)
    mask = full_mask(x, mask)
    axes = (*((axes,) if isinstance(axes, int) else axes), -1)
    groups = []
    for channels in np.split(np.arange(x.shape[-1]), num_groups):
        of_group = moments(x[..., channels], axes, mask[..., channels])
        groups.append([np.repeat(m, len(channels), axis=-1) for m in of_group])
    return Moments(*(np.concatenate(parts, axis=-1) for parts in zip(*groups, strict=True)))


@np.errstate(invalid="ignore")  # of infinite values
def group_norm(
    x,
    *,
    num_groups: int = 32,
    reduction_axes: Axes | None = None,
    feature_axes: int = -1,
    epsilon: float = 1e-6,
    mask=None,
    scale=None,
    bias=None,
) -> np.ndarray:
    x = as_double(x)
    axes = range(1, x.ndim) if reduction_axes is None else reduction_axes
    mask = full_mask(x, mask)
    # Channels last, where reduced axes are not named.
    turned, counts = (np.moveaxis(a, feature_axes, -1) for a in (x, mask))
    mean, variance, _ = group_moments(turned, num_groups, axes, counts)
    y = np.moveaxis((turned - mean) / np.sqrt(variance + epsilon), -1, feature_axes)
    return affine(y, feature_axes, scale, bias)


def instance_norm(
    x, *, feature_axes: Axes = -1, epsilon: float = 1e-6, mask=None, scale=None, bias=None
) -> np.ndarray:
    reduced = [axis for axis in other_axes(np.ndim(x), feature_axes) if axis != 0]
    return affine(standardize(x, reduced, epsilon=epsilon, mask=mask), feature_axes, scale, bias)


def scale_norm(x, *, epsilon: float = 1e-5, mask=None, scale=None, bias=None) -> np.ndarray:
    """Masked values add nothing to the length; of no value at all it is 1. `scale` is a number."""
    x = as_double(x)
    mask = full_mask(x, mask)
    length = np.sqrt((np.abs(np.where(mask, x, 0)) ** 2).sum(-1, keepdims=True))
    length = np.where(mask.any(-1, keepdims=True), np.maximum(length, epsilon), 1)
    return affine(x / length, -1, scale, bias)
