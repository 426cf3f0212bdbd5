"""Fingerprints: of studies, and of source code that results depend on."""

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, EllipsisType, FunctionType, NoneType
from typing import Any

from ..modules import source_of

# What results do not depend on: what the study is called, where its code is found, where its runs
# are made, and what is kept of them.
_INDIFFERENT = ("study", "modules", "executor", "mesh", "keep", "log", "probes")
# Likewise, within the parts.
CHANGES_NO_NUMBER = ("train.checkpoint_every", "data.stream")
# Fields that studies once had not, and the value with which they are as they were.
_ONCE_NO_FIELD = {"tune.stop_early": False, "data.order": "shuffled"}


def of_config(config: Mapping[str, Any]) -> str:
    """Hashes what a resolved configuration says of its results.

    Args:
        config: With all defaults, as a study is written to its folder.
    """
    content = json.dumps(telling(config), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def telling(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a resolved configuration says of its results."""
    told = {key: value for key, value in config.items() if key not in _INDIFFERENT}
    for path in (*CHANGES_NO_NUMBER, *_ONCE_NO_FIELD):
        part, _, field = path.partition(".")
        there = told.get(part)
        if not isinstance(there, Mapping):
            continue
        if path in CHANGES_NO_NUMBER or there.get(field) == _ONCE_NO_FIELD[path]:
            told[part] = {key: value for key, value in there.items() if key != field}
    return told


@functools.cache
def of_normlab() -> str:
    """Hashes the source of normlab that results depend on."""
    package = Path(__file__).parents[1]
    parts = ("functional", "linen", "models", "objectives", "data", "train")
    files = [
        package / "variants.py",
        *(f for part in parts for f in (package / part).rglob("*.py")),
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def of_user_code(module: Callable[..., Any]) -> str | None:
    """Hashes the code of a user's layer, model or objective; None for normlab's own.

    That is the file it stands in; of a file beside a study, with the neighbours that it imports,
    as they were when they were loaded. In a notebook, where there is none, it is the class with all
    that it names there.
    """
    if module.__module__.split(".")[0] == __name__.split(".")[0]:
        return None
    if (loaded := source_of(module.__module__)) is not None:
        return hashlib.sha256(loaded).hexdigest()
    try:
        source = inspect.getsource(inspect.getmodule(module))  # pyright: ignore[reportArgumentType]
    except (TypeError, OSError):
        source = "\n".join(_described(module, module.__module__, set()))
    return hashlib.sha256(source.encode()).hexdigest()


def _described(value: Any, home: str, seen: set[int]) -> Iterator[str]:
    """Describes a value, the same way in every process.

    Args:
        value: The value.
        home: The module whose functions and classes are described by their code; others are by
            their names.
        seen: What was described before.
    """
    if isinstance(value, tuple | list):
        for part in value:
            yield from _described(part, home, seen)
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield f"{key}:"
            yield from _described(value[key], home, seen)
    elif isinstance(value, frozenset):
        yield repr(sorted(value, key=repr))
    elif isinstance(value, CodeType):
        yield repr((value.co_code, value.co_names, value.co_varnames))
        yield from _described(value.co_consts, home, seen)
    elif getattr(value, "__module__", None) != home:
        name = getattr(value, "__qualname__", None)
        yield f"{getattr(value, '__module__', '')}.{name}" if name else _plain(value)
    elif id(value) not in seen:
        seen.add(id(value))
        function = inspect.unwrap(value) if callable(value) else value
        if isinstance(function, FunctionType):
            named = {name: function.__globals__.get(name) for name in _names(function.__code__)}
            parts = (function.__code__, function.__defaults__, function.__kwdefaults__, named)
            yield from _described(parts, home, seen)
        elif isinstance(value, type):
            # Not what Python and dataclasses add, as the number of the first line.
            methods = ("__call__", "__post_init__")
            own = {
                name: it
                for name, it in vars(value).items()
                if name in methods or not name.startswith("__")
            }
            yield from _described((own, value.__bases__), home, seen)


def _plain(value: Any) -> str:
    plain = isinstance(value, bool | int | float | complex | str | bytes | NoneType | EllipsisType)
    return repr(value) if plain else type(value).__qualname__


def _names(code: CodeType) -> set[str]:
    inner = (it for it in code.co_consts if isinstance(it, CodeType))
    return set(code.co_names).union(*map(_names, inner))
