"""Reading a study: a YAML file, overrides, the user's modules, and every mistake in them."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from ..compare.arm import field_of_layer, is_of_layer
from ..compare.paths import flatten, merged, with_values
from ..compare.search import Range
from ..compare.study import (
    PARTS,
    TUNABLE_PATHS,
    Study,
    TuneSpec,
    as_understood,
    by_path,
    is_tunable,
    of_one_length,
    study_type,
    with_changes,
)
from ..compare.yaml_text import escaped
from ..errors import nearest
from ..modules import import_modules as imported
from ..user_code import explained
from ..variants import OVERRIDABLE, VARIANTS, settable_fields
from .errors import ConfigError, problems, shortened
from .read import Given, UnreadableError, joined, text_of
from .references import refuse_too_large

# So many values of a path are tried each by itself; the others once the rest is right.
_TRIED = 100
_TRIED_IN_LAYERS = 1_000  # all variants together
# Of a range, a share that lies at no whole number.
_BETWEEN = 1 / math.pi


def load_study(
    path: str | Path, overrides: Sequence[str] = (), *, devices_are_here: bool = True
) -> Study:
    """Reads a study and checks all of it.

    Args:
        path: A YAML file.
        overrides: Changes as `key=value`, the key a dotted path and the value YAML.
        devices_are_here: Whether a mesh must be of devices that this process has now.

    Returns:
        The study.

    Raises:
        ConfigError: That lists everything that is wrong.
    """
    path = Path(path)
    source = " ".join([str(path), *overrides])
    given = Given()
    raw = _with_overrides(_read(path, given, source), overrides, given, source)
    study = check_study(raw, path.parent, source, given)
    if devices_are_here:
        _refuse_missing_devices(study, source)
    return study


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
    told, folder, source = Given(), Path(), "normlab.compare"
    if isinstance(given, str | Path):
        path = Path(given)
        folder, source = path.parent, str(path)
        raw = _read(path, told, source)
    else:
        raw = _plain(escaped(given.model_dump()) if isinstance(given, Study) else given, told)
    raw = _with_changes(_dotted(raw), _dotted(_plain(changes, told)))
    study = check_study(raw, folder, source, told)
    _refuse_missing_devices(study, source)
    return study


def _refuse_missing_devices(study: Study, source: str) -> None:
    # Only where it makes runs on several: asked for its devices, JAX takes them.
    if study.mesh.size > 1 and study.executor.name == "local":
        try:
            study.mesh.devices()
        except ValueError as error:
            raise ConfigError(source, [str(error)]) from error


def _with_changes(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Puts changes in their places; one of a run's length takes the place of what others are."""
    for key, value in changes.items():
        section, dot, _ = key.partition(".")
        if dot and section in _DOTTED:  # Below these all keys are paths.
            raw = with_values(raw, flatten({key: value}))
        else:  # Its key is a dotted path, and keys within the value are names.
            raw = merged(raw, key, value)
    return of_one_length(raw, flatten(changes))


def _plain(value: Mapping[str, Any], told: Given) -> dict[str, Any]:
    try:
        plain = told.from_python(value)
    except UnreadableError as error:
        raise ConfigError("normlab.compare", [str(error)]) from error
    told.problems |= _given_twice(plain)
    return plain


def check_study(raw: dict[str, Any], folder: Path, source: str, given: Given) -> Study:
    """Checks all of a study.

    Args:
        raw: What it says, as nested records.
        folder: Where to look for the modules that it names.
        source: What to call it in an error.
        given: How it was written, and what is wrong with that.

    Raises:
        ConfigError: That lists everything that is wrong.
    """
    raw = _resolved(raw, source)
    # A study that names none is without the layers of another one, too.
    modules = raw.get("modules", [])
    # Anything else is a mistake that validation reports.
    if isinstance(modules, list) and all(isinstance(name, str) for name in modules):
        raw = {**raw, "modules": import_modules(modules, folder, source)}
    check = _Check(study_type(), given.texts)
    # What is no value at all comes to validation as None, and has been told.
    found = given.problems | {
        path: what for path, what in check.problems(raw).items() if path not in given.problems
    }
    found |= _former_names(raw)
    found |= _override_problems(check, raw, found)
    found |= _variable_problems(check, raw, found)
    variants, baseline = raw.get("variants"), raw.get("baseline")
    if isinstance(variants, dict) and isinstance(baseline, str) and baseline not in variants:
        found["baseline"] = f"{baseline!r} is no variant{nearest(baseline, variants)}"
    if not found:
        raw = as_understood(check.model.model_validate(raw))
        found = check.problems(raw)
    if not found:
        found = _arm_problems(check, check.model.model_validate(raw))
    if found:
        lines = [f"{where}: {what}" if where else what for where, what in found.items()]
        raise ConfigError(source, lines)
    return check.model.model_validate(raw)


class _Check:
    """Validates studies.

    Args:
        model: The type of studies.
        texts: How scalars were written.
    """

    def __init__(self, model: type[Study], texts: Mapping[str, str]):
        self.model = model
        self._texts = texts

    @cached_property
    def _schema(self) -> dict[str, Any]:
        return self.model.model_json_schema()

    def problems(self, raw: Mapping[str, Any]) -> dict[str, str]:
        """What is wrong with a study, by dotted path."""
        try:
            self.model.model_validate(raw)
        except ValidationError as error:
            return problems(error, self._schema, self._texts)
        return {}


def _former_names(raw: Mapping[str, Any]) -> dict[str, str]:
    """Tells what became of `target_accuracy` and of `train.label_smoothing`."""
    found = {}
    if "label_smoothing" in _section(raw, "train"):
        found["train.label_smoothing"] = "is now objective.label_smoothing; rename it"
    if "target_accuracy" in raw:
        found["target_accuracy"] = "is now target; rename it"
    return found


def _read(path: Path, given: Given, source: str) -> dict[str, Any]:
    """Reads a file, or a pipe."""
    try:
        if path.is_dir():
            raise ConfigError(str(path), ["is a folder; expected a YAML file"])
        if path.is_symlink() and not path.exists():
            raise ConfigError(str(path), [f"is a link to {path.readlink()}, which does not exist"])
        if not path.exists():
            there = sorted(file.name for file in path.parent.glob("*.y*ml")) if path.name else []
            raise ConfigError(str(path), [f"no such file{nearest(path.name, there)}"])
        raw = given.from_yaml(text_of(path))
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except UnreadableError as error:
        raise ConfigError(source, [str(error)]) from error
    if not isinstance(raw, dict):
        raise ConfigError(source, ["expected keys and values, as in study: NAME"])
    given.problems |= _given_twice(raw)
    return raw


def _with_overrides(
    raw: dict[str, Any], overrides: Sequence[str], given: Given, source: str
) -> dict[str, Any]:
    """Puts overrides in their places; `executor=ray` takes the place of all it says of that."""
    malformed = [text for text in overrides if not all(it.strip() for it in text.split("=", 1))]
    if malformed := malformed + [text for text in overrides if "=" not in text]:
        expected = "expected key=value, as in train.epochs=5; for no value key=null"
        raise ConfigError(source, [f"{text}: {expected}" for text in dict.fromkeys(malformed)])
    keys = [text.partition("=")[0].strip() for text in overrides]
    raw = _dotted(raw)
    if isinstance(raw.get("executor"), str):
        raw["executor"] = {"name": raw["executor"]}
    changes: dict[str, Any] = {}
    for key, text in zip(keys, overrides, strict=True):
        if keys.count(key) > 1:
            given.problems[key] = "is given twice on the command line; leave out one of the two"
        try:
            value = given.from_yaml(text.partition("=")[2], key)
        except UnreadableError as error:
            given.problems[key] = str(error)
            continue
        if key == "executor" and isinstance(value, str):
            raw["executor"] = {"name": value}
        else:
            changes |= _dotted({key: value})
    return _with_changes(raw, changes)


def _resolved(raw: Mapping[str, Any], source: str) -> Any:
    """Puts what references as ${train.epochs} mean in their places."""
    if called := next(filter(_calls, _texts(raw)), None):
        told = (
            f"{shortened(called)}: a reference names a key, as ${{train.epochs}}, and calls nothing"
        )
        raise ConfigError(source, [f"{told}; write \\${{...}} for plain text"])
    try:
        refuse_too_large(raw)
        return OmegaConf.to_container(OmegaConf.create(dict(raw)), resolve=True)
    except UnreadableError as error:
        raise ConfigError(source, [str(error)]) from error
    except (OmegaConfBaseException, RecursionError) as error:
        what = str(error).splitlines()[0]
        told = f"a reference ${{...}} cannot be followed: {what}; write \\${{...}} for plain text"
        raise ConfigError(source, [told]) from error


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _calls(text: str) -> bool:
    """Whether a reference in a text would call what reads the environment or makes other values."""
    depth = 0
    for sign in re.finditer(r"(\\*)\$\{|[:}]", text):
        if sign[0].endswith("{"):
            depth += len(sign[1]) % 2 == 0  # Behind a backslash it is plain text.
        elif sign[0] == ":" and depth:
            return True
        elif sign[0] == "}":
            depth = max(0, depth - 1)
    return False


def _dotted(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Writes what is set by path with dots alone, so that changes come after what they change."""
    raw = dict(raw)
    for section, dotted in _DOTTED.items():
        if isinstance(raw.get(section), Mapping):
            raw[section] = dotted(raw[section])
    return raw


def _dotted_tasks(tasks: Mapping[str, Any]) -> dict[str, Any]:
    return {name: flatten(it) if isinstance(it, Mapping) else it for name, it in tasks.items()}


# Sections whose keys are paths, tasks' below their names -> how they are written with dots alone.
_DOTTED = {"tune": by_path, "factors": flatten, "tasks": _dotted_tasks}


def _given_twice(raw: Any) -> dict[str, str]:
    """Finds what is given both by a dotted key and by nested ones."""
    counts = Counter(_leaves(raw))
    return {
        path: "is given twice, once with a dotted key; leave out one of the two"
        for path, count in counts.items()
        if count > 1
    }


def _leaves(raw: Any, path: str = "") -> Iterator[str]:
    if isinstance(raw, Mapping) and raw:
        for key, value in raw.items():
            yield from _leaves(value, joined(path, key))
    elif isinstance(raw, list) and any(isinstance(value, Mapping) for value in raw):
        for place, value in enumerate(raw):
            yield from _leaves(value, f"{path}[{place}]")
    else:
        yield path


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


def _override_problems(
    check: _Check, raw: dict[str, Any], known: Mapping[str, str]
) -> dict[str, str]:
    """Tries what each arm overrides in its place.

    Args:
        check: Validates studies.
        raw: The study as it was given.
        known: What is wrong with it anyway.
    """
    found = {}
    for name, variant in _section(raw, "variants").items():
        given = variant if isinstance(variant, dict) else {}
        parts = {part: given[part] for part in OVERRIDABLE if isinstance(given.get(part), dict)}
        overrides = {path: it for path, it in flatten(parts).items() if is_tunable(path)}
        told = check.problems(with_values(_alone(raw, name), overrides)) if overrides else {}
        found |= {
            f"variants.{name}.{where}": what for where, what in told.items() if where not in known
        }
    return found


def _variable_problems(
    check: _Check, raw: dict[str, Any], known: Mapping[str, str]
) -> dict[str, str]:
    """Tries each tuned value, each level of a factor and what each task changes in its place.

    Args:
        check: Validates studies.
        raw: The study as it was given.
        known: What is wrong with it anyway.
    """
    layers = _layers(raw)
    found: dict[str, str] = {}
    tried: Counter[str] = Counter()
    for section, changes in _variables(raw):
        if section == "tune" and not all(map(is_tunable, changes)):
            what = f"cannot be tuned; expected one of {TUNABLE_PATHS}"
            found |= {f"tune.{path}": what for path in changes}
            continue
        # What is no factor at all is told with the factors.
        of_layers = {
            path: value
            for path, value in changes.items()
            if is_of_layer(path) and (section == "tune" or path.startswith("layer."))
        }
        shared = {path: value for path, value in changes.items() if not is_of_layer(path)}
        told = check.problems(with_changes(_alone(raw), shared)) if shared else {}
        for path, value in of_layers.items():
            if what := _misplaced(section, path, layers, raw):
                found[f"{section}.{path}"] = what
                continue
            for variant, fields in layers.items():
                field = field_of_layer(path, variant, fields)
                if field and tried[path] < _TRIED_IN_LAYERS:
                    tried[path] += 1
                    changed = with_changes(_alone(raw, variant), {path: value}, variant)
                    wrong = check.problems(changed)
                    at = f"variants.{variant}"
                    for where in (f"{at}.{field}", at):
                        if where in wrong and where not in known:
                            of_variant = "" if path.startswith(at) else f" (for {at})"
                            found.setdefault(f"{section}.{path}", wrong[where] + of_variant)
        for at, what in told.items():
            for path in shared:
                if (at == path or at.startswith((f"{path}.", f"{path}["))) and at not in known:
                    found[f"{section}.{path}"] = what
    return found


def _alone(raw: Mapping[str, Any], variant: str | None = None) -> dict[str, Any]:
    """A study of one of its variants, by default the first, without search, factors and tasks.

    The whole is checked by itself; with what is tried in its parts it would be checked so often
    that the cost grows with the square of its size.
    """
    variants = _section(raw, "variants")
    name = next(iter(variants), None) if variant is None else variant
    own = {name: variants[name]} if name is not None else raw.get("variants")
    left_out = {"baseline": "", "tune": None, "factors": {}, "tasks": {}}
    return {**raw, "variants": own, **left_out}


def _layers(raw: Mapping[str, Any]) -> dict[str, set[str]]:
    """Variant -> the fields of its layer that can be set, of variants whose layer is known."""
    named = {
        name: VARIANTS.get(str(given.get("layer")))
        for name, given in _section(raw, "variants").items()
        if isinstance(given, dict)
    }
    return {name: {*settable_fields(it.layer)} for name, it in named.items() if it}


def _misplaced(
    section: str, path: str, layers: Mapping[str, set[str]], raw: Mapping[str, Any]
) -> str | None:
    """Says why a field of layers cannot be set at a path of `tune` or `factors`, if it cannot."""
    name = path.rpartition(".")[2]
    fields = {variant: field_of_layer(path, variant, of_it) for variant, of_it in layers.items()}
    having = [variant for variant, field in fields.items() if field]
    if not having:
        own = next((it for it in layers if path.startswith(f"variants.{it}.")), None)
        if path.startswith("variants.") and own is None:
            variant = path.removeprefix("variants.").rpartition(".")[0]
            return f"cannot be tuned; {variant!r} is no variant{nearest(variant, layers)}"
        known = sorted(layers[own] if own else set.union(set(), *layers.values()))
        whose = f"the layer of {own}" if own else "no variant's layer"
        has = "has no such field" if own else "has such a field"
        return f"cannot be tuned or a factor; {whose} {has}{nearest(name, known)}"
    lacking = [variant for variant in layers if variant not in having]
    if section == "factors" and lacking:
        return (
            f"the layers of {', '.join(lacking)} have no such field, but a factor is crossed with "
            "every variant; leave these out, or write each level as a variant of its own, as in "
            f"{having[0]}_1: {{layer: ..., {name}: ...}}"
        )
    tuned, crossed = by_path(_section(raw, "tune")), flatten(_section(raw, "factors"))
    for variant in having:
        # A resolved study has all defaults written out, which nobody chose.
        default = VARIANTS[raw["variants"][variant]["layer"]].layer.__dataclass_fields__[name]
        given = raw["variants"][variant].get(name, default.default)
        own = f"variants.{variant}.{name}"
        if path != own and (given != default.default or own in tuned):
            return f"{own}: given for an arm, but also for all; leave out one of the two"
        if section == "tune" and f"layer.{name}" in crossed:
            return f"factors.layer.{name}: a factor of every arm, but tuned; leave out one of them"
    return None


def _section(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section of keys and values; empty where something else was given for one."""
    return given if isinstance(given := raw.get(name), dict) else {}


def _variables(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is set in other places than its own: the section, and the values by dotted path."""
    for path, values in by_path(_section(raw, "tune")).items():
        if path not in TuneSpec.model_fields:
            if isinstance(values, dict):
                values = [values[end] for end in ("low", "high") if end in values]
            for value in values[:_TRIED] if isinstance(values, list) else []:
                yield "tune", {path: value}
    for path, levels in flatten(_section(raw, "factors")).items():
        for level in levels[:_TRIED] if isinstance(levels, list) else []:
            yield "factors", {path: level}
    factors = raw.get("factors")
    combinations = factors[:_TRIED] if isinstance(factors, list) else []
    together = {f"factors[{place}]": it for place, it in enumerate(combinations)}
    together |= {f"tasks.{task}": it for task, it in _section(raw, "tasks").items()}
    for section, changes in together.items():
        yield section, flatten(changes if isinstance(changes, dict) else {})


def _arm_problems(check: _Check, study: Study) -> dict[str, str]:
    """Tries all arms, each with each tuned value, in a study that has no other problems."""
    found: dict[str, str] = {}
    same: dict[str, str] = {}
    known: dict[str, dict[str, str]] = {}
    for arm in study.arms():
        base, name = study.with_arm(arm), f"variants.{arm.title}"
        plain = arm.title == arm.variant and not study.variants[arm.variant].overrides()
        of_arm = "" if plain else f" (for {name})"
        wrong = check.problems(base)
        for where, what in wrong.items():
            found.setdefault(where, what + of_arm)
        if wrong:
            continue
        resolved = study.for_arm(arm)
        parts = resolved.model_dump(mode="json", include={*PARTS})
        layer = resolved.variants[arm.variant].model_dump(mode="json")
        other = same.setdefault(json.dumps([arm.variant, layer, parts], sort_keys=True), name)
        if other != name:
            found.setdefault("", f"{other} and {name} are the same arm; leave out one of them")
        for path, values in study.space_of(arm).items():
            between = values.at(_BETWEEN) if isinstance(values, Range) else None
            for value in (
                (values.low, values.high, between) if isinstance(values, Range) else values
            ):
                changed = with_changes(base, {path: value}, arm.variant)
                told = _tried(check, changed, path, known)
                for where, what in told.items():
                    what = f"with {value!r}, {where}: {what}" if where != path else what
                    if value is between:
                        what = "a range draws fractions; give a list of whole numbers"
                    found.setdefault(f"tune.{path}", what + of_arm)
    return found


def _tried(
    check: _Check, changed: Mapping[str, Any], path: str, known: dict[str, dict[str, str]]
) -> dict[str, str]:
    """What is wrong with a study with a tuned value, of which the rest is known to be right.

    Args:
        check: Validates studies.
        changed: The study with the value.
        path: Where it is.
        known: What was wrong with the same part of the study before; most arms share theirs.
    """
    section = "variants" if is_of_layer(path) else path.partition(".")[0]
    key = json.dumps([section, changed[section]], sort_keys=True, default=repr)
    if key not in known:
        known[key] = check.problems(changed)
    return known[key]
