"""Normalization layers for Flax Linen."""

from .batch_norm import BatchNorm as BatchNorm
from .ghost_batch_norm import GhostBatchNorm as GhostBatchNorm
from .group_norm import GroupNorm as GroupNorm
from .identity import Identity as Identity
from .instance_norm import InstanceNorm as InstanceNorm
from .layer_norm import LayerNorm as LayerNorm
from .rms_norm import RMSNorm as RMSNorm
