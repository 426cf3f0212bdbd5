"""The one table of variants: what a comparison may put where a normalization layer goes."""

import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Union

from flax import linen as nn
from pydantic import AfterValidator, Field, create_model, model_validator

from . import linen
from .modules import enter
from .registration import (
    check_arguments,
    check_call,
    check_name,
    plain_arguments,
    record_fields,
    refuse_taken,
)
from .spec import Spec
from .user_code import with_place

# Fields that the model decides on, or that need a named axis around it.
_NOT_SETTABLE = {"parent", "name", "use_running_average", "axis_name", "axis_index_groups"}

# The parts of a study of which an arm may have other fields than the others.
OVERRIDABLE = ("model", "optimizer")

# What a layer costs beside reading its input and writing its output.
COSTS = {
    "pointwise": "no reduction",
    "example": "one reduction inside each example or position",
    "batch": "one reduction over the batch, and over the devices that share it",
    "both": "reductions over the batch and inside each example",
    "window": "a sum over a sliding window of channels",
    "weights": "reductions over weights, none over activations",
    "inside": "that of the norm inside, and a dense layer on the condition",
}


@dataclass(frozen=True)
class Variant:
    """A normalization layer that configurations can name.

    Attributes:
        name: How a configuration calls it.
        layer: The Flax module.
        statistics: What its training statistics are taken over, in words.
        source: Where it was published.
        formula: What it computes in training, in the names of its parameters and fields.
        cost: One of `COSTS`.
    """

    name: str
    layer: type[nn.Module]
    statistics: str
    source: str
    formula: str
    cost: str


def _without_name(given: dict[str, Any]) -> dict[str, Any]:
    if "name" in given:
        raise ValueError("an arm keeps the name that the study gives; only other fields can differ")
    return given


Overrides = Annotated[dict[str, Any], AfterValidator(_without_name)]


class VariantSpec(Spec):
    """An arm of a comparison: a layer by its registered name, and fields of it.

    Attributes:
        layer: The layer's name.
        model: Fields of the model that are others for this arm than for the study.
        optimizer: Fields of the optimizer, likewise.
    """

    # Bound where a study is checked: what another study registers by this name changes nothing.
    variant: ClassVar[Variant | None] = None

    layer: str
    model: Overrides = Field(default_factory=dict)
    optimizer: Overrides = Field(default_factory=dict)

    def constructor(self) -> Callable[..., nn.Module]:
        """Returns the layer with the given fields, to be called as `norm(name=...)`."""
        given = self.model_dump(exclude={*VariantSpec.model_fields}, exclude_unset=True)
        return partial(self.layer_class, **given)

    @property
    def layer_class(self) -> type[nn.Module]:
        """The layer itself."""
        return (self.variant or VARIANTS[self.layer]).layer

    def overrides(self) -> dict[str, Any]:
        """Returns what differs for this arm, by dotted path in the study."""
        return {
            f"{part}.{field}": value
            for part in OVERRIDABLE
            for field, value in getattr(self, part).items()
        }

    @model_validator(mode="after")
    def _let_the_layer_check(self) -> "VariantSpec":
        try:
            self.constructor()()
        except (Exception, SystemExit) as error:  # of which pydantic would let most through
            raise ValueError(with_place(error)) from error
        return self


VARIANTS: dict[str, Variant] = {}


def register(
    name: str,
    layer: Any = None,
    *,
    statistics: str = "not stated",
    source: str = "not stated",
    formula: str = "not stated",
    cost: str = "not stated",
) -> Any:
    """Adds a layer to the table of variants, as a call or as a decorator.

    Usage::

        @normlab.register("my_norm")
        class MyNorm(nn.Module):
            epsilon: float = 1e-5

            @nn.compact
            def __call__(self, x, use_running_average=None): ...

    A configuration can then say `{layer: my_norm, epsilon: 0.001}` once it names the module, as in
    `modules: [my_layers]`. Fields of plain types (numbers, words, truth values, lists of them) can
    be set there and are checked against their annotations. A layer with running statistics that
    derives from `normlab.BatchNorm` is one for `normlab.surgery` too, which knows no others.

    Args:
        name: How configurations call it.
        layer: A Flax module whose call takes `use_running_average`; all its fields need defaults.
        statistics: What its training statistics are taken over, for `normlab list`.
        source: Where it was published, likewise.
        formula: What it computes, likewise.
        cost: What it costs, likewise: "pointwise", "example", "batch", "both" or "window".

    Returns:
        The layer, or a decorator that returns it.

    Raises:
        ValueError: If the name is none or taken, or the layer cannot stand in a model.
    """
    check_name("register", name)
    if layer is None:
        return partial(
            register, name, statistics=statistics, source=source, formula=formula, cost=cost
        )
    taken = VARIANTS.get(name)
    refuse_taken("register", name, taken and taken.layer, layer)
    told = f"register({name!r})"
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise ValueError(f"{told}: {layer!r} is not a class of flax.linen.Module.")
    check_call(
        told,
        layer,
        "use_running_average",
        "which tells training from evaluation; a layer without statistics may ignore it",
    )
    check_arguments(told, layer, filled_in=_NOT_SETTABLE, record=VariantSpec)
    enter(VARIANTS, name, Variant(name, layer, statistics, source, formula, cost))
    return layer


def variant_spec_type() -> Any:
    """Returns the type that validates an arm: one record per registered layer, told by `layer`."""
    models = tuple(_spec_model(variant) for variant in VARIANTS.values())
    return typing.Annotated[Union[models], Field(discriminator="layer")]  # noqa: UP007


def settable_fields(layer: type[nn.Module]) -> dict[str, Any]:
    """Returns the fields of a layer that a configuration can set, with their types."""
    return plain_arguments(layer, _NOT_SETTABLE)


def _spec_model(variant: Variant) -> type[VariantSpec]:
    layer: Any = Literal[variant.name]
    settable = record_fields(variant.layer, _NOT_SETTABLE)
    spec = create_model(
        variant.layer.__name__, __base__=VariantSpec, layer=(layer, ...), **settable
    )
    spec.variant = variant
    return spec


register(
    "identity",
    linen.Identity,
    statistics="none",
    source="control arm",
    formula="y = x",
    cost="pointwise",
)
register(
    "affine",
    linen.Affine,
    statistics="none",
    source="Touvron et al., 2021",
    formula="y = scale x + bias",
    cost="pointwise",
)
register(
    "dynamic_tanh",
    linen.DynamicTanh,
    statistics="none",
    source="Zhu et al., 2025",
    formula="y = scale tanh(alpha x) + bias",
    cost="pointwise",
)
register(
    "dynamic_erf",
    linen.DynamicErf,
    statistics="none",
    source="Chen et al., 2025",
    formula="y = scale erf(alpha x + shift) + bias",
    cost="pointwise",
)
register(
    "batch_norm",
    linen.BatchNorm,
    statistics="batch",
    source="Ioffe and Szegedy, 2015",
    formula="y = scale (x - mean) / sqrt(var + epsilon) + bias",
    cost="batch",
)
register(
    "ghost_batch_norm",
    linen.GhostBatchNorm,
    statistics="groups of the batch",
    source="Hoffer et al., 2017",
    formula="y = scale (x - mean) / sqrt(var + epsilon) + bias, of each group of examples",
    cost="batch",
)
register(
    "batch_renorm",
    linen.BatchRenorm,
    statistics="batch, corrected by running",
    source="Ioffe, 2017",
    formula=(
        "y = scale ((x - mean) / deviation r + d) + bias, r = clip(deviation / "
        "running), d = clip((mean - running mean) / running)"
    ),
    cost="batch",
)
register(
    "batch_group_norm",
    linen.BatchGroupNorm,
    statistics="batch and channel groups",
    source="Summers and Dinneen, 2020",
    formula="y = scale (x - mean) / sqrt(var + epsilon) + bias, of each group of channels",
    cost="batch",
)
register(
    "switchable_norm",
    linen.SwitchableNorm,
    statistics="batch, example and channel",
    source="Luo et al., 2019",
    formula=(
        "y = scale (x - sum_k w_k mean_k) / sqrt(sum_k v_k var_k + epsilon) + "
        "bias, w and v softmax of mean_weight and variance_weight"
    ),
    cost="both",
)
register(
    "evonorm_b0",
    linen.EvoNormB0,
    statistics="batch and channel of an example",
    source="Liu et al., 2020",
    formula=(
        "y = scale x / max(sqrt(var + epsilon), v x + sqrt(var of the example + epsilon)) + bias"
    ),
    cost="both",
)
register(
    "layer_norm",
    linen.LayerNorm,
    statistics="features of a position",
    source="Ba et al., 2016",
    formula="y = scale (x - mean) / sqrt(var + epsilon) + bias",
    cost="example",
)
register(
    "rms_norm",
    linen.RMSNorm,
    statistics="features of a position",
    source="Zhang and Sennrich, 2019",
    formula="y = scale x / sqrt(mean(x^2) + epsilon)",
    cost="example",
)
register(
    "scale_norm",
    linen.ScaleNorm,
    statistics="features of a position",
    source="Nguyen and Salazar, 2019",
    formula="y = scale x / max(|x|, epsilon), one scale for all features",
    cost="example",
)
register(
    "position_norm",
    linen.PositionNorm,
    statistics="features of a position",
    source="Li et al., 2019",
    formula="y = scale (x - mean) / sqrt(var + epsilon) + bias, without either by default",
    cost="example",
)
register(
    "group_norm",
    linen.GroupNorm,
    statistics="channel groups of an example",
    source="Wu and He, 2018",
    formula="y = scale (x - mean) / sqrt(var + epsilon) + bias, of each group of channels",
    cost="example",
)
register(
    "instance_norm",
    linen.InstanceNorm,
    statistics="channels of an example",
    source="Ulyanov et al., 2016",
    formula="y = scale (x - mean) / sqrt(var + epsilon) + bias",
    cost="example",
)
register(
    "filter_response_norm",
    linen.FilterResponseNorm,
    statistics="channels of an example",
    source="Singh and Krishnan, 2020",
    formula="y = max(scale x / sqrt(mean(x^2) + epsilon) + bias, threshold)",
    cost="example",
)
register(
    "evonorm_s0",
    linen.EvoNormS0,
    statistics="channel groups of an example",
    source="Liu et al., 2020",
    formula="y = scale x sigmoid(v x) / sqrt(var + epsilon) + bias",
    cost="example",
)
register(
    "proxy_norm",
    linen.ProxyNorm,
    statistics="all of an example",
    source="Labatie et al., 2021",
    formula=(
        "y = (f(scale n + bias) - mean) / sqrt(var + proxy_epsilon), n = layer "
        "or group norm of x, mean and var of f(scale p + bias) for p normal"
    ),
    cost="example",
)
register(
    "local_response_norm",
    linen.LocalResponseNorm,
    statistics="neighbouring channels of a position",
    source="Krizhevsky et al., 2012",
    formula="y = x / (k + alpha sum of x^2 over a window of channels)^beta",
    cost="window",
)
