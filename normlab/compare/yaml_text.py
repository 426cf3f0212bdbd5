"""YAML of plain records, as the folder of a study has its configuration."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

# The parser in C is ten times as fast, and part of the usual installations of PyYAML.
_Loads: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumps: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_DEEPEST = 100


class _Loader(_Loads):
    """YAML 1.1, but 1e-3 is a number, as everywhere else, and a date is text."""


class _Dumper(_Dumps):
    """Quotes texts that `_Loader` would read as something else, and writes no references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _reads in (_Loader, _Dumper):
    _reads.yaml_implicit_resolvers = {
        first: [(tag, it) for tag, it in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in _Loads.yaml_implicit_resolvers.items()
    }
    _reads.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d[\d_]*\.?|\d*\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


# What a configuration reads as a reference, with the backslashes before it.
_REFERENCE = re.compile(r"(\\*)\$\{")


def escaped(value: Any) -> Any:
    """Returns values whose texts a configuration takes as they are: ${x} refers to a key there."""
    return _in_texts(value, lambda found: 2 * found[1] + "\\${")


def unescaped(value: Any) -> Any:
    """Returns what `escaped` was given; references without a backslash stay as they are."""
    return _in_texts(value, lambda found: found[1][: len(found[1]) // 2] + "${")


def _in_texts(value: Any, change: Callable[[re.Match[str]], str]) -> Any:
    if isinstance(value, str):
        return _REFERENCE.sub(change, value)
    if isinstance(value, Mapping):  # Its keys are names, in which nothing is a reference.
        return {key: _in_texts(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_in_texts(inner, change) for inner in value]
    return value


def to_yaml(record: Mapping[str, Any]) -> str:
    """Returns a record of texts, numbers, truth values, lists and records as YAML."""
    return yaml.dump(dict(record), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def from_yaml(text: str) -> Any:
    """Returns what YAML says, of plain values alone.

    Raises:
        yaml.YAMLError: It is no YAML, or has tags of other kinds.
        ValueError: It has more levels in each other than any configuration, or aliases or tags,
            which `to_yaml` never writes.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):  # Building them would overflow the stack of C.
        # A few lines of aliases are millions of values, and a tag has a scalar read as what it
        # may not be.
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise ValueError("an alias or a tag, of which it is written with none")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} levels in each other")
    return yaml.load(text, Loader=_Loader)  # nosec B506 # a safe loader, extended by plain scalars
