"""What networks learn to predict, and what is measured of it."""

from .classification import Classification as Classification
from .objective import Metric as Metric
from .objective import Objective as Objective
from .objective import Sums as Sums
from .objective import add_sums as add_sums
