"""How errors of a user's own code are told: their message, their place, their traceback."""

import re
import sys
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path

# Whose frames are no place in a user's code, wherever they are installed.
_LIBRARIES = frozenset(
    ("normlab", "jax", "jaxlib", "flax", "optax", "numpy", "pydantic", "jaxtyping", "beartype")
)
# How XLA tells an error in a function that a compiled program called back.
_CALLBACK = re.compile(r"CpuCallback error.*?Traceback \(most recent call last\):\n(.*)", re.DOTALL)
_LINE, _NOTE = "--------------------\n", "For simplicity, JAX has removed"
_FRAME = re.compile(r'  File "(.*)", line (\d+), in (.*)')


@dataclass(frozen=True)
class Explained:
    """An error that a user's own code may have raised.

    Attributes:
        message: What it says, on however many lines.
        place: The last frame in the user's code, as in `my_layers.py:12 in __call__`; empty if
            there is none.
        traceback: The frames of the user's code and what was called by the last one, as Python
            prints them; empty if there is no place.
    """

    message: str
    place: str
    traceback: str

    def __str__(self) -> str:
        return f"{self.message} ({self.place})" if self.place else self.message


def explained(error: BaseException) -> Explained:
    """Tells an error: its message, and its place in the user's code."""
    said = _said(error)
    if called_back := _CALLBACK.search(said):
        return _called_back(called_back[1])
    message = f"{type(error).__name__}: {said}"
    if isinstance(error, SystemExit):
        message = f"it called sys.exit({'' if error.code is None else error.code!r})"
    if isinstance(error, SyntaxError) and error.filename:
        message = f"{type(error).__name__}: {error.msg}"
        place = f"{Path(error.filename).name}:{error.lineno}"
        return Explained(message, place, "".join(traceback.format_exception_only(error)))
    frames = list(traceback.walk_tb(error.__traceback__))
    names = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    stack = traceback.extract_tb(error.__traceback__)
    own = [_is_own(name, it.filename) for name, it in zip(names, stack, strict=True)]
    if not any(own):
        return Explained(message, "", "")
    last = len(own) - 1 - own[::-1].index(True)
    shown = [it for place, it in enumerate(stack) if own[place] or place > last]
    # Where JAX has left frames out, it says so in a note.
    words = [
        it for it in traceback.format_exception_only(error) if not it.startswith((_LINE, _NOTE))
    ]
    told = ["Traceback (most recent call last):\n", *traceback.format_list(shown), *words]
    at = stack[last]
    return Explained(message, _place(at.filename, at.lineno, at.name), "".join(told))


def with_place(error: BaseException) -> str:
    """Tells an error by which code says that it was given something wrong, with its place."""
    told = explained(error)
    if isinstance(error, ValueError | TypeError):
        return f"{_said(error)} ({told.place})" if told.place else _said(error)
    return str(told)


def _said(error: BaseException) -> str:
    """What an error says; a user's own error may fail even at that."""
    try:
        return str(error)
    except Exception as another:
        return f"(its message cannot be told, since that raises {type(another).__name__})"


def _called_back(text: str) -> Explained:
    """Tells an error from the traceback that XLA puts into its message."""
    frames, words = [], []
    for line in text.splitlines():
        if found := _FRAME.match(line):
            frames.append(found)
            words = []
        else:
            words.append(line)
    message = "\n".join(words)
    own = [it for it in frames if _is_own("", it[1])]
    if not own:
        return Explained(message, "", "")
    shown = "".join(f"{it[0]}\n" for it in frames[frames.index(own[-1]) :])
    return Explained(
        message,
        _place(*own[-1].groups()),
        f"Traceback (most recent call last):\n{shown}{message}\n",
    )


def _is_own(module: str, file: str) -> bool:
    """Whether a frame is of a user's own code, by its module's name and its file."""
    top = module.partition(".")[0]
    if top in _LIBRARIES or top in sys.stdlib_module_names or file.startswith("<frozen"):
        return False
    paths = sysconfig.get_paths()
    libraries = [paths[it] for it in ("stdlib", "purelib", "platlib")]
    return not Path(file).is_relative_to(Path(__file__).parent) and not any(
        Path(file).is_relative_to(it) for it in libraries
    )


def _place(file: str, line: int | str | None, name: str) -> str:
    return f"{Path(file).name}:{line} in {name}"
