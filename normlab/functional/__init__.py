"""The mathematics of normalization: arrays in, arrays out, no Flax and no state."""

from .ghost import Grouping as Grouping
from .ghost import Part as Part
from .ghost import Remainder as Remainder
from .ghost import average_moments as average_moments
from .ghost import gather_groups as gather_groups
from .ghost import ghost_parts as ghost_parts
from .ghost import pool_moments as pool_moments
from .ghost import split_groups as split_groups
from .ghost import spread_groups as spread_groups
from .moments import Moments as Moments
from .moments import moments as moments
from .moments import squared_magnitude as squared_magnitude
from .moments import unbiased as unbiased
from .normalize import normalize as normalize
from .running import update_running as update_running
