"""The base of errors that a user can mend, and how they name what was meant."""

import difflib
import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(ValueError):
    """Something that was given cannot be used.

    The message names what was given, what was expected and the remedy; the command line prints it
    without a traceback.
    """


def refuse_stripped() -> None:
    """Refuses to work in a process without docstrings, before it does anything.

    Raises:
        UserError: Python was started with -OO; charts and the meaning of fields rest on docstrings.
    """
    if sys.flags.optimize > 1:
        raise UserError(
            "Python runs without docstrings (-OO or PYTHONOPTIMIZE=2), which charts and `normlab "
            "list` are made with; start it without, or with -O"
        )


def nearest(given: str, known: Iterable[str]) -> str:
    """Returns `; did you mean ...?` for a close name, else a list of those known."""
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; expected one of {', '.join(known)}" if known else ""


def first_of(error: "ValidationError") -> str:
    """Returns the first of the problems of a record, in a few words."""
    first = error.errors()[0]
    what = first["msg"].removeprefix("Value error, ")
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {what}" if where else what


_REMEDIES = {
    errno.ENOSPC: "Free space there",
    errno.EDQUOT: "Free space within your quota",
    errno.EFBIG: "Raise the limit on the size of files, as with `ulimit -f unlimited`",
    errno.EACCES: "Ask its owner for the permission",
    errno.EPERM: "Ask its owner for the permission",
    errno.EMFILE: "Raise the limit on open files, as with `ulimit -n 4096`",
    errno.ENAMETOOLONG: "Give a shorter name",
}

_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOENT)


def refused(what: str, path: Path, error: OSError, otherwise: str) -> str:
    """Tells what the system refused to do with a file or folder, why, and what to do about it.

    Args:
        what: What was to be done, as in "written".
        path: With which file or folder.
        error: What the system says.
        otherwise: What else can be done, as a command: "give another folder".

    Returns:
        Sentences.
    """
    obstacle = _obstacle(path, error.errno) if error.errno in _IN_THE_WAY else ""
    reason = obstacle or error.strerror or str(error) or type(error).__name__
    remedy = f"{_REMEDIES[error.errno]}, or {otherwise}" if error.errno in _REMEDIES else otherwise
    return f"{path} cannot be {what}: {reason}. {remedy[:1].upper()}{remedy[1:]}."


def _obstacle(path: Path, number: int | None) -> str:
    """Names the file or link that stands where a folder or file is meant to be, if one does."""
    for place in (*reversed(path.parents), path):
        if os.path.islink(place):
            try:
                os.stat(place)
            except OSError as error:
                where = "comes back to itself" if error.errno == errno.ELOOP else "is not there"
                return f"{place} is a link to {os.readlink(place)}, which {where}"
        wants_folder = place != path or number in (errno.ENOTDIR, errno.EEXIST)
        if wants_folder and os.path.exists(place) and not os.path.isdir(place):
            return f"{place} is a file; expected a folder"
    return f"{path} is a folder; expected a file" if os.path.isdir(path) else ""
