"""Local response normalization."""

from dataclasses import field

from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..functional import local_response
from .fields import CheckedModule
from .shared import Axes, channel_axis, in_statistics_dtype, scaled, with_mask


class LocalResponseNorm(CheckedModule):
    r"""Divides every channel by a power of the energy of its neighbours at the same position.

    .. math:: y_i = x_i \Big/ \Big(k + \alpha
        \sum_{j=\max(0, i-\lfloor n/2 \rfloor)}^{\min(c-1, i+\lfloor n/2 \rfloor)}
        |x_j|^2\Big)^\beta

    It learns nothing, but takes a scale and a bias at the call.

    The sum is the paper's. PyTorch and Caffe divide alpha by the size of the neighbourhood
    (`average=True`), and PyTorch's neighbourhood of an even size n has n channels, one more of them
    before than after; here, as in the paper, it has n + 1.

    State: none.

    Attributes:
        size: Size of the neighbourhood, n: n // 2 channels on each side. Channels beyond the first
            and the last, and masked ones, add nothing to the sum.
        k: Constant that keeps the divisor off zero.
        alpha: Weight of the sum.
        beta: Power of the divisor.
        average: Whether alpha is divided by `size`.
        dtype: Dtype of the result; by default that of input, scale and bias together.
        feature_axes: Axis of the channels: -1, or 1 for channels first.
        use_running_average: Accepted, as by every layer, and without effect.

    Source: Krizhevsky, Sutskever and Hinton, 2012, "ImageNet Classification with Deep Convolutional
    Neural Networks", section 3.3.
    """

    size: int = 5
    k: float = 2.0
    alpha: float = 1e-4
    beta: float = 0.75
    average: bool = False
    dtype: DTypeLike | None = None
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
        """Normalizes the input; the arguments are those of `BatchNorm`."""
        inputs, mask = with_mask(self, x, mask, use_running_average)
        x = in_statistics_dtype(inputs, self.dtype, True)
        channels = channel_axis(self, x.ndim)
        y = local_response(
            x,
            size=self.size,
            k=self.k,
            alpha=self.alpha,
            beta=self.beta,
            average=self.average,
            channel_axis=channels[0],
            mask=mask,
        )
        return scaled(self, inputs, y, scale, bias, feature_axes=channels)
