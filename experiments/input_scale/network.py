"""A perceptron whose inputs arrive in another unit."""

from collections.abc import Callable

from flax import linen as nn

import normlab
from normlab.models import MLP


@normlab.register_model("times")
class Times(nn.Module):
    """The perceptron of three layers of 100 ReLUs, of the inputs times `factor`."""

    norm: Callable
    classes: int
    factor: float = 1.0

    @nn.compact
    def __call__(self, x, *, train):
        return MLP((100, 100, 100), self.classes, self.norm)(self.factor * x, train=train)
