"""Layers that contain their activation, and keep no state.

Singh & Krishnan 2020 (filter response), Liu et al. 2020 (EvoNorm), Labatie et al. 2021 (proxy).
"""

import numpy as np
import scipy.special
import scipy.stats

from .basis import affine, as_double, moments
from .standardizing import group_moments, group_norm


def filter_response_norm(
    x,
    *,
    base_epsilon: float = 1e-6,
    epsilon=0.0,
    threshold=None,
    mask=None,
    scale=None,
    bias=None,
) -> np.ndarray:
    """`epsilon` is the learned one, whose magnitude is added to the constant."""
    x = as_double(x)
    mean_square = moments(x, range(1, x.ndim - 1), mask, centered=False).variance
    y = affine(x / np.sqrt(mean_square + base_epsilon + np.abs(epsilon)), -1, scale, bias)
    return y if threshold is None else np.maximum(y, threshold)


def evonorm_s0(
    x, *, v, num_groups: int = 32, epsilon: float = 1e-5, mask=None, scale=None, bias=None
) -> np.ndarray:
    x = as_double(x)
    variance = group_moments(x, num_groups, range(1, x.ndim - 1), mask).variance
    activated = x * scipy.special.expit(as_double(v) * x)
    return affine(activated / np.sqrt(variance + epsilon), -1, scale, bias)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    # By the hyperbolic tangent (Hendrycks & Gimpel 2016), as JAX has it.
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * scipy.special.expit(x),
    "tanh": np.tanh,
    "sigmoid": scipy.special.expit,
}


def proxy_norm(
    x,
    *,
    proxy_scale,
    proxy_bias,
    activation: str = "relu",
    num_groups: int = 1,
    epsilon: float = 1e-6,
    proxy_epsilon: float = 0.03,
    samples: int = 256,
    mask=None,
    scale=1.0,
    bias=0.0,
) -> np.ndarray:
    """Channel by channel, the activation of a Gaussian proxy gives mean and variance.

    A scale or bias that is no single number for a channel gives each of its values a proxy.
    """
    x, phi = as_double(x), ACTIVATIONS[activation]
    y = phi(
        group_norm(x, num_groups=num_groups, epsilon=epsilon, mask=mask, scale=scale, bias=bias)
    )
    normal = scipy.stats.norm.ppf((np.arange(samples) + 0.5) / samples)
    ones = np.ones(x.shape)
    total, total_square = np.zeros(x.shape), np.zeros(x.shape)
    for quantile in normal:
        proxy = ones * (as_double(proxy_bias) + (1 + as_double(proxy_scale)) * quantile)
        activated = phi(affine(proxy, -1, scale, bias))
        total += activated
        total_square += activated**2
    mean = total / samples
    return (y - mean) / np.sqrt(total_square / samples - mean**2 + proxy_epsilon)
