"""What there is to say of a variant: its fields and their meaning, what it learns and keeps."""

from dataclasses import MISSING, fields
from typing import Any, NamedTuple

import docstring_parser
import jax
import jax.numpy as jnp

from .variants import Variant, settable_fields

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


def summary(variant: Variant) -> str:
    """Returns the first line of the layer's docstring."""
    return (variant.layer.__doc__ or "").strip().partition("\n")[0]


def variables(variant: Variant) -> dict[str, dict[str, str]]:
    """Returns the variables of a layer with default fields: `{collection: {name: shape}}`."""
    layer = variant.layer()
    shapes = jax.eval_shape(
        lambda: layer.init(jax.random.key(0), jnp.zeros(_SHAPE), use_running_average=False)
    )
    return {
        collection: {name: _shape(leaf.shape) for name, leaf in sorted(leaves.items())}
        for collection, leaves in shapes.items()
    }


def _shape(shape: tuple[int, ...]) -> str:
    if not shape:
        return "scalar"
    return "features" if shape == _SHAPE[-1:] else str(shape)


def _default(field: Any) -> str:
    value = field.default if field.default is not MISSING else field.default_factory()
    return repr(value)
