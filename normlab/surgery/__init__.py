"""What is done to a trained model: on its variables, whatever the model."""

from . import nnx as nnx
from .adapt import adapt as adapt
from .convert import Change as Change
from .convert import Converted as Converted
from .convert import convert as convert
from .fold import Folded as Folded
from .fold import fold as fold
from .freeze import Frozen as Frozen
from .freeze import freeze as freeze
from .freeze import trainable_mask as trainable_mask
from .layers import How as How
from .layers import Layer as Layer
from .layers import evaluate as evaluate
from .layers import find_layers as find_layers
from .libraries import from_keras as from_keras
from .libraries import from_torch as from_torch
from .libraries import to_keras as to_keras
from .libraries import to_torch as to_torch
from .recalibrate import recalibrate as recalibrate
from .summary import LayerSummary as LayerSummary
from .summary import Summary as Summary
from .summary import summary as summary
from .tent import Tented as Tented
from .tent import mean_entropy as mean_entropy
from .tent import tent as tent
