"""Reading a study: a YAML file, overrides, the user's modules, and every mistake in them."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from ..compare.paths import flatten, with_values
from ..compare.study import TUNABLE_PATHS, Study, is_tunable, study_type
from ..errors import nearest
from ..variants import OVERRIDABLE
from .errors import ConfigError, problems


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
    raw = _read(path, overrides, source)
    if isinstance(raw.get("modules"), list):  # else a mistake that validation reports
        import_modules(raw["modules"], path.parent, source)

    model = study_type()
    schema = model.model_json_schema()
    found = _problems(model, schema, raw)
    found |= _override_problems(model, schema, raw, found)
    # Tuned values are tried in the study as it is resolved and as each arm sees it, unless it has
    # problems of its own.
    tune, whole, bases = raw.get("tune"), not found, {"": raw}
    if whole:
        study = model.model_validate(raw)
        arms = [name for name, variant in study.variants.items() if variant.overrides()]
        bases = {"": study.model_dump()}
        bases |= {f" (for variants.{name})": study.for_arm(name).model_dump() for name in arms}
    for arm, base in bases.items():
        for where, what in _tuning_problems(model, schema, tune, base, whole=whole).items():
            if not arm or where not in found:
                found[where] = what + arm
    variants, baseline = raw.get("variants"), raw.get("baseline")
    if isinstance(variants, dict) and isinstance(baseline, str) and baseline not in variants:
        found["baseline"] = f"{baseline!r} is no variant{nearest(baseline, map(str, variants))}"
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
        merged = OmegaConf.merge(given, OmegaConf.from_dotlist(list(overrides)))
        raw: Any = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError, TypeError) as error:
        raise ConfigError(source, [f"cannot be read as YAML: {error}"]) from error
    return {str(key): value for key, value in raw.items()}


def import_modules(modules: Sequence[Any], folder: Path, source: str) -> None:
    """Imports the modules that register variants, by name or by file.

    Args:
        modules: Their names, or files beside the configuration.
        folder: Where the configuration lies.
        source: What to call it in an error.

    Raises:
        ConfigError: If one of them cannot be imported.
    """
    for place in (str(folder.resolve()), str(Path.cwd())):
        if place not in sys.path:
            sys.path.insert(0, place)
    for name in modules:
        try:
            if str(name).endswith(".py"):
                _import_file(folder / name if (folder / name).is_file() else Path(name))
            else:
                importlib.import_module(str(name))
        except Exception as error:  # whatever the user's code raises is told as theirs
            what = f"modules: {name} cannot be imported: {type(error).__name__}: {error}"
            raise ConfigError(source, [what]) from error


def _import_file(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)


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


def _tuning_problems(
    model: type[Study], schema: dict[str, Any], tune: Any, base: dict[str, Any], *, whole: bool
) -> dict[str, str]:
    """Tries each tuned value in its place.

    Args:
        model: The type of studies.
        schema: Its JSON schema.
        tune: The section as it was given.
        base: The study to try the values in.
        whole: Whether all that is then wrong is the value's fault, or only what is wrong in its
            place, since the study has other problems.
    """
    found = {}
    for path, values in flatten(tune if isinstance(tune, dict) else {}).items():
        if path == "seeds":
            continue
        if not is_tunable(path):
            found[f"tune.{path}"] = f"cannot be tuned; expected one of {TUNABLE_PATHS}"
        for value in values if is_tunable(path) and isinstance(values, list) else []:
            for where, what in _problems(model, schema, with_values(base, {path: value})).items():
                if where == path or where.startswith((f"{path}.", f"{path}[")):
                    found[f"tune.{path}"] = what
                elif whole:
                    found[f"tune.{path}"] = f"with {value!r}, {where}: {what}"
    return found
