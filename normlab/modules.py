"""A study's modules: files beside it, each under a name of its own, or installed ones by name.

The folder of a file is a package of its own, whose name no other folder has: files of one name in
two folders are two modules, nothing is added to Python's path, and no file beside a study can take
the place of a library. A file names its neighbours by relative imports (`from . import helper`).
"""

import ast
import functools
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_PREFIX = "normlab_study_"
_importing = threading.RLock()
# What the modules of studies have registered: tables, and names in them.
_registered: list[tuple[dict[str, Any], str]] = []


def import_modules(
    names: Sequence[str], folder: Path
) -> tuple[list[str], dict[str, BaseException]]:
    """Imports the modules of a study anew, as their files are now.

    `layers.py` is a file beside the study. `layers` and `package.layers` are too, where there is
    one, and else the module that Python imports by this name. What the files of another study have
    registered is forgotten, so that no study finds the layers of another.

    Args:
        names: As the study gives them.
        folder: Where the study lies.

    Returns:
        The names, those of files as whole paths, and what the import of each raised that failed.
    """
    with _importing:
        while _registered:
            table, name = _registered.pop()
            table.pop(name, None)
        importlib.invalidate_caches()
        found, errors = [], {}
        places: dict[str, tuple[Path, str, Path] | None] = {}
        for name in names:
            try:
                places[name] = _file(name, folder.resolve())
            except (OSError, ValueError, RuntimeError) as error:  # as of a name that none can have
                errors[name] = error
        roots = {_package(root) for root, _, _ in filter(None, places.values())}
        for module in [it for it in sys.modules if it.partition(".")[0] in roots]:
            del sys.modules[module]
        for name, place in places.items():
            try:
                found.append(_import(name, place, folder))
            except (Exception, SystemExit) as error:  # whatever the user's code raises is theirs
                errors[name] = error
        return found, errors


def enter(table: dict[str, Any], name: str, entry: Any) -> None:
    """Puts into a table what a user registers; from a study's file, until the next study's."""
    table[name] = entry
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    if frame is not None and str(frame.f_globals.get("__name__")).startswith(_PREFIX):
        _registered.append((table, name))


def source_of(name: str) -> bytes | None:
    """Returns the source of a study's file, as it was loaded, with the neighbours that it imports.

    Args:
        name: The name of the module.

    Returns:
        None for a module that is no file of a study.
    """
    sources = [loader.source for loader in _loaders(name, set())]
    return b"".join(sources) if sources else None


def told(name: str) -> str:
    """Returns the name of a module as a user knows it, without that of its study's package."""
    return name.partition(".")[2] if name.startswith(_PREFIX) else name


def _file(name: str, folder: Path) -> tuple[Path, str, Path] | None:
    """Returns of a file beside a study: the folder of its package, its name in it, and the file."""
    if name.endswith(".py"):
        file = (folder / Path(name).expanduser()).resolve()
        return file.parent, file.stem.replace(".", "_"), file
    *packages, module = name.split(".")
    base = folder.joinpath(*packages)
    for file in (base / module / "__init__.py", base / f"{module}.py"):
        if _is_name(name) and file.is_file():
            return folder, name, file
    return None


def _is_name(name: str) -> bool:
    return all(part and part == Path(part).name for part in name.split("."))


def _package(folder: Path) -> str:
    return _PREFIX + hashlib.sha256(str(folder).encode()).hexdigest()[:12]


def _import(name: str, place: tuple[Path, str, Path] | None, folder: Path) -> str:
    if place is None:
        if not _is_name(name):
            raise ImportError(
                f"{name!r} is no name of a module; expected one as my_layers or package.layers, or "
                "a file as my_layers.py"
            )
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # The module is there and imports another one that is not.
            raise ModuleNotFoundError(
                f"there is no file {name.replace('.', '/')}.py in {folder.resolve()}, the folder "
                "of the study, and no module of this name is installed"
            ) from error
        return name
    root, module, file = place
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    package = _package(root)
    if package not in sys.modules:
        sys.modules[package] = ModuleType(package, f"The files in {root}.")
        sys.modules[package].__path__ = [str(root)]
    if "." in file.stem:  # An import would take what stands before the dot for a folder.
        _execute(f"{package}.{module}", file)
    else:
        importlib.import_module(f"{package}.{module}")
    return str(file)


def _execute(name: str, file: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, file, loader=_Loader(name, str(file)))
    module = importlib.util.module_from_spec(spec)  # pyright: ignore[reportArgumentType]
    sys.modules[name] = module
    spec.loader.exec_module(module)  # pyright: ignore[reportOptionalMemberAccess]


class _Loader(SourceFileLoader):
    """Loads a file from its source.

    Compiled code that was kept is taken for that of a file of the same size and second.

    Attributes:
        source: What was loaded.
        neighbours: The names of modules beside it that it may import.
    """

    source = b""
    neighbours: frozenset[str] = frozenset()

    def path_stats(self, path: Any) -> Any:
        """Says that nothing is known by which compiled code could be told to be that of a file."""
        raise OSError

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:
        """Compiles the file, and takes note of what it is and imports."""
        tree = ast.parse(data, str(path))
        root = sys.modules[self.name.partition(".")[0]].__path__[0]
        package = self.name if self.is_package(self.name) else self.name.rpartition(".")[0]
        neighbours = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                named = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                neighbours |= {named, *(f"{named}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import | ast.ImportFrom):
                given = [node.module] if isinstance(node, ast.ImportFrom) else []
                given += [alias.name for alias in node.names] if not given else []
                for name in given:
                    _refuse_a_neighbour(str(name).partition(".")[0], Path(root), Path(str(path)))
        self.source, self.neighbours = bytes(data), frozenset(neighbours)
        return super().source_to_code(data, path, _optimize=_optimize)


class _Finder(MetaPathFinder):
    """Finds what lies beside a study's files, for their relative imports."""

    def find_spec(self, fullname: str, path: Any, target: Any = None, /) -> ModuleSpec | None:
        """Finds a module of one of the packages above."""
        if not fullname.startswith(_PREFIX) or path is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
            spec.cached = None
        return spec


sys.meta_path.insert(0, _Finder())


def _refuse_a_neighbour(name: str, folder: Path, file: Path) -> None:
    """Refuses an absolute import of a file beside the study, which Python would not take.

    Raises:
        ImportError: If it names a neighbour, unless it is a library's name.
    """
    beside = [folder / f"{name}.py", folder / name / "__init__.py"]
    there = [str(it) for it in beside if it.is_file()]
    if not there or name in sys.stdlib_module_names:
        return
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # of a module that was made, not found
        return
    found = str(Path(spec.origin).resolve()) if spec and spec.origin else ""
    if found in there or found.startswith(_libraries()):
        return
    raise ImportError(
        f"{file.name}: `import {name}` names {there[0]}, a file beside the study, but an import "
        f"without a dot takes "
        + (found or "an installed module only")
        + f"; write `from . import {name}` or `from .{name} import ...`"
    )


@functools.cache
def _libraries() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple(str(Path(paths[it]).resolve()) for it in ("stdlib", "purelib", "platlib"))


def _loaders(name: str, seen: set[str]) -> Iterator[_Loader]:
    """Yields the loaders of a module of a study and of those that it imports, in a fixed order."""
    loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
    if name in seen or not isinstance(loader, _Loader):
        return
    seen.add(name)
    yield loader
    for neighbour in sorted(loader.neighbours):
        yield from _loaders(neighbour, seen)
