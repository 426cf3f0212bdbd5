"""Root mean square normalization."""

import math
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import moments, spec_of, spread_as
from .fields import CheckedModule
from .shared import (
    Axes,
    AxisName,
    axes_of,
    in_statistics_dtype,
    normalized,
    normalized_by_own_moments,
    pooled_axis,
    with_mask,
)


class RMSNorm(CheckedModule):
    r"""Normalizes every example, or every position of it, by its root mean square.

    .. math:: y = \frac{x}{\sqrt{\mathrm{mean}(|x|^2) + \epsilon}} \gamma

    The mean is taken over `reduction_axes`. A drop-in for `flax.linen.RMSNorm`. It learns no bias,
    but takes one at the call.

    State: none.

    Attributes:
        epsilon: Added to the mean square.
        dtype: Dtype of the result; by default that of input and parameters together.
        param_dtype: Dtype of the scale.
        use_scale: Whether a scale (gamma) is learned.
        scale_init: Initializer of the scale.
        reduction_axes: Axes over which the mean square is taken.
        feature_axes: Axes along which the scale varies.
        axis_name: Named axis over whose devices statistics are pooled, where an example is spread
            over several.
        axis_index_groups: Groups of indices of that axis that are pooled among themselves.
        use_fast_variance: As in Flax, and without effect: there is no mean to subtract.
        force_float32_reductions: If false, half precision input keeps its precision in the
            statistics.
        zero_centred: Whether the parameter is the scale less 1, so that weight decay draws the
            scale to 1 (Gemma). `scale_init` and a scale given at the call are the scale itself.
        fraction: Share of the reduced axis, from its start and rounded up, that the mean square is
            taken of (p-RMSNorm, section 4 of the paper); less than 1 only with one reduction axis.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Zhang and Sennrich, 2019, "Root Mean Square Layer Normalization", equation 4.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = nn.initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    zero_centred: bool = field(default=False, kw_only=True)
    fraction: float = field(default=1.0, kw_only=True)
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
            ValueError: If a fraction is asked of several reduction axes.
        """
        inputs, mask = with_mask(self, x, mask, use_running_average)
        axes = axes_of(self, "reduction_axes", inputs.ndim)
        feature_axes = axes_of(self, "feature_axes", inputs.ndim)

        def scaled(scale: ArrayLike | None) -> Array:
            if self.fraction == 1:
                return normalized_by_own_moments(
                    self, inputs, mask, axes, feature_axes, scale, bias, centre=False
                )
            x = in_statistics_dtype(inputs, self.dtype, self.force_float32_reductions)
            part, stored, counted = self._part(x, inputs, mask, axes)
            statistics = moments(
                part,
                axes,
                epsilon=self.epsilon,
                stored=stored,
                mask=counted,
                **pooled_axis(self),
                use_mean=False,
            )
            return normalized(self, inputs, x, statistics, feature_axes, scale, bias, centre=False)

        if scale is not None or not (self.use_scale and self.zero_centred):
            return scaled(scale)

        def less_one(*arguments):
            return jax.tree.map(lambda scale: scale - 1, self.scale_init(*arguments))

        features = tuple(inputs.shape[axis] for axis in feature_axes)
        learned = self.param("scale", less_one, features, self.param_dtype)
        # Half precision holds the parameter to more digits than it would hold the scale.
        y = scaled(1 + learned.astype(jnp.promote_types(learned.dtype, jnp.float32)))
        return y.astype(canonicalize_dtype(inputs, learned, bias, dtype=self.dtype))

    def _part(
        self, x: Array, inputs: Array, mask: Array | None, axes: tuple[int, ...]
    ) -> tuple[Array, Array, Array | None]:
        """Returns the part of the reduced axis that the mean square is taken of."""
        if len(axes) != 1:
            raise ValueError(
                f"RMSNorm: fraction={self.fraction} is a share of one axis, but "
                f"reduction_axes={self.reduction_axes} names {len(axes)}; name one, or leave "
                "fraction at 1."
            )
        # Rounded first, since 0.07 * 100 is a little more than 7.
        size = max(1, math.ceil(round(self.fraction * x.shape[axes[0]], 6)))
        if spec_of(x)[axes[0]] is None:
            return jax.tree.map(
                lambda values: lax.slice_in_dim(values, 0, size, axis=axes[0]), (x, inputs, mask)
            )
        # An axis that lies on several devices cannot be cut anywhere, but masked.
        within = lax.broadcasted_iota(jnp.int32, x.shape, axes[0]) < size
        within = spread_as(within, spec_of(x))
        return x, inputs, within if mask is None else within & mask
