"""What there is to say of a variant: its fields and their meaning, what it learns and keeps."""

import inspect
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

import docstring_parser
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from . import linen
from .variants import Variant, settable_fields

# Layers that are put around others, and so are no arms of a comparison by themselves. The models
# of normlab put those on weights around theirs by the field `weights`.
WRAPPERS = {
    variant.name: variant
    for variant in (
        Variant(
            "weight_norm",
            linen.WeightNorm,
            "weights of an output",
            "Salimans and Kingma, 2016",
            "w = scale v / sqrt(|v|^2 + epsilon)",
            "weights",
        ),
        Variant(
            "weight_standardization",
            linen.WeightStandardization,
            "weights of an output",
            "Qiao et al., 2019",
            "w = (v - mean) / sqrt(var + epsilon)",
            "weights",
        ),
        Variant(
            "scaled_weight_standardization",
            linen.ScaledWeightStandardization,
            "weights of an output",
            "Brock et al., 2021",
            "w = gain (v - mean) / sqrt(max(fan_in var, epsilon))",
            "weights",
        ),
        Variant(
            "spectral_norm",
            linen.SpectralNorm,
            "all weights of a layer",
            "Miyato et al., 2018",
            "w = v / sigma, sigma the largest singular value of v by power iteration",
            "weights",
        ),
        Variant(
            "conditional_norm",
            linen.ConditionalNorm,
            "those of the norm inside",
            "Perez et al., 2018",
            "y = norm(x) (1 + scale(condition)) + bias(condition)",
            "inside",
        ),
    )
}

# Channels that suit the default number of groups of every layer.
_SHAPE = (2, 2, 2, 32)


class FieldEntry(NamedTuple):
    """A field of a layer that a configuration can set."""

    name: str
    default: str
    meaning: str


def field_entries(variant: Variant) -> list[FieldEntry]:
    """Returns the settable fields of a layer, its own before those it inherits.

    Their meaning stands in the docstrings of the layer and of the layers it derives from.
    """
    meanings: dict[str, str] = {}
    for kind in variant.layer.__mro__:
        # Flax gives a module without a docstring the signature of its constructor.
        documented = docstring_parser.parse(kind.__doc__ or "", docstring_parser.Style.GOOGLE)
        for entry in documented.params:
            words = " ".join((entry.description or "").replace("`", "").split())
            meanings.setdefault(entry.arg_name, words)
    defaults = {field.name: field for field in fields(variant.layer)}
    names = sorted(
        settable_fields(variant.layer),
        key=lambda name: list(meanings).index(name) if name in meanings else len(meanings),
    )
    return [FieldEntry(name, _default(defaults[name]), meanings.get(name, "")) for name in names]


def other_fields(variant: Variant) -> list[str]:
    """Returns the fields that only Python can set: dtypes, initializers, named axes."""
    settable = settable_fields(variant.layer)
    own = ("parent", "name", "use_running_average")
    names = [field.name for field in fields(variant.layer)]
    return [name for name in names if name not in settable and name not in own]


def summary(variant: Variant) -> str:
    """Returns the first line of the layer's docstring, if it has one of its own."""
    # Without one, Flax writes the signature of the constructor there.
    documented = inspect.getdoc(variant.layer) or ""
    generated = documented.startswith(f"{variant.layer.__name__}(")
    return "" if generated else documented.partition("\n")[0]


def variables(variant: Variant) -> dict[str, dict[str, str]] | None:
    """Returns the variables of a layer with default fields: `{collection: {name: shape}}`.

    None if the layer does not take a batch of images of 32 channels, as a user's own may not.
    """
    layer = variant.layer()
    try:
        shapes = jax.eval_shape(
            lambda: layer.init(jax.random.key(0), jnp.zeros(_SHAPE), use_running_average=False)
        )
    except (ValueError, TypeError):
        return None
    return {
        collection: {
            name: _shape(leaf.shape)
            for name, leaf in sorted(flatten_dict(nn.unbox(leaves), sep="/").items())
        }
        for collection, leaves in shapes.items()
    }


def _shape(shape: tuple[int, ...]) -> str:
    if not shape:
        return "(scalar)"
    return "(features)" if shape == _SHAPE[-1:] else str(shape)


def _default(field: Any) -> str:
    """Writes a default as a configuration has it."""
    value = field.default if field.default is not MISSING else field.default_factory()
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)
