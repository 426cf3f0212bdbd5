"""Switchable normalization."""

import jax
from flax import linen as nn
from jaxtyping import Array

from ..functional import Moments, pool_axes
from ..functional.pooling import common_factor
from .batch_norm import BatchInput, BatchNorm
from .shared import normalized


class SwitchableNorm(BatchNorm):
    r"""Normalizes by a learned mixture of instance, layer and batch statistics.

    .. math:: y = \frac{x - \sum_k w_k \mu_k}{\sqrt{\sum_k w'_k \sigma_k^2 + \epsilon}}
        \gamma + \beta, \qquad w = \mathrm{softmax}(\lambda), \; w' = \mathrm{softmax}(\lambda')

    over k = instance (each channel of an example over its positions), layer (all of an example) and
    batch (as in `BatchNorm`, running in evaluation). One set of weights serves all channels. Only
    the batch's statistics are pooled over the devices of `axis_name`, so that these must share
    examples, not positions.

    Fields, state and call are those of `BatchNorm`. `params` also holds the logits `mean_weight`
    and `variance_weight`, of shape (3,) in the order above, which start at 1.

    Source: Luo, Ren, Peng, Zhang and Li, 2019, "Differentiable Learning-to-Normalize via Switchable
    Normalization", equations 2 to 5.
    """

    def _normalize(self, given: BatchInput, statistics: Moments) -> Array:
        instance = self._example_moments(given)
        layer = pool_axes(instance, given.feature_axes)
        parts = (instance, layer, statistics)

        def mixed(name: str, values: list[Array]) -> Array:
            logits = self.param(name, nn.initializers.ones, (3,), self.param_dtype)
            weights = jax.nn.softmax(logits.astype(instance.scaled_variance.dtype))
            return weights[0] * values[0] + weights[1] * values[1] + weights[2] * values[2]

        # The means may be large against their distances: only these are weighted.
        distances = [part.shift - instance.shift + part.residual for part in parts]
        factor = common_factor(parts)
        mixture = Moments(
            instance.counted,
            instance.shift,
            mixed("mean_weight", distances),
            mixed("variance_weight", [part.variance_times(factor) for part in parts]),
            factor,
        )
        return normalized(
            self, given.inputs, given.x, mixture, given.feature_axes, given.scale, given.bias
        )
