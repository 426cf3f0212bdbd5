"""Scaled weight standardization."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array

from ..functional import scaled_standardize_weight
from .fields import CheckedModule
from .shared import Axes, broadcast_to_input, in_statistics_dtype
from .weight_wrapper import call_with_weights, split_axes


class ScaledWeightStandardization(CheckedModule):
    r"""Calls a layer with kernels that keep mean 0 and the variance, for networks without norms.

    .. math:: \hat{w} = \gamma g \, \frac{w - \mu}{\sqrt{\max(n \sigma^2, \epsilon)}}

    Mean and variance are taken over the n inputs of an output (the fan-in), and g is learned for
    every output. Independent inputs of equal mean and of variance 1 give outputs of mean 0 and
    variance :math:`(\gamma g)^2`. An activation that the inputs come from has taken some of their
    variance away; :math:`\gamma` gives it back, by these factors
    (`NONLINEARITY_GAINS` in `normlab.functional` holds them):

    ==========  =========  ======================================
    relu        1.7128586  :math:`\sqrt{2 / (1 - 1 / \pi)}`
    leaky_relu  1.7048316  slope 0.01
    elu         1.2708434
    gelu        1.7009262
    silu        1.7871872
    softplus    1.9191260
    tanh        1.5925374
    sigmoid     4.8013134
    identity    1
    ==========  =========  ======================================

    Usage::

        relu = NONLINEARITY_GAINS["relu"]
        layer = normlab.ScaledWeightStandardization(nn.Conv(64, (3, 3)), nonlinearity_gain=relu)
        x = layer(nn.relu(x))

    The papers place the factor differently: the first in the weights, as here, the second in the
    activation, so that its weights have a factor of 1.

    Parameters: those of the layer, as it draws them, and for each kernel its path with `/gain`, of
    the shape of the outputs. A weight without inputs (all of its axes are feature axes, as those of
    a bias) is left as it is.

    Attributes:
        layer_instance: The layer to be called.
        epsilon: The least value of fan-in times variance. The code of the second paper has 1e-4;
            timm adds 1e-6 to the variance instead.
        dtype: Dtype of the weights that the layer sees; by default that of its parameters and the
            gain together.
        param_dtype: Dtype of the gain.
        gain_init: Initializer of the gain.
        nonlinearity_gain: The factor of the activation.
        feature_axes: Axes of a weight along which its outputs lie: -1 for Dense and Conv, (-2, -1)
            for a DenseGeneral with two axes of features, -2 for a ConvTranspose with
            `transpose_kernel`; None takes all of a weight together.
        variable_filter: The parameters to be normalized: those in whose path one of these strings
            occurs; None for all.

    Raises:
        ValueError: If the filter matches no parameter of the layer.

    Source: Brock, De and Smith, 2021, "Characterizing Signal Propagation to Close the Performance
    Gap in Unnormalized ResNets", section 4; Brock, De, Smith and Simonyan, 2021, "High-Performance
    Large-Scale Image Recognition Without Normalization", equation 1.
    """

    layer_instance: nn.Module
    epsilon: float = 1e-4
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    gain_init: Initializer = nn.initializers.ones
    nonlinearity_gain: float = 1.0
    feature_axes: Axes | None = -1
    variable_filter: Iterable[str] | None = frozenset({"kernel"})

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with the arguments."""
        return call_with_weights(self, self._standardize, *args, stores_normalized=False, **kwargs)

    def _standardize(self, path: str, weight: Array) -> Array:
        outputs, inputs = split_axes(self, weight.ndim)
        if not inputs:
            return weight
        shape = tuple(weight.shape[axis] for axis in outputs)
        gain = self.param(f"{path}/gain", self.gain_init, shape, self.param_dtype)
        x = in_statistics_dtype(weight, None, force_float32=True)
        factor = self.nonlinearity_gain * broadcast_to_input("gain", gain, x, outputs)
        y = scaled_standardize_weight(x, inputs, factor, epsilon=self.epsilon)
        return y.astype(canonicalize_dtype(weight, gain, dtype=self.dtype))
