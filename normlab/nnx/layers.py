"""The normalization layers for Flax NNX, each by the Linen layer of its name."""

# ruff: noqa: D101  (their docstrings are made of those of the Linen layers)

import functools
import types

from flax import linen as nn

from .. import linen
from .layer import Layer


class Affine(Layer, of=linen.Affine): ...


class BatchGroupNorm(Layer, of=linen.BatchGroupNorm): ...


class BatchNorm(Layer, of=linen.BatchNorm): ...


class BatchRenorm(Layer, of=linen.BatchRenorm): ...


class DynamicErf(Layer, of=linen.DynamicErf): ...


class DynamicTanh(Layer, of=linen.DynamicTanh): ...


class EvoNormB0(Layer, of=linen.EvoNormB0): ...


class EvoNormS0(Layer, of=linen.EvoNormS0): ...


class FilterResponseNorm(Layer, of=linen.FilterResponseNorm): ...


class GhostBatchNorm(Layer, of=linen.GhostBatchNorm): ...


class GroupNorm(Layer, of=linen.GroupNorm): ...


class Identity(Layer, of=linen.Identity): ...


class InstanceNorm(Layer, of=linen.InstanceNorm): ...


class LayerNorm(Layer, of=linen.LayerNorm): ...


class LocalResponseNorm(Layer, of=linen.LocalResponseNorm): ...


class PositionNorm(Layer, of=linen.PositionNorm): ...


class ProxyNorm(Layer, of=linen.ProxyNorm): ...


class RMSNorm(Layer, of=linen.RMSNorm): ...


class ScaleNorm(Layer, of=linen.ScaleNorm): ...


class SwitchableNorm(Layer, of=linen.SwitchableNorm): ...


_FORMS = {it.linen_module: it for it in (*vars().values(),) if getattr(it, "linen_module", None)}


@functools.lru_cache
def form_of(layer: type[nn.Module]) -> type[Layer]:
    """Returns the NNX form of a Linen layer: the one above, or one made of a user's own layer."""
    return _FORMS.get(layer) or types.new_class(layer.__name__, (Layer,), {"of": layer})
