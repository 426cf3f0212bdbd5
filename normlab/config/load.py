"""Reading a study: a YAML file, overrides, the user's modules, and every mistake in them."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from ..compare.paths import flatten, with_values
from ..compare.search import Range
from ..compare.study import (
    PARTS,
    TUNABLE_PATHS,
    Study,
    TuneSpec,
    by_path,
    is_tunable,
    study_type,
    with_changes,
)
from ..errors import nearest
from ..modules import import_modules as imported
from ..user_code import explained
from ..variants import OVERRIDABLE
from .errors import ConfigError, problems

# Of a range, a share that lies at no whole number.
_BETWEEN = 1 / math.pi


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Reads a study and checks all of it.

    Args:
        path: A YAML file.
        overrides: Changes as `key=value`, the key a dotted path and the value YAML.

    Returns:
        The study.

    Raises:
        ConfigError: That lists everything that is wrong.
    """
    path = Path(path)
    source = " ".join([str(path), *overrides])
    return check_study(_read(path, overrides, source), path.parent, source)


def make_study(given: Mapping[str, Any] | str | Path | Study, changes: Mapping[str, Any]) -> Study:
    """Makes a study of what Python says, and checks all of it.

    Args:
        given: What a file would say, as a mapping; or the path of a file; or a study.
        changes: Changes by dotted path, or nested.

    Raises:
        ConfigError: That lists everything that is wrong.
    """
    if not isinstance(given, Mapping | str | Path | Study):
        expected = "expected a study: a mapping, the path of a YAML file, or a checked study"
        raise ConfigError("normlab.compare", [f"{given!r} was given; {expected}"])
    if isinstance(given, str | Path):
        path = Path(given)
        raw, folder, source = _read(path, (), str(path)), path.parent, str(path)
    else:
        raw = given.model_dump() if isinstance(given, Study) else _plain(given)
        folder, source = Path(), "normlab.compare"
    return check_study(with_values(raw, flatten(_plain(changes))), folder, source)


def _plain(value: Any) -> Any:
    """What a file would have: lists for tuples, Python's numbers for NumPy's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(it) for key, it in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(it) for it in value]
    return value.item() if isinstance(value, np.generic) else value


def check_study(raw: dict[str, Any], folder: Path, source: str) -> Study:
    """Checks all of a study.

    Args:
        raw: What it says, as nested records.
        folder: Where to look for the modules that it names.
        source: What to call it in an error.

    Raises:
        ConfigError: That lists everything that is wrong.
    """
    modules = raw.get("modules", [])
    if isinstance(modules, list | tuple):  # else a mistake that validation reports
        raw = {**raw, "modules": import_modules(modules, folder, source)}
    model = study_type()
    schema = model.model_json_schema()
    found = _problems(model, schema, raw)
    found |= _override_problems(model, schema, raw, found)
    found |= _variable_problems(model, schema, raw, found)
    variants, baseline = raw.get("variants"), raw.get("baseline")
    if isinstance(variants, dict) and isinstance(baseline, str) and baseline not in variants:
        found["baseline"] = f"{baseline!r} is no variant{nearest(baseline, map(str, variants))}"
    if not found:
        found = _arm_problems(model, schema, model.model_validate(raw))
    if found:
        lines = [f"{where}: {what}" if where else what for where, what in found.items()]
        raise ConfigError(source, lines)
    return model.model_validate(raw)


def _read(path: Path, overrides: Sequence[str], source: str) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError(str(path), ["is a folder; expected a YAML file"])
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob("*.y*ml")) if path.name else []
        raise ConfigError(str(path), [f"no such file{nearest(path.name, there)}"])
    malformed = [
        text for text in overrides if not text.partition("=")[0].strip() or "=" not in text
    ]
    if malformed:
        lines = [f"{text}: expected key=value, as in train.epochs=5" for text in malformed]
        raise ConfigError(source, lines)
    try:
        given = OmegaConf.load(path)
        if not isinstance(given, DictConfig):
            raise ConfigError(source, ["expected keys and values, as in study: NAME"])
        merged = _merged(given, overrides)
        raw: Any = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError, TypeError) as error:
        raise ConfigError(source, [f"cannot be read as YAML: {error}"]) from error
    return {str(key): value for key, value in raw.items()}


def _merged(given: DictConfig, overrides: Sequence[str]) -> Any:
    """Merges overrides into a study; `executor=ray` takes the place of all it says of that."""
    named = [re.sub(r"^executor=(\w+)$", r"executor.name=\1", text) for text in overrides]
    if named != list(overrides):
        given.pop("executor", None)
    elif isinstance(given.get("executor"), str):
        given["executor"] = {"name": given["executor"]}
    return OmegaConf.merge(given, OmegaConf.from_dotlist(named))


def import_modules(modules: Sequence[Any], folder: Path, source: str) -> list[str]:
    """Imports the modules that register variants, as `normlab.modules` says.

    Args:
        modules: Their names, or files beside the configuration.
        folder: Where the configuration lies.
        source: What to call it in an error.

    Returns:
        Their names, those of files as whole paths.

    Raises:
        ConfigError: If some of them cannot be imported; the cause is what the first one raised.
    """
    found, errors = imported(list(map(str, modules)), folder)
    if errors:
        lines = [
            f"modules: {name} cannot be imported: {explained(it)}" for name, it in errors.items()
        ]
        raise ConfigError(source, lines) from next(iter(errors.values()))
    return found


def _problems(model: type[Study], schema: dict[str, Any], raw: dict[str, Any]) -> dict[str, str]:
    try:
        model.model_validate(raw)
    except ValidationError as error:
        return problems(error, schema)
    return {}


def _override_problems(
    model: type[Study], schema: dict[str, Any], raw: dict[str, Any], known: dict[str, str]
) -> dict[str, str]:
    """Tries what each arm overrides in its place.

    Args:
        model: The type of studies.
        schema: Its JSON schema.
        raw: The study as it was given.
        known: What is wrong with it anyway.
    """
    variants = raw.get("variants")
    found = {}
    for name, variant in variants.items() if isinstance(variants, dict) else ():
        given = variant if isinstance(variant, dict) else {}
        parts = {part: given[part] for part in OVERRIDABLE if isinstance(given.get(part), dict)}
        overrides = {path: it for path, it in flatten(parts).items() if is_tunable(path)}
        told = _problems(model, schema, with_values(raw, overrides)) if overrides else {}
        found |= {
            f"variants.{name}.{where}": what for where, what in told.items() if where not in known
        }
    return found


def _variable_problems(
    model: type[Study], schema: dict[str, Any], raw: dict[str, Any], known: dict[str, str]
) -> dict[str, str]:
    """Tries each tuned value, each level of a factor and what each task changes in its place.

    Args:
        model: The type of studies.
        schema: Its JSON schema.
        raw: The study as it was given.
        known: What is wrong with it anyway.
    """
    found = {}
    for section, changes in _variables(raw):
        if section == "tune" and not all(map(is_tunable, changes)):
            what = f"cannot be tuned; expected one of {TUNABLE_PATHS}"
            found |= {f"tune.{path}": what for path in changes}
            continue
        told = _problems(model, schema, with_changes(raw, changes))
        for at, what in told.items():
            for path in changes:
                if (at == path or at.startswith((f"{path}.", f"{path}["))) and at not in known:
                    found[f"{section}.{path}"] = what
    return found


def _variables(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is set in other places than its own: the section, and the values by dotted path."""
    tune, factors, tasks = raw.get("tune"), raw.get("factors"), raw.get("tasks")
    for path, values in by_path(tune if isinstance(tune, dict) else {}).items():
        if path not in TuneSpec.model_fields:
            if isinstance(values, dict):
                values = [values[end] for end in ("low", "high") if end in values]
            yield from (("tune", {path: it}) for it in (values if isinstance(values, list) else []))
    for path, levels in flatten(factors if isinstance(factors, dict) else {}).items():
        for level in levels if isinstance(levels, list) else []:
            yield "factors", {path: level}
    together = {
        f"factors[{place}]": combination
        for place, combination in enumerate(factors if isinstance(factors, list) else [])
    } | {f"tasks.{task}": it for task, it in (tasks if isinstance(tasks, dict) else {}).items()}
    for section, changes in together.items():
        yield section, flatten(changes if isinstance(changes, dict) else {})


def _arm_problems(model: type[Study], schema: dict[str, Any], study: Study) -> dict[str, str]:
    """Tries all arms, each with each tuned value, in a study that has no other problems."""
    found: dict[str, str] = {}
    same: dict[str, str] = {}
    for arm in study.arms():
        base, name = study.with_arm(arm), f"variants.{arm.title}"
        plain = arm.title == arm.variant and not study.variants[arm.variant].overrides()
        of_arm = "" if plain else f" (for {name})"
        wrong = _problems(model, schema, base)
        for where, what in wrong.items():
            found.setdefault(where, what + of_arm)
        if wrong:
            continue
        parts = study.for_arm(arm).model_dump(mode="json", include={*PARTS})
        other = same.setdefault(json.dumps([arm.variant, parts], sort_keys=True), name)
        if other != name:
            found.setdefault("", f"{other} and {name} are the same arm; leave out one of them")
        for path, values in (study.tune.space if study.tune else {}).items():
            between = values.at(_BETWEEN) if isinstance(values, Range) else None
            for value in (
                (values.low, values.high, between) if isinstance(values, Range) else values
            ):
                told = _problems(model, schema, with_values(base, {path: value}))
                for where, what in told.items():
                    what = f"with {value!r}, {where}: {what}" if where != path else what
                    if value is between:
                        what = "a range draws fractions; give a list of whole numbers"
                    found.setdefault(f"tune.{path}", what + of_arm)
    return found
