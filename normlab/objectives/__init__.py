"""What networks learn to predict, and what is measured of it."""

from .classification import Classification as Classification
from .multilabel import Multilabel as Multilabel
from .next_token import NextToken as NextToken
from .objective import Objective as Objective
from .objective import Sums as Sums
from .objective import add_sums as add_sums
from .per_pixel import PerPixel as PerPixel
from .registered import OBJECTIVES as OBJECTIVES
from .registered import ObjectiveSpec as ObjectiveSpec
from .registered import objective_spec_type as objective_spec_type
from .registered import register_objective as register_objective
from .regression import Regression as Regression
