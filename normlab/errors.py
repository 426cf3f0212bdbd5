"""The base of errors that a user can mend, and how they name what was meant."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that was given cannot be used.

    The message names what was given, what was expected and the remedy; the command line prints it
    without a traceback.
    """


def nearest(given: str, known: Iterable[str]) -> str:
    """Returns `; did you mean ...?` for a close name, else a list of those known."""
    known = list(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; expected one of {', '.join(known)}" if known else ""
