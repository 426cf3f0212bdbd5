"""Dotted paths into nested records, as in `optimizer.learning_rate`."""

from collections.abc import Mapping
from typing import Any


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Joins the keys of nested records with dots."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


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
