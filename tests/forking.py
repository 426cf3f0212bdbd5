"""Commands as forks of a process that has imported JAX already, which is most of their time.

A fork takes its folder, variables, output and arguments, and then does what a process does that
starts with them: it sets its handlers of signals, runs the command, and ends as Python ends.
"""

import atexit
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

# Without Polars, whose threads a fork would not have, and without the modules of the commands.
_IMPORTED = (
    "altair jinja2 flax.nnx orbax.checkpoint scipy.stats sklearn.datasets "
    "normlab.config normlab.compare.run"
)
_SERVER = """
import gc, importlib, sys
for name in sys.argv[3:]:
    importlib.import_module(name)
gc.freeze()  # so that no fork goes through all of it, which would copy it
sys.path.insert(0, sys.argv[1])
from forking import serve
del sys.path[0]
serve(int(sys.argv[2]))
from normlab.start import main
main()
"""
_ENVIRONMENT = {**os.environ}
# What is read as Python starts or JAX is imported, so that a fork would be too late to set it.
_AT_START = ("PYTHON", "LC_", "HOME", "XDG_", "GLIBC_", "JAX_")


def too_late(variables):
    """Whether a fork could not have these variables."""
    return any(name.startswith(_AT_START) for name in variables)


class Forked:
    """A command that was started, with what tests use of `subprocess.Popen`.

    Args:
        arguments: Of the command.
        folder: Where it runs.
        environment: All its variables.
        together: Whether its errors are read with its output.
        start_new_session: Whether a signal to its group reaches it and its children alone.
    """

    def __init__(self, arguments, folder, environment, *, together, start_new_session=False):
        self.args, self.returncode = arguments, None
        told, output = os.pipe(), [os.pipe() for _ in range(1 if together else 2)]
        given = {
            "arguments": arguments,
            "folder": str(folder),
            # Where this is not set, a command starts its process anew with what it wants there.
            "environment": environment | {"GLIBC_TUNABLES": ""},
            "session": start_new_session,
        }
        theirs = [told[1], output[0][1], output[-1][1]]
        socket.send_fds(_server(), [json.dumps(given).encode()], theirs)
        for descriptor in {*theirs}:
            os.close(descriptor)
        self._told = os.fdopen(told[0], "rb", buffering=0)
        self.stdout = os.fdopen(output[0][0], errors="backslashreplace")
        self.stderr = None if together else os.fdopen(output[1][0], errors="backslashreplace")
        self.pid = int.from_bytes(self._told.read(4))

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int.from_bytes(self._told.read(4), signed=True)
            self._told.close()
        return self.returncode

    def poll(self):
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout=None):
        streams, texts = [it for it in (self.stdout, self.stderr) if it], {}

        def read(stream):
            with stream:
                texts[stream] = stream.read()

        readers = [threading.Thread(target=read, args=[it], daemon=True) for it in streams]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(timeout)
        return texts[self.stdout], texts.get(self.stderr)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


@cache
def _server():
    """Starts the process that is forked, which ends when this one does; returns the way to it."""
    from normlab.process import settings

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tests = str(Path(__file__).parent)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, tests, str(theirs.fileno()), *_IMPORTED.split()],
            cwd="/",
            # As its commands set them, before they import JAX.
            env=settings() | _ENVIRONMENT | {"GLIBC_TUNABLES": "", "XLA_FLAGS": ""},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    @atexit.register
    def end():
        ours.close()
        process.wait()

    return ours


def serve(number):
    """Forks for each command that is asked for; returns in each fork, which is then the command."""
    with socket.socket(fileno=number) as channel:
        while True:
            request, descriptors, _, _ = socket.recv_fds(channel, 2**20, 3)
            while _some_child_ended():
                pass
            if not request:
                os._exit(0)
            if not os.fork():
                break
            for descriptor in descriptors:
                os.close(descriptor)
    told, *output = descriptors
    command = os.fork()
    if command:  # Stays beside the command to tell its end, which its parent alone is told.
        for descriptor in output:
            os.close(descriptor)
        os.write(told, command.to_bytes(4))
        code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        os.write(told, code.to_bytes(4, signed=True))
        os._exit(0)
    os.close(told)
    for stream, descriptor in enumerate(output, 1):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    for stream, descriptor in ("stdout", 1), ("stderr", 2):
        before = getattr(sys, stream)
        buffering = 0 if isinstance(before.buffer, io.RawIOBase) else -1  # by PYTHONUNBUFFERED
        file = os.fdopen(descriptor, "wb", buffering, closefd=False)
        how = {it: getattr(before, it) for it in ("errors", "line_buffering", "write_through")}
        setattr(sys, stream, io.TextIOWrapper(file, before.encoding, **how))
        setattr(sys, f"__{stream}__", getattr(sys, stream))
    given = json.loads(request)
    if given["session"]:
        os.setsid()
    os.chdir(given["folder"])
    os.environ.clear()
    os.environ.update(given["environment"])
    sys.argv = ["-c", *given["arguments"]]


def _some_child_ended():
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return False
