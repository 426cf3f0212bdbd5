"""Opening files of data, and reading no more of them than they announce and memory holds."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError, refused

try:
    import resource
except ImportError:  # Windows has none.
    resource = None

# Of the memory that is available. A set is in memory three times while it is prepared: as it is
# read, joined from its files, and on the device.
MEMORY_SHARE = 0.25

_CHUNK = 2**20

# Of either version: where they are, how a process is told of its own, its limit, what is taken.
_CONTROL_GROUPS = (
    ("/sys/fs/cgroup", "/", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory:", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


class DataError(UserError):
    """The files of a data set, or what they hold, are not what was expected."""


class MissingDataError(DataError, FileNotFoundError):
    """A file or folder of a data set is not there."""


def shown(given: object, most: int = 160) -> str:
    """Shows the beginning of what a file holds, which may be of any length.

    What a terminal would obey becomes an escape.
    """
    text = str(given)
    start = "".join(it if it.isprintable() else ascii(it)[1:-1] for it in text[:most])
    return start if len(text) <= most else f"{start}..."


def reason(error: Exception) -> str:
    """What an error says, or else its kind."""
    return shown(error) if str(error) else type(error).__name__


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """Opens a file to be read; of a pipe, what it gives, so that every file can be sought in.

    Raises:
        MissingDataError: There is no such file, but a folder, a link to nowhere, or nothing.
        DataError: The system refuses to open or to read it.
    """
    try:
        with path.open("rb") as stream:
            if stream.seekable():
                yield stream
            else:
                content = exactly(stream, int(MEMORY_SHARE * available_memory()) + 1)
                refuse_more_than_memory(f"{path}: gives at least", len(content))
                yield io.BytesIO(content)
    except OSError as error:
        if error.errno == errno.ENOENT and not path.is_symlink() and path.parent.is_dir():
            raise MissingDataError(f"{path}: there is no such file.") from error
        missing = error.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
        kind = MissingDataError if missing else DataError
        raise kind(refused("read", path, error, "name another place with data.folder")) from error


def exactly(stream: io.BufferedIOBase, count: int) -> bytearray:
    """Reads so many bytes, or all that there are; memory grows with what is there."""
    content = bytearray()
    while part := stream.read(min(_CHUNK, count - len(content))):
        content += part
    return content


def refuse_more_than_memory(what: str, announced: int, *, streams: bool = False) -> None:
    """Refuses what would not fit, before it is read.

    Args:
        what: The file, and how it announces its size.
        announced: Bytes.
        streams: Whether it could stay where it is.

    Raises:
        DataError: It is more than `MEMORY_SHARE` of the memory that is available.
    """
    available = available_memory()
    if announced > MEMORY_SHARE * available:
        raise DataError(
            f"{what} {_size(announced)}, expected at most {_size(MEMORY_SHARE * available)}, which "
            f"is {MEMORY_SHARE:.0%} of the {_size(available)} of memory that are available. "
            + "Leave it where it is, with data.stream=true, take " * streams
            + "Take " * (not streams)
            + "fewer or smaller examples, or a machine with more memory."
        )


def available_memory() -> int:
    """Returns how many bytes this process may still take, by system, control group and limits.

    Where the system does not say, half of what the machine has.
    """
    told = _table(Path("/proc/meminfo")).get("MemAvailable")
    found = [1024 * int(told.split()[0])] if told else [_machine() // 2]
    groups = _table(Path("/proc/self/cgroup")).values()
    for place, prefix, *files in _CONTROL_GROUPS:
        names = [group.removeprefix(prefix) for group in groups if group.startswith(prefix)]
        for name in names:
            folder = Path(place, name.strip("/"))
            for each in (folder, *folder.parents):
                found += _left(each, *files)
    if resource is not None:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        size = _table(Path("/proc/self/status")).get("VmSize")
        if limit != resource.RLIM_INFINITY and size:
            found.append(limit - 1024 * int(size.split()[0]))
    return max(0, min(found))


def _table(path: Path) -> dict[str, str]:
    """Reads lines of a key, a colon and a value; none where the system has no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {key: value.lstrip(" :\t") for key, _, value in (line.partition(":") for line in lines)}


def _left(folder: Path, limit: str, taken: str) -> list[int]:
    """What a control group leaves of its limit; nothing where there is none."""
    try:
        free = int((folder / limit).read_text()) - int((folder / taken).read_text())
        # What is kept of files is counted as taken, and given back when it is needed.
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name in ("inactive_file", "active_file"):
                free += int(count)
    except (OSError, ValueError):  # "max" is no number, and no limit.
        return []
    return [free]


def _machine() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**33


def _size(count: int | float) -> str:
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
