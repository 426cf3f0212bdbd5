"""Normalization layers for Flax NNX."""

from .conditional_norm import ConditionalNorm as ConditionalNorm
from .layer import Layer as Layer
from .layers import Affine as Affine
from .layers import BatchGroupNorm as BatchGroupNorm
from .layers import BatchNorm as BatchNorm
from .layers import BatchRenorm as BatchRenorm
from .layers import DynamicErf as DynamicErf
from .layers import DynamicTanh as DynamicTanh
from .layers import EvoNormB0 as EvoNormB0
from .layers import EvoNormS0 as EvoNormS0
from .layers import FilterResponseNorm as FilterResponseNorm
from .layers import GhostBatchNorm as GhostBatchNorm
from .layers import GroupNorm as GroupNorm
from .layers import Identity as Identity
from .layers import InstanceNorm as InstanceNorm
from .layers import LayerNorm as LayerNorm
from .layers import LocalResponseNorm as LocalResponseNorm
from .layers import PositionNorm as PositionNorm
from .layers import ProxyNorm as ProxyNorm
from .layers import RMSNorm as RMSNorm
from .layers import ScaleNorm as ScaleNorm
from .layers import SwitchableNorm as SwitchableNorm
from .weights import ScaledWeightStandardization as ScaledWeightStandardization
from .weights import SpectralNorm as SpectralNorm
from .weights import WeightNorm as WeightNorm
from .weights import WeightStandardization as WeightStandardization
