"""The base of everything that a configuration file may set."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import core_schema

# What float32 and int32 hold with room to compute: beyond, a number would become another one.
LARGEST, SMALLEST, LARGEST_WHOLE = 1e30, 1e-30, 2**31 - 1

# What the labels of a data set are, as `Objective.targets` says.
Targets = Literal["classes", "flags", "values", "positions", "none"]

# Widths, epochs and the like. What is larger than this is a slip of the keyboard.
Count = Annotated[int, Field(gt=0, le=1_000_000)]
# What is built, started or traced one by one.
Few = Annotated[int, Field(gt=0, le=1_000)]


class Spec(BaseModel):
    """A frozen, hashable record whose unknown keys are errors.

    Each floor of the package describes what it can be told in a `Spec` of its own; a study is
    composed of them. Numbers and truth values may be given as text, as in "0.1" and "true", but a
    truth value is no number, and a number no truth value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Has every field, of subclasses too, check that it means what was given for it."""
        schema = handler(source)
        inner: Any = handler.resolve_ref_schema(schema)
        while inner["type"] != "model-fields":
            inner = inner["schema"]
        for field in inner["fields"].values():
            while field["schema"]["type"] == "default":
                field = field["schema"]
            # Words are compared as they are; a union is told apart by a field of bare words.
            # Pydantic hands out the schema of a class anew, with what was done to it before.
            if not (_are_words(field["schema"]) or _is_checked(field["schema"])):
                field["schema"] = core_schema.no_info_wrap_validator_function(
                    _as_given, field["schema"]
                )
        return schema


# As YAML has numbers; Python reads 1_0 as 10.
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def _are_words(schema: Any) -> bool:
    return schema["type"] == "literal" and all(isinstance(it, str) for it in schema["expected"])


def _is_checked(schema: Any) -> bool:
    return schema["type"] == "function-wrap" and schema["function"]["function"] is _as_given


def _as_given(given: Any, validate: Callable[[Any], Any]) -> Any:
    value = validate(given)
    _check(given, value)
    return value


def _check(given: Any, value: Any) -> None:
    """Refuses what became another kind of thing, or would become another number.

    Raises:
        ValueError: That says what was given.
    """
    if isinstance(value, bool):
        if not (isinstance(given, bool) or str(given).lower() in ("true", "false")):
            raise ValueError(f"expected true or false, but {given!r} was given")
    elif isinstance(value, int | float):
        if isinstance(given, str) and not _NUMBER.fullmatch(given):
            raise ValueError(f"expected a number, but {given!r} was given")
        if isinstance(given, bool):
            raise ValueError(f"expected a number, but {str(given).lower()} was given")
        if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
            raise ValueError(f"{given} is too large; expected at most {LARGEST_WHOLE}")
        if value and not SMALLEST <= abs(value) <= max(LARGEST, LARGEST_WHOLE):
            raise ValueError(
                f"{given} cannot be computed with in float32; expected a size between "
                f"{SMALLEST:g} and {LARGEST:g}"
            )
    elif isinstance(value, list | tuple) and isinstance(given, list | tuple):
        for one, other in zip(given, value, strict=False):
            _check(one, other)
    elif isinstance(value, Mapping) and isinstance(given, Mapping):
        for key in value:
            _check(given.get(key), value[key])


# Categories of Unicode of which one sees nothing, or which turn what stands around them.
_UNSEEN = {
    "Cc": "a control character",
    "Cn": "a character that Unicode has not",
    "Co": "a character of private use",
    "Cf": "an invisible character",
    "Cs": "half of a character",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}


# Letters and signs that are blank, and those that choose how the one before them looks.
_BLANK = re.compile("[\u115f\u1160\u2800\u3164\uffa0\u034f\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f]")


def invisible(text: str) -> str:
    """Names the characters of a text that nobody sees, as "a control character (U+0007)"."""
    found = {sign: _unseen(sign) for sign in text if _unseen(sign)}
    told = [f"{what} (U+{ord(sign):04X})" for sign, what in found.items()]
    return ", ".join(told[:3])


def _unseen(sign: str) -> str | None:
    return "a blank character" if _BLANK.match(sign) else _UNSEEN.get(unicodedata.category(sign))


def displayed(text: str) -> str:
    """A text as charts and pages can have it: what nobody sees is escaped.

    SVG has no control characters, and Vega keeps what is on an axis as keys of an object.
    """
    if text.isascii() and text.isprintable() and text != "__proto__":
        return text
    if text == "__proto__":
        return f'"{text}"'
    return "".join(
        sign.encode("unicode_escape").decode() if _unseen(sign) else sign for sign in text
    )
