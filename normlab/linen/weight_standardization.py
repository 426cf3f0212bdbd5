"""Weight standardization."""

from collections.abc import Iterable
from typing import Any

from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax.typing import DTypeLike
from jaxtyping import Array

from ..functional import standardize_weight
from .fields import CheckedModule
from .shared import Axes, in_statistics_dtype
from .weight_wrapper import call_with_weights, split_axes


class WeightStandardization(CheckedModule):
    r"""Calls a layer with kernels whose weights have mean 0 and variance 1 for every output.

    .. math:: \hat{w} = \frac{w - \mu}{\sqrt{\sigma^2 + \epsilon}}

    Mean and variance are taken over the inputs of an output (the fan-in). It has no scale, since
    it is made for layers that a normalization follows::

        x = normlab.WeightStandardization(nn.Conv(64, (3, 3), use_bias=False))(x)
        x = normlab.GroupNorm()(x)

    The parameters are those of the layer, and stay as it draws them. A weight without inputs (all
    of its axes are feature axes, as those of a bias) is left as it is. Implementations differ in
    the epsilon: timm divides by :math:`\sqrt{\sigma^2 + 10^{-6}}`, as here; big_vision divides by
    :math:`\sigma + 10^{-5}`, which is the same where :math:`\sigma` is 0.05.

    State: none.

    Attributes:
        layer_instance: The layer to be called.
        epsilon: Added to the variance.
        dtype: Dtype of the weights that the layer sees; by default that of its parameters.
        feature_axes: Axes of a weight along which its outputs lie: -1 for Dense and Conv, (-2, -1)
            for a DenseGeneral with two axes of features, -2 for a ConvTranspose with
            `transpose_kernel`; None takes all of a weight together.
        variable_filter: The parameters to be normalized: those in whose path one of these strings
            occurs; None for all.

    Raises:
        ValueError: If the filter matches no parameter of the layer.

    Source: Qiao, Wang, Liu, Shen and Yuille, 2019, "Micro-Batch Training with Batch-Channel
    Normalization and Weight Standardization", section 3.
    """

    layer_instance: nn.Module
    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    feature_axes: Axes | None = -1
    variable_filter: Iterable[str] | None = frozenset({"kernel"})

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with the arguments."""
        return call_with_weights(self, self._standardize, *args, stores_normalized=False, **kwargs)

    def _standardize(self, path: str, weight: Array) -> Array:
        del path
        _, inputs = split_axes(self, weight.ndim)
        if not inputs:
            return weight
        x = in_statistics_dtype(weight, None, force_float32=True)
        y = standardize_weight(x, inputs, epsilon=self.epsilon)
        return y.astype(canonicalize_dtype(weight, dtype=self.dtype))
