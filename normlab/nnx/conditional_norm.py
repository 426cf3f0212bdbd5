"""Conditional normalization for Flax NNX."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, zeros
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from .. import linen
from ..functional.arguments import shown, whole_number
from ..linen.shared import as_array
from .from_linen import variables_explained
from .layer import Layer
from .layers import LayerNorm


class ConditionalNorm(nnx.Module):
    """Normalizes by any layer; a linear map of a condition says how to scale and shift.

    The NNX form of `normlab.ConditionalNorm`, computed by it::

        norm = normlab.nnx.ConditionalNorm(64, 16, normlab.nnx.BatchNorm, rngs=nnx.Rngs(0))
        y = norm(x, condition)

    Attributes:
        norm: The layer, whose own scale and bias are not created.
        modulation: The linear map, an `nnx.Linear` that starts at zero.
        gate: Whether a gate is predicted as well.
        dtype: Dtype of the prediction; by default that of condition and parameters together.
        param_dtype: Dtype of the parameters of the prediction.
    """

    def __init__(
        self,
        num_features: int,
        condition_features: int,
        norm: Callable[..., Any] = LayerNorm,
        *,
        gate: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        kernel_init: Initializer = zeros,
        bias_init: Initializer = zeros,
        rngs: nnx.Rngs,
    ) -> None:
        """Creates the layer and the prediction.

        Args:
            num_features: Size of the last axis of the input.
            condition_features: Size of the last axis of the condition.
            norm: Makes the layer, a class of `normlab.nnx` or a partial one.
            gate: Whether to predict a gate as well.
            dtype: Dtype of the prediction.
            param_dtype: Dtype of the parameters of the prediction.
            kernel_init: Initializer of the prediction's kernel.
            bias_init: Initializer of the prediction's bias.
            rngs: Gives each parameter its key.
        """
        for name, size in (
            ("num_features", num_features),
            ("condition_features", condition_features),
        ):
            if not whole_number(1)(size):
                raise ValueError(
                    f"ConditionalNorm: {name}={shown(size)} was given; expected the size of an "
                    "axis, a whole number of at least 1."
                )
        linen.ConditionalNorm(  # checks its fields
            gate=gate,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            parent=None,
        )
        if not isinstance(rngs, nnx.Rngs | nnx.RngStream):
            raise TypeError(
                f"ConditionalNorm: rngs is {type(rngs).__name__}, but an nnx.Rngs was expected; "
                "pass for example rngs=nnx.Rngs(0)."
            )
        self.gate, self.dtype, self.param_dtype = gate, dtype, param_dtype
        made: Any = getattr(norm, "func", norm)
        if not (isinstance(made, type) and issubclass(made, Layer)):
            raise TypeError(
                f"ConditionalNorm: norm={norm} was given; expected a class of normlab.nnx or a "
                "partial one, such as normlab.nnx.LayerNorm."
            )
        self.norm = norm(num_features, rngs=rngs)
        for name in ("scale", "bias"):  # Predicted ones take their place.
            setattr(self.norm, name, nnx.data(None))
        self.modulation = nnx.Linear(
            condition_features,
            num_features * (3 if gate else 2),
            kernel_init=kernel_init,
            bias_init=bias_init,
            param_dtype=param_dtype,
            rngs=rngs,
        )

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
            x: Input, channels last.
            condition: One vector for each example, (batch, d), or for each entry of the first axes
                of the input, such as (batch, time, d).
            use_running_average: Whether to normalize by running statistics; by default what the
                layer's attribute says.
            mask: Broadcastable to the input; true where a value counts in the statistics.

        Returns:
            The normalized input; with `gate` also the gate, broadcastable to it.

        Raises:
            ValueError: If the axes of the condition are not the first ones of the input.
        """
        layer: Any = linen.ConditionalNorm(
            lambda name: self.norm,
            gate=self.gate,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            parent=None,
        )
        x, condition = as_array(self, "x", x), as_array(self, "condition", condition)
        features = self.modulation.in_features
        if condition.shape[-1:] != (features,):
            raise ValueError(
                f"ConditionalNorm: condition of shape {condition.shape} was given; expected "
                f"condition_features={features} on its last axis, for which the layer was made."
            )
        modulation = {
            name: getattr(self.modulation, name).get_value() for name in ("kernel", "bias")
        }
        variables = {"params": {"modulation": modulation}}
        with variables_explained(self):
            return layer.apply(variables, x, condition, use_running_average, mask=mask)
