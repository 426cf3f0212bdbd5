"""EvoNorm-S0."""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import group_moments, normalize, swish
from .fields import CheckedModule
from .shared import (
    AxisName,
    affine,
    broadcast_to_input,
    in_statistics_dtype,
    last_axis,
    number_of_groups,
    pooled_axis,
    refuse_complex,
    with_mask,
)


class EvoNormS0(CheckedModule):
    r"""Normalization and activation in one, found by search, with group statistics.

    .. math:: y = \frac{x \, \sigma(v x)}{\sqrt{s_g^2 + \epsilon}} \gamma + \beta

    with the sigmoid :math:`\sigma` and the biased variance :math:`s_g^2` of a group of channels of
    an example, groups being those of `GroupNorm`. It contains its activation: no other should
    follow. The input is not centred. Most ports to PyTorch take the unbiased variance; timm does
    not.

    State: none. `params` also holds `v`, of the shape of the features.

    Attributes:
        num_groups: Number of groups, or None if `group_size` is given.
        group_size: Number of channels in a group, or None if `num_groups` is given.
        epsilon: Added to the variance.
        dtype: Dtype of the result; by default that of input, scale and bias together.
        param_dtype: Dtype of the parameters.
        use_bias: Whether a bias (beta) is learned.
        use_scale: Whether a scale (gamma) is learned.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        axis_name: Named axis over whose devices statistics are pooled, where an example is spread
            over several.
        axis_index_groups: Groups of indices of that axis that are pooled among themselves.
        v_init: Initializer of v.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Liu, Brock, Simonyan and Le, 2020, "Evolving Normalization-Activation Layers", table 1.
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: Any = None
    v_init: Initializer = field(default=nn.initializers.ones, kw_only=True)
    use_running_average: bool | None = field(default=None, kw_only=True)

    includes_activation = True

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> Array:
        """Normalizes the input; the arguments are those of `BatchNorm`.

        Raises:
            ValueError: If the groups do not divide the channels, or the input is complex.
        """
        inputs, mask = with_mask(self, x, mask, use_running_average)
        x = in_statistics_dtype(inputs, self.dtype, True)
        refuse_complex(self, x)
        channels = last_axis(self, x.ndim)
        statistics = group_moments(
            x,
            tuple(range(1, x.ndim - 1)),
            number_of_groups(self, x.shape[-1]),
            epsilon=self.epsilon,
            stored=inputs,
            mask=mask,
            **pooled_axis(self),
        )
        v = self.param("v", self.v_init, x.shape[-1:], self.param_dtype)
        gated = swish(x, broadcast_to_input("EvoNormS0: v", v, x, channels))
        scale, bias = affine(self, x, channels, scale, bias)
        return normalize(
            gated,
            None,
            statistics.scaled_variance,
            epsilon=self.epsilon,
            factor=statistics.factor,
            scale=scale,
            bias=bias,
            dtype=canonicalize_dtype(inputs, scale, bias, dtype=self.dtype),
        )
