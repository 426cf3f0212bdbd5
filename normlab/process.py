"""What the command line sets for its process: memory that is kept, and compiled programs.

No import of a layer sets anything. A program of your own has the same after

    eval "$(normlab settings)"

Large arrays come and go with every step. The C library of Linux hands the memory of each back to
the system and asks for it anew, at a page fault for every 4 KiB: more than half of the time of a
large batch normalization. It is told to keep what it has, in huge pages. A program that compiles
little may add `:glibc.malloc.arena_max=1`: threads share what is kept, but wait for each other.

JAX keeps compiled programs in a folder, so that a study that is started again, or another with
some of the same arms, need not compile them again. They are small, and may be deleted at any time.

Where libtpu is installed without a TPU, to compile for one, it would ask the network which machine
it is on, complain that nobody answers, and lock out a second process.
"""

import gc
import io
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from .interrupts import hold_back

_ALLOCATOR = {
    "glibc.malloc.hugetlb": 1,
    "glibc.malloc.mmap_max": 0,
    "glibc.malloc.trim_threshold": 2**34,
}

_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "4",
}
_GOOGLE = "0x1ae0"


def libtpu_settings() -> dict[str, str]:
    """Returns the environment variables for libtpu; none on a machine that has a TPU."""
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    has_tpu = any(vendor.read_text().strip() == _GOOGLE for vendor in vendors)
    return {} if has_tpu else _LIBTPU


def settings() -> dict[str, str]:
    """Returns all environment variables, as a shell would export them."""
    return {
        **libtpu_settings(),
        "GLIBC_TUNABLES": ":".join(f"{name}={value}" for name, value in _ALLOCATOR.items()),
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder() / "programs"),
        # Small programs take a fraction of a second each, and there are many.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def cache_folder() -> Path:
    """Returns the user's folder for what can be made anew; a temporary one for who has no home."""
    try:
        return platformdirs.user_cache_path("normlab")
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "normlab"


@contextmanager
def importing() -> Iterator[None]:
    """Imports what stays: Python's search for garbage waits, and never goes through it again.

    JAX and what comes with it are very many objects. Python would go through them again and again,
    while they are imported and while programs are traced.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def every_character() -> Iterator[None]:
    """Writes as an escape, as \\xe4, what standard output and errors cannot encode."""
    streams = [it for it in (sys.stdout, sys.stderr) if isinstance(it, io.TextIOWrapper)]
    before = [it.errors for it in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=errors)


def settle(*, keep_programs: bool = True) -> None:
    """Sets what is not set yet; to be called before JAX is imported.

    The C library reads its settings when a process starts, so that this one starts once more, but
    not where its program came from a terminal or a pipe, and is spent.

    Args:
        keep_programs: Whether compiled programs are kept. Those for devices that are not here
            cannot be read back: JAX would complain of each that it finds, and compile it anew.
    """
    missing = {name: value for name, value in settings().items() if name not in os.environ}
    if not keep_programs:
        missing["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ |= missing
    repeatable = sys.argv[0] not in ("", "-")
    if repeatable and "GLIBC_TUNABLES" in missing and platform.libc_ver()[0] == "glibc":
        hold_back()
        # This very command once more: its own arguments, no shell.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # nosec B606
