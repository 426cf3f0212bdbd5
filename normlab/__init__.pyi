from .linen import BatchNorm as BatchNorm
from .linen import GhostBatchNorm as GhostBatchNorm
from .linen import GroupNorm as GroupNorm
from .linen import Identity as Identity
from .linen import InstanceNorm as InstanceNorm
from .linen import LayerNorm as LayerNorm
from .linen import RMSNorm as RMSNorm
from .variants import register as register
