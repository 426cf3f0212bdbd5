"""The control arm: no normalization."""

from dataclasses import field

from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from .fields import CheckedModule
from .shared import affine, checked


class Identity(CheckedModule):
    r"""Returns its input, times a scale and plus a bias if the call gives them.

    .. math:: y = x

    It takes the place of a normalization layer in a model, so that a comparison has an arm without
    one.

    State: none.

    Attributes:
        dtype: Dtype of the result; by default that of the input.
        use_running_average: Accepted, as by every layer, and without effect.
    """

    dtype: DTypeLike | None = None
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
        """Returns the input; the arguments are those of `BatchNorm`, features on the last axis."""
        y, _ = checked(self, x, mask, use_running_average)
        scale, bias = affine(self, y, tuple(range(y.ndim))[-1:], scale, bias)
        y = y if scale is None else y * scale
        y = y if bias is None else y + bias
        return y if self.dtype is None else y.astype(self.dtype)
