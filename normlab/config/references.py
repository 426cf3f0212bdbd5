"""What references as ${train.epochs} stand for, counted before anything is put in their places."""

import re
from collections.abc import Mapping
from typing import Any

from .read import DEEPEST, MOST_BYTES, MOST_VALUES, UnreadableError

# A reference, behind an even number of backslashes, to a key without further references in it.
_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*\$\{([^${}]*)\}")
_NESTED = re.compile(r"\$\{[^{}]*\$\{")
_KEYS = re.compile(r"[^.\[\]]+")
_UNDER_WAY = (0, 0, 0)

Path = tuple[str | int, ...]
# Signs, values and levels in each other that a value stands for.
Size = tuple[int, int, int]


def refuse_too_large(raw: Mapping[str, Any]) -> None:
    """Refuses references that stand for more than a configuration can have.

    A few of them that double each other stand for more than any memory holds.

    Raises:
        UnreadableError: That says what they stand for.
    """
    signs, values, levels = _Sizes(raw).of(())
    if signs > MOST_BYTES or values > MOST_VALUES or levels > DEEPEST:
        raise UnreadableError(
            f"its references ${{...}} stand for {_told(values)} values of {_told(signs)} signs in "
            f"{_told(levels)} levels; expected at most {MOST_VALUES} of {MOST_BYTES} in {DEEPEST}"
        )


def _told(number: int) -> str:
    return str(number) if number < 10**9 else "more than 10^9"


class _Sizes:
    """Sizes of the values of a configuration, each counted once.

    Args:
        raw: The configuration.
    """

    def __init__(self, raw: Mapping[str, Any]):
        self._raw = raw
        self._known: dict[Path, Size] = {}

    def of(self, path: Path) -> Size:
        """Returns the size of the value at a path; of one that contains itself anything."""
        if path not in self._known:
            self._known[path] = _UNDER_WAY
            self._known[path] = self._size(_at(self._raw, path), path)
        return self._known[path]

    def _size(self, value: Any, path: Path) -> Size:
        if isinstance(value, Mapping | list):
            keys = value if isinstance(value, Mapping) else range(len(value))
            sizes = [self.of((*path, key)) for key in keys]
            signs = sum(len(key) for key in keys if isinstance(key, str))
            return _sum([(signs, 1, 0), *sizes], deeper=1)
        if not isinstance(value, str):
            return 1, 1, 0
        if _NESTED.search(value):
            raise UnreadableError(
                f"{'.'.join(map(str, path))}: a reference ${{...}} names a key, not one that "
                "another reference tells; write \\${...} for plain text"
            )
        found = [self._target(key, path) for key in _REFERENCE.findall(value)]
        return _sum([(len(value), 1, 0), *(self.of(it) for it in found)])

    def _target(self, key: str, path: Path) -> Path:
        """Returns where a reference leads; from a dot on, beside the text that has it."""
        key = key.strip()
        up = len(key) - len(key.lstrip("."))
        target: Path = path[: len(path) - up] if up else ()
        seen = set()
        for name in map(str.strip, _KEYS.findall(key)):
            # On the way there may be another reference.
            while isinstance(there := _at(self._raw, target), str) and target not in seen:
                seen.add(target)
                if (whole := _REFERENCE.fullmatch(there)) is None:
                    break
                target = self._target(whole[1], target)
            target = (*target, int(name) if isinstance(there, list) and name.isdigit() else name)
        return target


def _at(value: Any, path: Path) -> Any:
    """The value at a path; None for nothing, of which another message tells."""
    for key in path:
        if isinstance(value, Mapping):
            value = value.get(str(key))
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return None
    return value


def _sum(sizes: list[Size], deeper: int = 0) -> Size:
    signs, values, levels = zip(*sizes, strict=True)
    return sum(signs), sum(values), max(levels) + deeper
