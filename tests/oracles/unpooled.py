"""Layers that pool over nothing, or over neighbouring channels alone.

Krizhevsky et al. 2012 (local response), Zhu et al. 2025 (dynamic tanh), Chen et al. 2025 (Derf).
"""

import numpy as np
import scipy.special

from .basis import affine, as_double, full_mask


def identity(x, *, mask=None, scale=None, bias=None) -> np.ndarray:
    """The affine layer as well, whose scale and bias are learned."""
    del mask
    return affine(as_double(x), -1, scale, bias)


def dynamic_tanh(x, *, alpha, mask=None, scale=None, bias=None) -> np.ndarray:
    del mask
    return affine(np.tanh(alpha * as_double(x)), -1, scale, bias)


def dynamic_erf(x, *, alpha, shift, mask=None, scale=None, bias=None) -> np.ndarray:
    del mask
    return affine(scipy.special.erf(alpha * as_double(x) + shift), -1, scale, bias)


def local_response_norm(
    x,
    *,
    size: int = 5,
    k: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
    average: bool = False,
    feature_axes: int = -1,
    mask=None,
    scale=None,
    bias=None,
) -> np.ndarray:
    """The window reaches `size // 2` channels to each side, as far as there are channels.

    `average` divides the sum of squares by `size`, whatever part of the window there is. Masked
    values add nothing to the sum.
    """
    x = as_double(x)
    counted = np.where(full_mask(x, mask), x, 0)
    x, counted = (np.moveaxis(a, feature_axes, -1) for a in (x, counted))
    channels, half = x.shape[-1], size // 2
    y = np.empty_like(x)
    for i in range(channels):
        window = counted[..., max(0, i - half) : min(channels - 1, i + half) + 1]
        total = (np.abs(window) ** 2).sum(-1) / (size if average else 1)
        y[..., i] = x[..., i] / (k + alpha * total) ** beta
    return affine(np.moveaxis(y, -1, feature_axes), feature_axes, scale, bias)
