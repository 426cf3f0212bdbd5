"""What was made of which files of a study, so that nothing is made twice of the same ones."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from .store import write_whole

_RECORD = "made.json"
_DRAWN_BY = ("altair", "vl-convert-python", "polars")


def state(folder: Path) -> str:
    """Hashes all that a page depends on: the files of a study, and the code that makes pages.

    Of the results it is names, sizes and times, since there may be thousands.
    """
    told = hashlib.sha256()
    for name in ("config.yaml", "environment.json", "plan.json"):
        path = folder / name
        told.update(path.read_bytes() if path.exists() else b"none")
    told.update(_listed((folder / "runs").glob("*.json")).encode())
    package = Path(__file__).parents[1]
    for part in ("compare", "inference", "report"):
        for path in sorted(it for it in (package / part).rglob("*") if it.suffix != ".pyc"):
            told.update(path.read_bytes() if path.is_file() else b"")
    told.update(" ".join(map(version, _DRAWN_BY)).encode())
    return told.hexdigest()


def is_made(folder: Path, now: str, names: Sequence[str]) -> bool:
    """Whether files were made of a study in the state that it is in, and are as they were made.

    Args:
        folder: The study's.
        now: Its `state`.
        names: The files; of a folder all in it.
    """
    try:
        return json.loads((folder / _RECORD).read_bytes()) == _record(folder, now, names)
    except (OSError, ValueError, RecursionError):
        # There is none, or it is damaged: all is made anew.
        return False


def note_made(folder: Path, then: str, names: Sequence[str]) -> None:
    """Notes that files are made, of a study in the state that it was in before; see `is_made`."""
    write_whole(folder / _RECORD, json.dumps(_record(folder, then, names)))


def _record(folder: Path, state: str, names: Sequence[str]) -> dict[str, str]:
    paths = [folder / name for name in names]
    within = [inner for path in paths for inner in path.rglob("*")]
    return {"of": state, "files": _listed([*paths, *within])}


def _listed(paths: Iterable[Path]) -> str:
    """Hashes names, sizes and times of files, and which of them are not there."""
    told = hashlib.sha256()
    for path in sorted(paths):
        try:
            found = path.stat()
        except FileNotFoundError:
            told.update(f"{path.name} is missing\n".encode())
            continue
        told.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return told.hexdigest()
