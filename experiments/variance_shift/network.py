"""A perceptron with dropout between its layers or behind the last of them."""

from collections.abc import Callable
from typing import Literal

from flax import linen as nn

import normlab

LAYERS, WIDTH, SHARE = 3, 200, 0.5


@normlab.register_model("dropping")
class Dropping(nn.Module):
    """Three layers of 200 ReLUs, norms before these, and dropout of a half at most at one place."""

    norm: Callable
    classes: int
    dropout: Literal["none", "between", "behind"] = "none"

    @nn.compact
    def __call__(self, x, *, train):
        x = x.reshape(len(x), -1)
        for layer in range(LAYERS):
            x = nn.Dense(WIDTH, use_bias=False, kernel_init=nn.initializers.he_normal())(x)
            x = nn.relu(self.norm()(x, use_running_average=not train))
            place = "behind" if layer == LAYERS - 1 else "between"
            if self.dropout == place:
                x = nn.Dropout(SHARE, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)
