"""Dotted paths into nested records, as in `optimizer.learning_rate`."""

from collections.abc import Mapping
from typing import Any


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Joins the keys of nested records with dots; an empty record is a value like others."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def value_at(nested: Mapping[str, Any], path: str) -> Any:
    """Returns the value of a nested record at a dotted path."""
    for key in path.split("."):
        nested = nested[key]
    return nested


def with_values(nested: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a nested record with the values at the dotted paths replaced."""
    copy = dict(nested)
    for path, value in values.items():
        head, _, rest = path.partition(".")
        inner = copy.get(head)
        if rest:
            copy[head] = with_values(inner if isinstance(inner, Mapping) else {}, {rest: value})
        else:
            copy[head] = value
    return copy
