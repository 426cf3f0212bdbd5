"""Conditional normalization: scale and bias predicted from a vector."""

import inspect
from collections.abc import Callable
from dataclasses import field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from .fields import CheckedModule
from .layer_norm import LayerNorm
from .shared import as_array, resolve_axes


class ConditionalNorm(CheckedModule):
    r"""Normalizes by any layer; a linear map of a condition says how to scale and shift.

    .. math:: y = \mathrm{norm}(x) \, (1 + \gamma(c)) + \beta(c)

    One Dense layer predicts both, and starts at zero, so that at first y is norm(x) whatever the
    condition (for `ScaleNorm`, whose learned length the prediction replaces, of length 1). Channels
    lie on the last axis. Which method it is depends on the layer:

    Conditional batch norm (de Vries et al., 2017)::

        norm = normlab.ConditionalNorm(normlab.BatchNorm)
        y = norm(x, question, use_running_average=not train)

    Adaptive layer norm with a gate that starts at zero (adaLN-Zero, Peebles and Xie, 2023), where
    the norm has no parameters of its own and the condition goes through an activation first::

        y, gate = normlab.ConditionalNorm(normlab.LayerNorm, gate=True)(x, nn.silu(condition))
        x = x + gate * block(y)

    Adaptive instance norm (AdaIN, Huang and Belongie, 2017) predicts nothing: scale and bias are
    deviation and mean of another image, which every layer takes at the call::

        mean = style.mean((1, 2), keepdims=True)
        deviation = jnp.sqrt(style.var((1, 2), keepdims=True) + 1e-5)
        y = normlab.InstanceNorm(epsilon=1e-5)(content, scale=deviation, bias=mean)

    Parameters: `modulation`, a Dense layer whose outputs are scale, bias and gate, in this order.

    State: that of the layer, under `norm`.

    Attributes:
        norm: Makes the layer, a class or a partial one, whose own scale and bias are not created.
        gate: Whether a gate is predicted as well.
        dtype: Dtype of the prediction; by default that of condition and parameters together.
        param_dtype: Dtype of the parameters of the prediction.
        kernel_init: Initializer of the prediction's kernel.
        bias_init: Initializer of the prediction's bias.
        use_running_average: As for the layer; here, at the call, or in the layer itself.
    """

    norm: Callable[..., nn.Module] = LayerNorm
    gate: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.zeros
    bias_init: Initializer = nn.initializers.zeros
    use_running_average: bool | None = field(default=None, kw_only=True)

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        condition: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> Array | tuple[Array, Array]:
        """Normalizes the input.

        Args:
            x: Input of any rank above 0, channels last.
            condition: One vector for each example, (batch, d), or for each entry of the first axes
                of the input, such as (batch, time, d).
            use_running_average: Whether to normalize by running statistics, for a layer that has
                them.
            mask: Broadcastable to the input; true where a value counts in the statistics.

        Returns:
            The normalized input; with `gate` also the gate, broadcastable to it.

        Raises:
            ValueError: If the axes of the condition are not the first ones of the input, or `norm`
                does not make a layer that takes scale and bias at the call.
        """
        x, condition = as_array(self, "x", x), as_array(self, "condition", condition)
        leading = condition.shape[:-1]
        if not 0 < condition.ndim <= x.ndim or leading != x.shape[: len(leading)]:
            raise ValueError(
                f"ConditionalNorm: condition of shape {condition.shape} does not fit the input of "
                f"shape {x.shape}. All of its axes but the last must be the first ones of the "
                "input, for example (batch, d)."
            )
        layer: Any = None
        # A class that is no norm would miss arguments of its own.
        made = getattr(self.norm, "func", self.norm)
        if not isinstance(made, type) or _takes_scale(made):
            layer = self.norm(name="norm")
        if not _takes_scale(type(layer)):
            raise ValueError(
                f"ConditionalNorm: norm={self.norm} was given; expected a layer of normlab, which "
                "takes scale= and bias= at the call, as a class or a partial one, for example "
                "normlab.LayerNorm or functools.partial(normlab.GroupNorm, 8)."
            )
        named = getattr(layer, "axis", getattr(layer, "feature_axes", -1))
        if x.ndim - 1 not in resolve_axes(named, x.ndim, "ConditionalNorm: axis of norm"):
            raise ValueError(
                f"ConditionalNorm: norm={self.norm} has its features on axis {named} of an input "
                f"of shape {x.shape}; expected them on the last axis, for which scale and bias are "
                "predicted. Move them there by jnp.moveaxis, and back."
            )
        if self.use_running_average is not None:
            use_running_average = nn.merge_param(
                "use_running_average", self.use_running_average, use_running_average
            )
        count = 3 if self.gate else 2
        predicted = nn.Dense(
            count * x.shape[-1],
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="modulation",
        )(condition)
        between = (1,) * (x.ndim - condition.ndim)
        parts = jnp.split(predicted.reshape(*leading, *between, -1), count, axis=-1)
        y = layer(x, use_running_average, mask=mask, scale=1 + parts[0], bias=parts[1])
        return (y, parts[2]) if self.gate else y


def _takes_scale(layer: type[Any]) -> bool:
    return "scale" in inspect.signature(layer.__call__).parameters
