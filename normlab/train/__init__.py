"""Training: an Optax loop over any network and objective, compiled once for every rate and seed."""

from .checkpoint import Checkpoints as Checkpoints
from .feed import Feed as Feed
from .feed import Placed as Placed
from .feed import Resident as Resident
from .feed import place as place
from .hooks import Hook as Hook
from .hooks import Moment as Moment
from .hooks import Record as Record
from .hooks import RecordHook as RecordHook
from .hooks import StateHook as StateHook
from .loop import Outcome as Outcome
from .loop import fit as fit
from .mesh import MeshSpec as MeshSpec
from .optim import AdamSpec as AdamSpec
from .optim import OptimizerSpec as OptimizerSpec
from .optim import SGDSpec as SGDSpec
from .probing import probing as probing
from .programs import Programs as Programs
from .spec import TrainSpec as TrainSpec
from .state import TrainState as TrainState
from .stream import Streamed as Streamed
