"""The one table of variants: what a comparison may put where a normalization layer goes."""

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, Union

from flax import linen as nn
from pydantic import Field, create_model, model_validator

from . import linen
from .spec import Spec

# Fields that the model decides on, or that need a named axis around it.
_NOT_SETTABLE = {"parent", "name", "use_running_average", "axis_name", "axis_index_groups"}


@dataclass(frozen=True)
class Variant:
    """A normalization layer that configurations can name.

    Attributes:
        name: How a configuration calls it.
        layer: The Flax module.
        statistics: What its training statistics are taken over, in words.
        source: Where it was published.
    """

    name: str
    layer: type[nn.Module]
    statistics: str
    source: str


class VariantSpec(Spec):
    """An arm of a comparison: a layer by its registered name, and fields of it."""

    layer: str

    def constructor(self) -> Callable[..., nn.Module]:
        """Returns the layer with the given fields, to be called as `norm(name=...)`."""
        given = self.model_dump(exclude={"layer"}, exclude_unset=True)
        return partial(VARIANTS[self.layer].layer, **given)

    @model_validator(mode="after")
    def _let_the_layer_check(self) -> "VariantSpec":
        try:
            self.constructor()()
        except TypeError as error:  # which pydantic would let through
            raise ValueError(str(error)) from error
        return self


VARIANTS: dict[str, Variant] = {}


def register(
    name: str,
    layer: Any = None,
    *,
    statistics: str = "not stated",
    source: str = "not stated",
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
    be set there and are checked against their annotations.

    Args:
        name: How configurations call it.
        layer: A Flax module whose call takes `use_running_average`; all its fields need defaults.
        statistics: What its training statistics are taken over, for `normlab list`.
        source: Where it was published, for `normlab list`.

    Returns:
        The layer, or a decorator that returns it.

    Raises:
        ValueError: If the name is taken or the layer cannot stand in a model.
    """
    if layer is None:
        return partial(register, name, statistics=statistics, source=source)
    taken = VARIANTS.get(name)
    # The same class from a module that is loaded again replaces itself.
    if taken and (taken.layer.__module__, taken.layer.__qualname__) != (
        layer.__module__,
        layer.__qualname__,
    ):
        raise ValueError(
            f"register: the name {name!r} is taken by {taken.layer.__module__}."
            f"{taken.layer.__qualname__}; choose another."
        )
    _check_layer(name, layer)
    VARIANTS[name] = Variant(name, layer, statistics, source)
    return layer


def variant_spec_type() -> Any:
    """Returns the type that validates an arm: one record per registered layer, told by `layer`."""
    models = tuple(_spec_model(variant) for variant in VARIANTS.values())
    return typing.Annotated[Union[models], Field(discriminator="layer")]  # noqa: UP007


def settable_fields(layer: type[nn.Module]) -> dict[str, Any]:
    """Returns the fields of a layer that a configuration can set, with their types."""
    types = typing.get_type_hints(layer)
    return {
        field.name: types[field.name]
        for field in fields(layer)
        if field.name not in _NOT_SETTABLE and _is_plain(types[field.name])
    }


def _check_layer(name: str, layer: Any) -> None:
    """Refuses what could not stand in a model or be set in a configuration."""
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise ValueError(f"register({name!r}): {layer!r} is not a class of flax.linen.Module.")
    if "use_running_average" not in inspect.signature(layer.__call__).parameters:
        raise ValueError(
            f"register({name!r}): the call of {layer.__qualname__} must take use_running_average, "
            "which tells training from evaluation; a layer without statistics may ignore it."
        )
    missing = [
        field.name
        for field in fields(layer)
        if field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ValueError(
            f"register({name!r}): the fields {', '.join(missing)} of {layer.__qualname__} need "
            "defaults."
        )
    try:
        taken = [field for field in settable_fields(layer) if hasattr(VariantSpec, field)]
    except NameError as error:
        raise ValueError(
            f"register({name!r}): an annotation of {layer.__qualname__} cannot be resolved: {error}"
        ) from error
    if taken or "layer" in settable_fields(layer):
        raise ValueError(
            f"register({name!r}): {layer.__qualname__} has a field "
            f"{', '.join(taken) or 'layer'}, a name that a configuration has another use for; "
            "rename it."
        )


def _default(field: Any) -> Any:
    if field.default_factory is not MISSING:
        return Field(default_factory=field.default_factory)
    return field.default


def _spec_model(variant: Variant) -> type[VariantSpec]:
    defaults = {field.name: _default(field) for field in fields(variant.layer)}
    layer: Any = Literal[variant.name]
    settable: Any = {
        name: (annotation, defaults[name])
        for name, annotation in settable_fields(variant.layer).items()
    }
    return create_model(
        variant.layer.__name__, __base__=VariantSpec, layer=(layer, ...), **settable
    )


def _is_plain(annotation: Any) -> bool:
    """Whether values of a type can stand in a configuration file."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return True
    if origin in (Union, UnionType, tuple, list, Sequence):
        return all(_is_plain(part) for part in typing.get_args(annotation) if part is not ...)
    return annotation in (bool, int, float, str, NoneType)


for _name, _layer, _statistics, _source in [
    ("identity", linen.Identity, "none", "control arm"),
    ("batch_norm", linen.BatchNorm, "batch", "Ioffe and Szegedy, 2015"),
    ("ghost_batch_norm", linen.GhostBatchNorm, "groups of the batch", "Hoffer et al., 2017"),
    ("layer_norm", linen.LayerNorm, "features of a position", "Ba et al., 2016"),
    ("rms_norm", linen.RMSNorm, "features of a position", "Zhang and Sennrich, 2019"),
    ("group_norm", linen.GroupNorm, "channel groups of an example", "Wu and He, 2018"),
    ("instance_norm", linen.InstanceNorm, "channels of an example", "Ulyanov et al., 2016"),
]:
    register(_name, _layer, statistics=_statistics, source=_source)
