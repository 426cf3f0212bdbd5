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
    value: Any = nested
    while path:
        key, path = _split(value, path)
        value = value[key]
    return value


def with_values(nested: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a nested record with the values at the dotted paths replaced."""
    copy = dict(nested)
    for path, value in values.items():
        head, rest = _split(copy, path)
        inner = copy.get(head)
        if rest:
            copy[head] = with_values(inner if isinstance(inner, Mapping) else {}, {rest: value})
        else:
            copy[head] = value
    return copy


def merged(nested: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Returns a copy of a nested record with a value at a dotted path.

    A mapping goes into one that is there, key by key: its keys are names, dots or not. An empty
    one takes the place of what is there.
    """
    copy = dict(nested)
    head, rest = _split(copy, path)
    inner = copy.get(head)
    if rest:
        copy[head] = merged(inner if isinstance(inner, Mapping) else {}, rest, value)
    else:
        copy[head] = _together(inner, value)
    return copy


def _together(there: Any, value: Any) -> Any:
    if not (value and isinstance(value, Mapping) and isinstance(there, Mapping)):
        return value
    return {**there, **{key: _together(there.get(key), it) for key, it in value.items()}}


def _split(nested: Mapping[str, Any], path: str) -> tuple[str, str]:
    """Splits off the first key: the longest that is there, since a name may have dots."""
    parts = path.split(".")
    for count in range(len(parts), 1, -1):
        if ".".join(parts[:count]) in nested:
            return ".".join(parts[:count]), ".".join(parts[count:])
    return parts[0], ".".join(parts[1:])
