"""Importing the user's modules, by name or by file."""

import importlib
import importlib.util
import sys
from pathlib import Path


def import_module(name: str) -> None:
    """Imports a module, or a file that is looked for along Python's path.

    Raises:
        FileNotFoundError: There is no such file.
        Exception: Whatever the user's code raises.
    """
    if not name.endswith(".py"):
        importlib.import_module(name)
        return
    places = [Path(place) / name for place in sys.path]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"there is no file {name}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
