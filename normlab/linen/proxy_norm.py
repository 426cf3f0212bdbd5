"""Proxy normalization."""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import ACTIVATIONS, Activation, group_moments, normalize, proxy_normalize
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


class ProxyNorm(CheckedModule):
    r"""Layer or group normalization whose activation is standardized by a Gaussian proxy.

    .. math:: y = \frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}}, \qquad
        z = \frac{\phi(\gamma y + \beta) - \mathrm{E}[\phi(\gamma \tilde y + \beta)]}
        {\sqrt{\mathrm{Var}[\phi(\gamma \tilde y + \beta)] + \tilde\epsilon}}, \qquad
        \tilde y \sim \mathcal{N}(\tilde\beta, (1 + \tilde\gamma)^2)

    Mean and variance are those of `GroupNorm`; with one group, the default, of layer normalization
    over all of an example. What the activation :math:`\phi` makes of a Gaussian stands in for what
    it makes of the batch, so that channels keep the variation between examples that batch
    normalization would leave them. The layer contains its activation: no other should follow.

    Expectations are averages over quantiles of the Gaussian. They are taken for every entry of
    scale and bias: those that vary along examples and positions, which the call may give, cost
    `samples` times the memory of the input.

    State: none. `params` also holds `proxy_scale` and `proxy_bias`, of the shape of the features,
    from 0.

    Attributes:
        num_groups: Number of groups, or None if `group_size` is given.
        group_size: Number of channels in a group, or None if `num_groups` is given.
        epsilon: Added to the variance of a group.
        dtype: Dtype of the result; by default that of input, scale and bias together.
        param_dtype: Dtype of the parameters.
        use_bias: Whether a bias (beta) is learned.
        use_scale: Whether a scale (gamma) is learned.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        axis_name: Named axis over whose devices statistics are pooled, where an example is spread
            over several.
        axis_index_groups: Groups of indices of that axis that are pooled among themselves.
        activation: The activation, phi: `"relu"`, `"gelu"` (its tangent form), `"silu"`, `"tanh"`
            or `"sigmoid"`.
        proxy_epsilon: Added to the variance of the activated proxy.
        samples: Number of quantiles, those at (i + 1/2) / samples.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Labatie, Masters, Eaton-Rosen and Luschi, 2021, "Proxy-Normalizing Activations to Match
    Batch Normalization while Removing Batch Dependence", section 5.
    """

    num_groups: int | None = 1
    group_size: int | None = None
    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: Any = None
    activation: Activation = field(default="relu", kw_only=True)
    proxy_epsilon: float = field(default=0.03, kw_only=True)
    samples: int = field(default=256, kw_only=True)
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
        y = normalize(
            x,
            statistics.shift,
            statistics.scaled_variance,
            epsilon=self.epsilon,
            factor=statistics.factor,
            residual=statistics.residual,
            stored=inputs,
        )

        def learned(name: str) -> Array:
            value = self.param(name, nn.initializers.zeros, x.shape[-1:], self.param_dtype)
            return broadcast_to_input(f"ProxyNorm: {name}", value, x, channels)

        scale, bias = affine(self, x, channels, scale, bias)
        z = proxy_normalize(
            y,
            ACTIVATIONS[self.activation],
            learned("proxy_scale"),
            learned("proxy_bias"),
            scale=scale,
            bias=bias,
            samples=self.samples,
            epsilon=self.proxy_epsilon,
        )
        return z.astype(canonicalize_dtype(inputs, scale, bias, dtype=self.dtype))
