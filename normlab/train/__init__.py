"""Training: an Optax loop over Flax models, compiled once for every rate and seed."""

from .loop import EpochMetrics as EpochMetrics
from .loop import Outcome as Outcome
from .loop import Placed as Placed
from .loop import Trainer as Trainer
from .loop import TrainSpec as TrainSpec
from .loop import place as place
from .optim import AdamSpec as AdamSpec
from .optim import OptimizerSpec as OptimizerSpec
from .optim import SGDSpec as SGDSpec
from .state import TrainState as TrainState
