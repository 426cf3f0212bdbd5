"""Float64 NumPy oracles of the normalizations of weights: the papers' formulas, to be read.

Nothing here imports JAX or normlab. A weight has its inputs on all axes but the feature axes.

Qiao et al. 2019 (weight standardization), Brock et al. 2021 (scaled), Salimans & Kingma 2016
(weight norm), Miyato et al. 2018 (spectral norm).
"""

import numpy as np
from oracles import as_double, other_axes


def input_axes(weight, feature_axes):
    return (
        tuple(range(weight.ndim)) if feature_axes is None else other_axes(weight.ndim, feature_axes)
    )


def weight_standardization(weight, *, feature_axes=-1, epsilon=1e-6):
    weight = as_double(weight)
    axes = input_axes(weight, feature_axes)
    centred = weight - weight.mean(axes, keepdims=True)
    variance = (np.abs(centred) ** 2).mean(axes, keepdims=True)
    return centred / np.sqrt(variance + epsilon)


def scaled_weight_standardization(
    weight, gain=1.0, *, feature_axes=-1, epsilon=1e-4, nonlinearity_gain=1.0
):
    """`gain` broadcasts to the weight."""
    weight = as_double(weight)
    axes = input_axes(weight, feature_axes)
    centred = weight - weight.mean(axes, keepdims=True)
    # Fan-in times variance is the sum of squares.
    squares = (np.abs(centred) ** 2).sum(axes, keepdims=True)
    return nonlinearity_gain * as_double(gain) * centred / np.sqrt(np.maximum(squares, epsilon))


def weight_norm(weight, scale=1.0, *, feature_axes=-1, epsilon=1e-12):
    """`scale` broadcasts to the weight."""
    weight = as_double(weight)
    squares = (np.abs(weight) ** 2).sum(input_axes(weight, feature_axes), keepdims=True)
    return as_double(scale) * weight / np.sqrt(squares + epsilon)


class SpectralNormReplay:
    """Power iteration as in the paper, whose matrix has the outputs on its rows, call by call."""

    def __init__(self, u, *, steps=1):
        self.u = as_double(u).ravel()
        self.sigma = 1.0
        self.steps = steps

    def vectors(self, weight):
        matrix = as_double(weight).reshape(-1, weight.shape[-1]).T
        u = self.u
        for _ in range(self.steps):
            v = matrix.conj().T @ u
            v = v / np.linalg.norm(v)
            u = matrix @ v
            u = u / np.linalg.norm(u)
        return u, v

    def update(self, weight):
        u, v = self.vectors(weight)
        self.u, self.sigma = u, singular_value(weight, u, v)
        return u, v


def singular_value(weight, u, v):
    return np.real(u.conj() @ as_double(weight).reshape(-1, weight.shape[-1]).T @ v)


def spectral_norm(weight, u, v):
    return as_double(weight) / singular_value(weight, u, v)
