"""Float64 NumPy oracles of the layers: the papers' formulas, written to be read, not to be fast.

Nothing here imports JAX or normlab. Masked values (mask False) are left out of the statistics;
they are normalized all the same. Arrays of any precision are taken to float64 or complex128 first.
Parameters bear the names that the layers give them. Sources are at the layers.
"""

from .activating import evonorm_s0 as evonorm_s0
from .activating import filter_response_norm as filter_response_norm
from .activating import proxy_norm as proxy_norm
from .basis import Moments as Moments
from .basis import affine as affine
from .basis import as_double as as_double
from .basis import moments as moments
from .basis import numerical_gradient as numerical_gradient
from .basis import other_axes as other_axes
from .basis import positive_axes as positive_axes
from .basis import standardize as standardize
from .basis import standardize_gradient as standardize_gradient
from .ghost import ghost_batch_norm as ghost_batch_norm
from .ghost import ghost_groups as ghost_groups
from .ghost import ghost_moments as ghost_moments
from .replays import BatchGroupNormReplay as BatchGroupNormReplay
from .replays import BatchNormReplay as BatchNormReplay
from .replays import BatchRenormReplay as BatchRenormReplay
from .replays import EvoNormB0Replay as EvoNormB0Replay
from .replays import GhostBatchNormReplay as GhostBatchNormReplay
from .replays import SwitchableNormReplay as SwitchableNormReplay
from .running import RunningStatistics as RunningStatistics
from .standardizing import batch_norm as batch_norm
from .standardizing import group_moments as group_moments
from .standardizing import group_norm as group_norm
from .standardizing import instance_norm as instance_norm
from .standardizing import layer_norm as layer_norm
from .standardizing import position_norm as position_norm
from .standardizing import rms_norm as rms_norm
from .standardizing import scale_norm as scale_norm
from .transformer import gpt as gpt
from .unpooled import dynamic_erf as dynamic_erf
from .unpooled import dynamic_tanh as dynamic_tanh
from .unpooled import identity as identity
from .unpooled import local_response_norm as local_response_norm
