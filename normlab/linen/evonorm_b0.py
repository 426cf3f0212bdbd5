"""EvoNorm-B0."""

from dataclasses import field

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax.nn.initializers import Initializer
from jaxtyping import Array

from ..functional import Moments
from ..functional.normalize import reciprocal
from .batch_norm import BatchInput, BatchNorm
from .shared import affine, broadcast_to_input, refuse_complex


class EvoNormB0(BatchNorm):
    r"""Normalization and activation in one, found by search, with batch statistics.

    .. math:: y = \frac{x}{\max\left(\sqrt{s_B^2 + \epsilon}, \; v x + \sqrt{s_I^2 + \epsilon}
        \right)} \gamma + \beta

    with the variance :math:`s_B^2` of the batch (running in evaluation) and that of the example
    over its positions, :math:`s_I^2`. It contains its activation: no other should follow. The input
    is not centred. With `example_weight` the variances are mixed, without a share of the distance
    between means, of which none is kept. Only the variance of the batch is pooled over the devices
    of `axis_name`, so that these must share examples, not positions.

    Fields and call are those of `BatchNorm`; `params` also holds `v`, of the shape of the features.

    State:
        `batch_stats/var` as in `BatchNorm`; no mean.

    Attributes:
        v_init: Initializer of v.

    Raises:
        ValueError: At the call, if the input is complex.

    Source: Liu, Brock, Simonyan and Le, 2020, "Evolving Normalization-Activation Layers", table 1.
    """

    v_init: Initializer = field(default=nn.initializers.ones, kw_only=True)

    includes_activation = True
    _keeps_mean = False

    def _normalize(self, given: BatchInput, statistics: Moments) -> Array:
        x = given.x
        refuse_complex(self, x)
        v = self.param("v", self.v_init, given.features, self.param_dtype)
        v = broadcast_to_input("EvoNormB0: v", v, x, given.feature_axes)
        instance = self._example_moments(given)
        denominator = jnp.maximum(
            statistics.deviation(self.epsilon),
            v * x + instance.deviation(self.epsilon),
        )
        scale, bias = affine(self, x, given.feature_axes, given.scale, given.bias)
        y = x * reciprocal(denominator)
        y = y if scale is None else y * scale
        y = y if bias is None else y + bias
        return y.astype(canonicalize_dtype(given.inputs, scale, bias, dtype=self.dtype))
