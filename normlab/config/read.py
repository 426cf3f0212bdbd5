"""YAML and Python's values as plain records, with the text that each scalar was written as."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# No configuration is larger; what is, as /dev/zero, is another kind of file.
MOST_BYTES = 4 * 2**20
# A few aliases of YAML can stand for more than any memory holds.
MOST_VALUES = 20_000
DEEPEST = 50

_PREFIX = "tag:yaml.org,2002:"
_WORDS = {"bool": "a truth value", "null": "nothing", "int": "a number", "float": "a number"}
# 010 is 8 and 1:30 is 90 to YAML.
_OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-9.]+)+)")


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-3 is a number, as everywhere else."""


_Loader.add_implicit_resolver(
    f"{_PREFIX}float",
    re.compile(r"[-+]?(\d[\d_]*\.?|\d*\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


class UnreadableError(Exception):
    """A text is no YAML at all; the message says why."""


@dataclass
class Given:
    """What was given.

    Attributes:
        texts: Path of each scalar that YAML does not read as text -> how it was written.
        problems: Path -> what is wrong there.
    """

    texts: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def from_yaml(self, text: str, path: str = "") -> Any:
        """Returns the values of a YAML text; notes what is wrong with them.

        Args:
            text: The text.
            path: Where its values belong.

        Raises:
            UnreadableError: It is no YAML.
        """
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            return None if node is None else self._values(loader, node, path, _Limit())
        except ValueError as error:
            raise UnreadableError("cannot be read as YAML: a number has too many digits") from error
        except yaml.YAMLError as error:
            raise UnreadableError(f"cannot be read as YAML: {_in_a_line(error)}") from error
        except RecursionError as error:
            what = f"more than {DEEPEST} levels in each other"
            raise UnreadableError(f"cannot be read as YAML: {what}") from error

    def from_python(self, value: Any, path: str = "") -> Any:
        """Returns Python's values as a file would have them; notes what a file could not have.

        Raises:
            UnreadableError: They are too many, or contain themselves.
        """
        return self._plain(value, path, _Limit())

    def _values(self, loader: _Loader, node: yaml.Node, path: str, limit: "_Limit") -> Any:
        limit.count(path)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_PREFIX}map":
            own = [key.value for key, _ in node.value if key.tag != f"{_PREFIX}merge"]
            twice = {key for key in own if isinstance(key, str) and own.count(key) > 1}
            loader.flatten_mapping(node)  # Keys that come by << come first.
            values = {}
            for key_node, value_node in node.value:
                key = self._key(loader, key_node, path)
                at = joined(path, key)
                if key in twice:
                    self.problems[at] = "is given twice; leave out one of the two"
                values[key] = self._values(loader, value_node, at, limit.deeper())
            return values
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_PREFIX}seq":
            return [
                self._values(loader, item, f"{path}[{place}]", limit.deeper())
                for place, item in enumerate(node.value)
            ]
        kind = node.tag.removeprefix(_PREFIX)
        if isinstance(node, yaml.ScalarNode) and kind in ("str", "timestamp", "value"):
            return node.value
        if isinstance(node, yaml.ScalarNode) and kind in _WORDS:
            self.texts[path] = node.value
            value = loader.construct_object(node)
            if kind in ("int", "float") and _OTHER_BASE.fullmatch(node.value):
                self.problems[path] = (
                    f"{node.value} is {value} to YAML; write {value}, or {node.value!r} for text"
                )
            return _positive_zero(value)
        self.problems[path] = f"has the tag {node.tag}; expected text, a number or a list"
        return None

    def _key(self, loader: _Loader, node: yaml.Node, path: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self.problems[path] = "has a list or keys and values as a key; expected text"
            return "?"
        kind = node.tag.removeprefix(_PREFIX)
        if kind in _WORDS:
            self.problems[joined(path, node.value)] = (
                f"the name {node.value or '(empty)'} is {_WORDS[kind]} to YAML; quote it: "
                f"{node.value!r}"
            )
        return node.value

    def _plain(self, value: Any, path: str, limit: "_Limit") -> Any:
        limit.count(path)
        if hasattr(value, "tolist"):  # NumPy's and JAX's arrays and numbers
            value = value.tolist()
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    what = f"the name {key!r} is no text; write {str(key)!r}"
                    self.problems[joined(path, str(key))] = what
            return {
                str(key): self._plain(of_key, joined(path, str(key)), limit.deeper())
                for key, of_key in value.items()
            }
        if isinstance(value, list | tuple):
            return [
                self._plain(item, f"{path}[{place}]", limit.deeper())
                for place, item in enumerate(value)
            ]
        if value is None or isinstance(value, bool | int | float | str):
            return _positive_zero(value)
        self.problems[path] = (
            f"{value!r} was given; expected text, a number, true, false, None, a list of these, or "
            "a mapping"
        )
        return None


@dataclass
class _Limit:
    """How much more there may be."""

    left: list[int] = field(default_factory=lambda: [MOST_VALUES])
    depth: int = 0

    def deeper(self) -> "_Limit":
        return _Limit(self.left, self.depth + 1)

    def count(self, path: str) -> None:
        """Counts one more value.

        Raises:
            UnreadableError: That is too many, or too deep.
        """
        self.left[0] -= 1
        if self.depth > DEEPEST:
            head = re.split(r"[.\[]", path)[0]
            raise UnreadableError(
                f"{head}: more than {DEEPEST} levels in each other; does it contain itself?"
            )
        if self.left[0] < 0:
            raise UnreadableError(f"more than {MOST_VALUES} values, with what aliases stand for")


def joined(path: str, key: str) -> str:
    """A path with one more key."""
    return f"{path}.{key}" if path else key


def _in_a_line(error: Exception) -> str:
    mark: Any = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    what = f"{getattr(error, 'problem', error)}"
    return f"{what} (line {mark.line + 1}, column {mark.column + 1})"


def _positive_zero(value: Any) -> Any:
    return 0.0 if isinstance(value, float) and value == 0 else value


def text_of(path: Path) -> str:
    """Returns the text of a file, or of a pipe.

    Raises:
        UnreadableError: That says what is there instead.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise UnreadableError(f"is larger than {MOST_BYTES >> 20} MiB; expected a YAML file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"is no text in UTF-8: byte {content[error.start]:#04x} at {error.start}; save "
            "the file as UTF-8"
        ) from error
