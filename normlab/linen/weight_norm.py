"""Weight normalization."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array

from ..functional import moments, normalize_weight
from .fields import CheckedModule
from .shared import Axes, broadcast_to_input, in_statistics_dtype
from .weight_wrapper import call_with_weights, split_axes

# The deviation below which an output counts as constant; the paper's code adds its square to the
# variance.
_CONSTANT = 1e-5


class WeightNorm(CheckedModule):
    r"""Calls a layer with weights whose length and direction are parameters of their own.

    .. math:: \hat{w} = \frac{g \, w}{\sqrt{\lVert w \rVert^2 + \epsilon}}

    The length is taken over the inputs of an output. A drop-in for `flax.linen.WeightNorm`; unlike
    there, half precision weights are measured in float32, the running statistics of a wrapped block
    stay its own, and a filter that matches nothing is refused.

    Parameters: those of the layer, and for each kernel its path with `/scale` (g), of the shape of
    the outputs. As in Flax, initialization stores the kernel normalized.

    Data-dependent initialization: with mean :math:`\mu` and deviation :math:`\sigma` of the outputs
    over the batch that `init` is given, and over positions,

    .. math:: g \leftarrow \frac{g}{\sigma}, \qquad b \leftarrow \frac{b - \mu}{\sigma}

    so that the outputs have mean 0 and deviation 1 over that batch. Layers after this one see those
    outputs, hence one call of `init` initializes a whole model::

        layer = normlab.WeightNorm(nn.Dense(64), data_dependent_init=True)
        variables = layer.init(key, first_batch)

    A layer without a bias gets the deviation 1 only; its mean becomes :math:`\mu / \sigma`. An
    output that is constant over the batch, such as one of zeros (its deviation is below 1e-5),
    keeps its g, and gets the mean 0 only.

    Attributes:
        layer_instance: The layer to be called.
        epsilon: Added to the squared length.
        dtype: Dtype of the weights that the layer sees; by default that of its parameters and the
            scale together.
        param_dtype: Dtype of the scale.
        use_scale: Whether a scale is learned; otherwise it is 1.
        scale_init: Initializer of the scale.
        feature_axes: Axes of a weight along which its outputs lie: -1 for Dense and Conv, (-2, -1)
            for a DenseGeneral with two axes of features, -2 for a ConvTranspose with
            `transpose_kernel`; None takes all of a weight together.
        variable_filter: The parameters to be normalized: those in whose path one of these strings
            occurs; None for all.
        data_dependent_init: Whether `init` sets scale and bias by the batch it sees.

    Raises:
        ValueError: If the filter matches no parameter of the layer, or data-dependent
            initialization is asked for where it is not defined.

    Source: Salimans and Kingma, 2016, "Weight Normalization", equation 2 and section 3.
    """

    layer_instance: nn.Module
    epsilon: float = 1e-12
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = nn.initializers.ones
    feature_axes: Axes | None = -1
    variable_filter: Iterable[str] | None = frozenset({"kernel"})
    data_dependent_init: bool = field(default=False, kw_only=True)

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with the arguments."""
        created = []

        def normalize(path: str, weight: Array) -> Array:
            if not self.has_variable("params", f"{path}/scale"):
                created.append(path)
            return self._normalize(path, weight)

        y = call_with_weights(self, normalize, *args, stores_normalized=True, **kwargs)
        # A layer that is called once more while it is initialized keeps what the first call found.
        if self.data_dependent_init and self.is_initializing() and created:
            y = self._initialize_from(y, created)
        return y

    def _normalize(self, path: str, weight: Array) -> Array:
        outputs, inputs = split_axes(self, weight.ndim)
        x = in_statistics_dtype(weight, None, force_float32=True)
        learned, scale = (), None
        if self.use_scale:
            shape = tuple(weight.shape[axis] for axis in outputs)
            learned = (self.param(f"{path}/scale", self.scale_init, shape, self.param_dtype),)
            scale = broadcast_to_input("scale", learned[0], x, outputs)
        y = normalize_weight(x, inputs, epsilon=self.epsilon, scale=scale)
        return y.astype(canonicalize_dtype(weight, *learned, dtype=self.dtype))

    def _initialize_from(self, y: Array, paths: list[str]) -> Array:
        """Sets scale and bias so that the outputs are standardized; returns those."""
        layer = self.layer_instance
        of_layer = layer.get_variable("params", paths[0].split("/")[1])
        # A mapping holds the parameters of a layer within the layer.
        if not self.use_scale or len(paths) != 1 or isinstance(of_layer, Mapping):
            raise ValueError(
                "WeightNorm: data_dependent_init sets one scale and one bias, hence needs "
                "use_scale and a layer of which one parameter is normalized, such as Dense or "
                f"Conv. Given were use_scale={self.use_scale} and {', '.join(paths)}; wrap each "
                "layer by itself."
            )
        scale_name = f"{paths[0]}/scale"
        scale = self.get_variable("params", scale_name)
        features = jnp.shape(nn.unbox(scale))
        pooled = tuple(range(y.ndim - len(features)))
        if y.shape[len(pooled) :] != features or math.prod(y.shape[: len(pooled)]) == 1:
            raise ValueError(
                f"WeightNorm: data_dependent_init takes mean and deviation of each of {features} "
                "features over at least 2 outputs, features last, but the batch gives outputs of "
                f"shape {y.shape}. Give init a batch of the training set, and check feature_axes."
            )
        x = in_statistics_dtype(y, None, force_float32=True)
        batch = moments(x, pooled, epsilon=_CONSTANT**2)
        deviation = batch.deviation(0.0)
        factor = jnp.where(deviation > _CONSTANT, 1 / deviation, 1)

        def change(module, name, new):
            # A parameter may come in a box that says how it is sharded, which a tree map keeps.
            old = module.get_variable("params", name)
            changed = jax.tree.map(lambda leaf: new(leaf).astype(leaf.dtype), old)
            module.put_variable("params", name, changed)

        change(self, scale_name, lambda g: g * factor.reshape(features))
        if layer.has_variable("params", "bias"):
            x = (x - batch.shift) - batch.residual
            mean, by = batch.mean.reshape(features), factor.reshape(features)
            change(
                layer,
                "bias",
                lambda b: (b - jnp.broadcast_to(mean, b.shape)) * jnp.broadcast_to(by, b.shape),
            )
        return (x * factor).astype(y.dtype)
