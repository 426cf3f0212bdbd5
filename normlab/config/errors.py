"""What is wrong with a configuration, said in one style and all at once."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ..errors import UserError, nearest

# Of a message, which a terminal shows whole, and of one line of it.
MOST_SIGNS, MOST_IN_A_LINE = 4_000, 600


class ConfigError(UserError):
    """A configuration cannot be used; the message lists every problem with its path.

    A message that would be longer than a terminal shows has the first problems and the number of
    the others; `problems` has all.

    Args:
        source: The file, or what else was read.
        problems: One line each. What a line cannot have is escaped, and a long one cut inside.
    """

    def __init__(self, source: str, problems: Sequence[str]):
        self.problems = [_in_a_line(problem) for problem in problems]
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines, left = [f"{_in_a_line(source)}: {count}"], MOST_SIGNS - MOST_IN_A_LINE
        for told, problem in enumerate(self.problems):
            left -= len(problem) + 3
            if left < 0:
                lines.append(f"  ... and {len(self.problems) - told} more")
                break
            lines.append(f"  {problem}")
        super().__init__("\n".join(lines))


def _in_a_line(text: str) -> str:
    if len(text) > MOST_IN_A_LINE:
        half = MOST_IN_A_LINE // 2 - 5
        text = f"{text[:half]} ... {text[-half:]}"
    signs = (it if it.isprintable() else it.encode("unicode_escape").decode() for it in text)
    escaped = "".join(signs)
    return escaped if len(escaped) <= MOST_IN_A_LINE else f"{escaped[: MOST_IN_A_LINE - 4]} ..."


def problems(
    error: ValidationError, schema: Mapping[str, Any], texts: Mapping[str, str]
) -> dict[str, str]:
    """Turns the findings of pydantic into sentences.

    Args:
        error: What pydantic found.
        schema: The JSON schema of what was validated, which knows the valid names.
        texts: Path of each scalar that YAML does not read as text -> how it was written.

    Returns:
        One sentence for each dotted path at which something is wrong.
    """
    found: dict[str, str] = {}
    short: set[str] = set()
    for finding in error.errors(include_url=False):
        location = finding["loc"]
        if location[-1:] == ("[key]",):  # a name, which is told where it stands
            location = location[:-1]
        path, known = _follow(location, schema)
        # Each type of a union that does not fit is a finding of its own; one is enough.
        found.setdefault(path, _unquoted(finding, path, texts) or _sentence(finding, known))
        if finding["type"] == "too_short":
            short.add(path)
    # A list is too short as well when its entries have problems, since those do not count.
    return {
        path: what
        for path, what in found.items()
        if path not in short
        or not any(other.startswith((f"{path}[", f"{path}.")) for other in found)
    }


# Words of configuration files for what pydantic calls by its Python types.
_PLAIN = dict.fromkeys(
    ("model_type", "model_attributes_type", "dict_type"), "should be keys and values"
) | dict.fromkeys(("tuple_type", "list_type"), "should be a list")


def _unquoted(finding: Any, path: str, texts: Mapping[str, str]) -> str | None:
    """Says that a text must be quoted where something else was given for one."""
    kind, given, context = finding["type"], finding["input"], finding.get("ctx", {})
    if kind == "union_tag_invalid":
        name = context["discriminator"].strip("'")
        given, path = (given or {}).get(name), f"{path}.{name}"
    elif kind != "string_type" and not (kind == "literal_error" and "'" in context["expected"]):
        return None
    if not (given is None or isinstance(given, bool | int | float)):
        return None
    text = texts.get(path, "null" if given is None else str(given).lower())
    read = (
        "nothing" if given is None else "true or false" if isinstance(given, bool) else "a number"
    )
    return f"{text or '(empty)'} is {read} to YAML, but a text is expected; quote it: {text!r}"


def _sentence(finding: Any, known: Sequence[str]) -> str:
    kind, given, context = finding["type"], finding["input"], finding.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{nearest(str(finding['loc'][-1]), known)}"
    if kind == "missing":
        return "is missing"
    if kind == "union_tag_not_found":
        return f"needs the key {context['discriminator']}"
    if kind == "union_tag_invalid":
        tags = [tag.strip("'") for tag in context["expected_tags"].split(", ")]
        name = context["discriminator"].strip("'")
        return f"unknown {name} {context['tag']!r}{nearest(context['tag'], tags)}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        return f"{given!r} is not known{nearest(str(given), choices)}"
    if kind == "value_error":
        return str(context["error"])
    if isinstance(given, bool) and kind.startswith(("less_than", "greater_than")):
        return f"expected a number, but {str(given).lower()} was given"
    if kind == "string_pattern_mismatch":
        return (
            f"expected letters, digits, _, - and dots, a letter, digit or _ first, but "
            f"{shortened(given)} was given"
        )
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        side, bound = ("least", "min_length") if "short" in kind else ("most", "max_length")
        count, text = context[bound], kind.startswith("string")
        what = ("character", "characters") if text else ("entry", "entries")
        number = f"at {side} {count} {what[count != 1]}"
        return f"expected {number}, but {shortened(given)} was given"
    message = _PLAIN.get(kind, finding["msg"].removeprefix("Input "))
    return f"{message}, but {shortened(given)} was given{_as_share(finding)}"


def shortened(given: Any) -> str:
    """What was given, cut where it is long."""
    told = repr(given)
    return told if len(told) <= 200 else f"{told[:200]}..."


def _as_share(finding: Any) -> str:
    """What was probably meant where a percentage stands for a share."""
    kind, given, context = finding["type"], finding["input"], finding.get("ctx", {})
    if kind == "float_parsing" and (percent := re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*%\s*", given)):
        if str(finding["loc"][-1]).endswith("_points"):
            return f"; {given.strip()} is {float(percent[1]):g} points"
        return f"; {given.strip()} as a share is {float(percent[1]) / 100:g}"
    limit = context.get("lt", context.get("le"))
    number = isinstance(given, int | float)
    if limit is not None and 0 < limit <= 1 and number and 2 <= given <= 100:
        return f"; {given:g}% as a share is {given / 100:g}"
    return ""


def _follow(location: Sequence[str | int], schema: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Walks down a schema.

    Returns:
        The dotted path as the user wrote it, without the tags that pydantic adds for the members of
        unions, and the names that are known where the last step was taken.
    """
    path, known = "", []
    nodes = [schema]
    for step in location:
        if any("oneOf" in node and "discriminator" not in node for node in nodes):
            nodes = [part for node in nodes for part in node.get("oneOf", [node])]
            continue  # the name of a type in a union that is told apart by a function
        nodes = [part for node in nodes for part in _alternatives(node, schema)]
        tagged = [
            node["discriminator"]["mapping"][step]
            for node in nodes
            if step in node.get("discriminator", {}).get("mapping", {})
        ]
        if tagged:
            nodes = [{"$ref": reference} for reference in tagged]
            continue
        known = [name for node in nodes for name in node.get("properties", {})]
        below = [node["properties"][step] for node in nodes if step in node.get("properties", {})]
        kind = "items" if isinstance(step, int) else "additionalProperties"
        inside = [node.get(kind) for node in nodes]
        below = below or [node for node in inside if isinstance(node, dict)]
        if not below and not any("properties" in node for node in nodes):
            continue  # the name of a type in a union
        nodes = below
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path, known


def _alternatives(node: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Resolves references, and spreads out unions that have no discriminator."""
    if "$ref" in node:
        return _alternatives(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    if "anyOf" in node:
        return [part for option in node["anyOf"] for part in _alternatives(option, schema)]
    return [node]
