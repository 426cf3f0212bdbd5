"""Group normalization."""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from .fields import CheckedModule
from .shared import (
    Axes,
    AxisName,
    normalized_by_own_moments,
    number_of_groups,
    resolve_axes,
    with_mask,
)


class GroupNorm(CheckedModule):
    r"""Normalizes groups of channels of every example by their mean and variance.

    .. math:: y = \frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} \gamma + \beta

    The last axis holds the channels, cut into equal groups of neighbours; mean and variance are
    taken over a group and all axes but the first, which holds the examples. A drop-in for
    `flax.linen.GroupNorm`. One group is layer normalization over all of an example; groups of one
    channel are instance normalization.

    State: none.

    Attributes:
        num_groups: Number of groups, or None if `group_size` is given.
        group_size: Number of channels in a group, or None if `num_groups` is given.
        epsilon: Added to the variance.
        dtype: Dtype of the result; by default that of input and parameters together.
        param_dtype: Dtype of scale and bias.
        use_bias: Whether a bias (beta) is learned.
        use_scale: Whether a scale (gamma) is learned.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        reduction_axes: Axes over which mean and variance are taken, the last one among them; by
            default all but the first.
        axis_name: Named axis over whose devices statistics are pooled, where an example is spread
            over several.
        axis_index_groups: Groups of indices of that axis that are pooled among themselves.
        use_fast_variance: If false, the two-pass formula of Flax, whose mean is rounded to the
            dtype. The default is as stable, and its mean is exact to more digits.
        force_float32_reductions: If false, half precision input keeps its precision in the
            statistics.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Wu and He, 2018, "Group Normalization", equations 1, 2 and 7.
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    reduction_axes: Axes | None = None
    axis_name: AxisName | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    use_running_average: bool | None = field(default=None, kw_only=True)

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
            ValueError: If the groups do not divide the channels, or the reduced axes leave out the
                last one.
        """
        inputs, mask = with_mask(self, x, mask, use_running_average)
        last = inputs.ndim - 1
        axes = range(1, inputs.ndim) if self.reduction_axes is None else self.reduction_axes
        axes = resolve_axes(axes if last else -1, inputs.ndim, "GroupNorm: reduction_axes")
        if last not in axes:
            raise ValueError(
                f"GroupNorm: reduction_axes={self.reduction_axes} must include the last axis of an "
                f"input of shape {inputs.shape}, which holds the channels."
            )
        groups = number_of_groups(self, inputs.shape[-1])
        return normalized_by_own_moments(
            self, inputs, mask, axes, (last,), scale, bias, groups=groups
        )
