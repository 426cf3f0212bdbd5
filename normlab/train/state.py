"""The state of a training run: all that one step hands to the next."""

from typing import Any

from flax import struct


class TrainState(struct.PyTreeNode):
    """Everything that changes during training.

    The fields are not typed as arrays, since JAX also fills the structure with shapes, devices and
    axes.

    Attributes:
        params: Parameters of the model.
        batch_stats: Running statistics of its normalization layers; empty if it has none.
        opt_state: State of the optimizer.
        step: Steps done, an int32 scalar.
        key: Source of the order of examples; the same for every variant with the same seed.
    """

    params: Any
    batch_stats: Any
    opt_state: Any
    step: Any
    key: Any
