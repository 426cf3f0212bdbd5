"""Which adapter a model takes."""

from typing import Any

from flax import linen as nn

from .as_linen import LinenNetwork
from .network import Network


def network_of(model: Any) -> Network:
    """Returns a model as training sees it.

    Raises:
        TypeError: If it is of no kind that is known.
    """
    if isinstance(model, nn.Module):
        return LinenNetwork(model)
    raise TypeError(f"{model!r} is no model; expected a flax.linen.Module.")
