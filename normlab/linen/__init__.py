"""Normalization layers for Flax Linen."""

from .affine import Affine as Affine
from .batch_group_norm import BatchGroupNorm as BatchGroupNorm
from .batch_norm import BatchNorm as BatchNorm
from .batch_renorm import BatchRenorm as BatchRenorm
from .conditional_norm import ConditionalNorm as ConditionalNorm
from .dynamic_erf import DynamicErf as DynamicErf
from .dynamic_tanh import DynamicTanh as DynamicTanh
from .evonorm_b0 import EvoNormB0 as EvoNormB0
from .evonorm_s0 import EvoNormS0 as EvoNormS0
from .filter_response_norm import FilterResponseNorm as FilterResponseNorm
from .ghost_batch_norm import GhostBatchNorm as GhostBatchNorm
from .group_norm import GroupNorm as GroupNorm
from .identity import Identity as Identity
from .instance_norm import InstanceNorm as InstanceNorm
from .layer_norm import LayerNorm as LayerNorm
from .local_response_norm import LocalResponseNorm as LocalResponseNorm
from .position_norm import PositionNorm as PositionNorm
from .proxy_norm import ProxyNorm as ProxyNorm
from .rms_norm import RMSNorm as RMSNorm
from .scale_norm import ScaleNorm as ScaleNorm
from .scaled_weight_standardization import (
    ScaledWeightStandardization as ScaledWeightStandardization,
)
from .spectral_norm import SpectralNorm as SpectralNorm
from .switchable_norm import SwitchableNorm as SwitchableNorm
from .weight_norm import WeightNorm as WeightNorm
from .weight_standardization import WeightStandardization as WeightStandardization
