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
    channel_axis,
    normalized_by_own_moments,
    number_of_groups,
    resolve_axes,
    with_mask,
)


class GroupNorm(CheckedModule):
    r"""Normalizes groups of channels of every example by their mean and variance.

    .. math:: y = \frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} \gamma + \beta

    One axis holds the channels, cut into equal groups of neighbours; mean and variance are taken
    over a group and all axes but the first, which holds the examples. A drop-in for
    `flax.linen.GroupNorm`, where it is the last. One group is layer normalization over all of an
    example; groups of one channel are instance normalization.

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
        reduction_axes: Axes over which mean and variance are taken, that of the channels among
            them; by default all but the first.
        axis_name: Named axis over whose devices statistics are pooled, where an example is spread
            over several.
        axis_index_groups: Groups of indices of that axis that are pooled among themselves.
        use_fast_variance: If false, the two-pass formula of Flax, whose mean is rounded to the
            dtype. The default is as stable, and its mean is exact to more digits.
        force_float32_reductions: If false, half precision input keeps its precision in the
            statistics.
        feature_axes: Axis of the channels: -1, or 1 for channels first.
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
    feature_axes: Axes = field(default=-1, kw_only=True)
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
            ValueError: If the groups do not divide the channels, or the reduced axes leave out
                that of the channels.
        """
        inputs, mask = with_mask(self, x, mask, use_running_average)
        rank = inputs.ndim
        (channels,) = channel_axis(self, rank)
        axes = range(1, rank) if self.reduction_axes is None else self.reduction_axes
        axes = resolve_axes(axes if rank > 1 else -1, rank, "GroupNorm: reduction_axes")
        if channels not in axes:
            raise ValueError(
                f"GroupNorm: the reduced axes {axes} of an input of shape {inputs.shape} must "
                f"include axis {channels}, which holds the channels (reduction_axes="
                f"{self.reduction_axes}, feature_axes={self.feature_axes})."
            )
        groups = number_of_groups(self, inputs.shape[channels])
        return normalized_by_own_moments(
            self, inputs, mask, axes, (channels,), scale, bias, groups=groups
        )
