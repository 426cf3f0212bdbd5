"""YAML and Python's values as plain records, with the text that each scalar was written as."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..spec import invisible

# No configuration is larger; what is, as /dev/zero, is another kind of file.
MOST_BYTES = 2**20
# A few aliases of YAML can stand for more than any memory holds.
MOST_VALUES = 20_000
DEEPEST = 50
# More than any number of a study has, and few enough for Python to write them down.
MOST_DIGITS = 100

_PREFIX = "tag:yaml.org,2002:"
_WORDS = {"bool": "a truth value", "null": "nothing", "int": "a number", "float": "a number"}
# The core schema of YAML 1.2, section 10.3.2: how a scalar is written, and what its text means.
_CORE: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (re.compile(r"null|Null|NULL|~|"), lambda text: None),
    "bool": (
        re.compile(r"true|True|TRUE|false|False|FALSE"),
        lambda text: text.lower() == "true",
    ),
    "int": (
        re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
        lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    ),
    "float": (
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
        lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
    ),
}
# 010 is 10 to YAML 1.2 and was 8 to YAML 1.1.
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")


class _Loader(yaml.SafeLoader):
    """Composes nodes, no more of them and no deeper than a configuration has."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth, self._left = 0, MOST_VALUES

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth, self._left = self._depth + 1, self._left - 1
        if self._depth > DEEPEST:
            raise UnreadableError(f"cannot be read as YAML: {_TOO_DEEP}")
        if self._left < 0:
            raise UnreadableError(f"cannot be read as YAML: more than {MOST_VALUES} values")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        """The tag of what was written without one; of a quoted scalar that of text."""
        if kind is yaml.ScalarNode and implicit[0]:
            return f"{_PREFIX}{_kind(value)}"
        return super().resolve(kind, value, (False, True))


def _kind(text: str) -> str:
    return next((kind for kind, (form, _) in _CORE.items() if form.fullmatch(text)), "str")


_TOO_DEEP = f"more than {DEEPEST} levels in each other"


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
            node = _Loader(text).get_single_node()
        except yaml.YAMLError as error:
            raise UnreadableError(f"cannot be read as YAML: {_in_a_line(error)}") from error
        except (ValueError, OverflowError) as error:
            raise UnreadableError(
                "cannot be read as YAML: an escape as \\U00110000 names no character of Unicode"
            ) from error
        return None if node is None else self._values(node, path, _Limit())

    def from_python(self, value: Any, path: str = "") -> Any:
        """Returns Python's values as a file would have them; notes what a file could not have.

        Raises:
            UnreadableError: They are too many, or contain themselves.
        """
        return self._plain(value, path, _Limit())

    def _values(self, node: yaml.Node, path: str, limit: "_Limit") -> Any:
        limit.count(path)
        kind = node.tag.removeprefix(_PREFIX)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, path, limit)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [
                self._values(item, f"{path}[{place}]", limit.deeper())
                for place, item in enumerate(node.value)
            ]
        if isinstance(node, yaml.ScalarNode) and kind == "str":
            return self._text(node.value, path)
        if isinstance(node, yaml.ScalarNode) and kind in _CORE:
            return self._scalar(node.value, kind, path)
        self.problems[path] = f"has the tag {node.tag}; expected text, a number or a list"
        return None

    def _mapping(self, node: yaml.MappingNode, path: str, limit: "_Limit") -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode) and (key_node.value, key_node.style) == (
                "<<",
                None,
            ):
                for of_alias in self._merged(value_node, path, limit):
                    merged = of_alias | merged
                continue
            key = self._key(key_node, path)
            at = joined(path, key)
            if key in values:
                self.problems[at] = "is given twice; leave out one of the two"
            values[key] = self._values(value_node, at, limit.deeper())
        return merged | values

    def _merged(self, node: yaml.Node, path: str, limit: "_Limit") -> list[dict[str, Any]]:
        """What `<<: *alias` and `<<: [*one, *other]` bring; the first one counts."""
        brought = self._values(node, path, limit.deeper())
        listed = brought if isinstance(brought, list) else [brought]
        if all(isinstance(each, dict) for each in listed):
            return listed
        self.problems[joined(path, "<<")] = "expected an alias of keys and values, as in <<: *other"
        return []

    def _scalar(self, text: str, kind: str, path: str) -> Any:
        self.texts[path] = text
        form, convert = _CORE[kind]
        if len(text) > MOST_DIGITS and kind in ("int", "float"):
            self.problems[path] = f"a number of {len(text)} signs; expected at most {MOST_DIGITS}"
        elif not form.fullmatch(text):  # which only a tag can bring about
            self.problems[path] = f"{text!r} is not {_WORDS[kind]}, but has the tag !!{kind}"
        elif _LEADING_ZERO.fullmatch(text):
            self.problems[path] = (
                f"{text} is {int(text)} to YAML 1.2 and something else to YAML 1.1; write "
                f"{int(text)}, or {text!r} for text"
            )
        else:
            return _positive_zero(convert(text))
        return None

    def _text(self, text: str, path: str) -> str:
        if found := invisible(text):
            self.problems[path] = f"{text!r} has {found}; leave them out"
        return text

    def _key(self, node: yaml.Node, path: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self.problems[path] = "has a list or keys and values as a key; expected text"
            return "?"
        kind = node.tag.removeprefix(_PREFIX)
        if kind in _WORDS:
            self.problems[joined(path, node.value)] = (
                f"the name {node.value or '(empty)'} is {_WORDS[kind]} to YAML; quote it: "
                f"{node.value!r}"
            )
        return self._name(node.value, path)

    def _name(self, name: str, path: str) -> str:
        if found := invisible(name):
            self.problems[joined(path, name)] = f"the name {name!r} has {found}; leave them out"
        return name

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
                self._name(str(key), path): self._plain(
                    of_key, joined(path, str(key)), limit.deeper()
                )
                for key, of_key in value.items()
            }
        if isinstance(value, list | tuple):
            return [
                self._plain(item, f"{path}[{place}]", limit.deeper())
                for place, item in enumerate(value)
            ]
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, int) and value.bit_length() > 3 * MOST_DIGITS:
            self.problems[path] = f"a number of {value.bit_length()} bits; expected a smaller one"
            return None
        if value is None or isinstance(value, bool | int | float):
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
            raise UnreadableError(f"{head}: {_TOO_DEEP}; does it contain itself?")
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
