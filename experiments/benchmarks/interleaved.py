"""Peers measured in turn, each in a process of its own, so that thread pools do not fight.

A peer is a function of a case that returns a function without arguments, which does the work once
and comes back when it is done, or None where the peer has no such thing. In every round each peer
is called a few times before the next one's turn, so that a noisy machine hurts all alike.
Work that measures its own parts returns a dict of them, which is then kept in place of the seconds.
"""

import json
import math
import multiprocessing
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from normlab.process import settings

Peer = Callable[[Any], Callable[[], Any] | None]
DEVICES = ("cpu", "cuda")  # as both JAX and PyTorch call them
PACKAGES = ("jax", "jaxlib", "flax", "torch", "keras", "equinox", "numpy")
RESULTS = Path(__file__).parent / "results"
console = Console(highlight=False)


def measure(
    peers: dict[str, Peer],
    cases: Sequence[Any],
    rounds: int,
    calls: int,
    *,
    device: str = "cpu",
    tuned: bool = True,
    warm_up: int = 2,
) -> Iterator[dict[str, list[Any]]]:
    """Yields, for each case, the seconds of every call by peer.

    Args:
        peers: What is compared, by name; functions at the top of a module.
        cases: What they are asked to do; anything that can be pickled.
        rounds: How often it is each peer's turn.
        calls: Calls in a turn.
        device: One of `DEVICES`. In the processes of the peers JAX_PLATFORMS has it.
        tuned: Whether the processes have the settings of normlab's command line.
        warm_up: Calls of each peer that are not counted, before its first turn.
    """
    before = dict(os.environ)
    os.environ.update({"JAX_PLATFORMS": device})
    os.environ.update({"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "2"})
    if device == "cuda":
        # Peers share the memory of the GPU. JAX would take most of it at its start, and else keeps
        # twice of what it has once needed.
        os.environ.update({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})
        os.environ.update({"XLA_CLIENT_MEM_FRACTION": "0.3"})
    if tuned:
        os.environ.update(settings() | {"JAX_COMPILATION_CACHE_DIR": ""})
    if tuned and device == "cpu":
        # Nothing here compiles for long, with threads that would wait for each other's memory.
        os.environ["GLIBC_TUNABLES"] += ":glibc.malloc.arena_max=1"
    context = multiprocessing.get_context("spawn")
    connections = {}
    for name, peer in peers.items():
        connection, other = context.Pipe()
        process = context.Process(target=_serve, args=(peer, other), daemon=True)
        process.start()
        connections[name] = connection
    os.environ.clear()
    os.environ.update(before)

    for case in track(cases, "measuring", console=console):
        ready = []
        for name, connection in connections.items():
            if _ask(connection, ("prepare", (case, warm_up))):
                ready.append(name)
        seconds: dict[str, list[Any]] = {name: [] for name in ready}
        for _ in range(rounds):
            for name in ready:
                seconds[name] += _ask(connections[name], ("call", calls))
        yield seconds
    for connection in connections.values():
        connection.send(None)


def _ask(connection: Any, request: Any) -> Any:
    connection.send(request)
    answer = connection.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _serve(peer: Peer, connection: Any) -> None:
    work: Any = None
    while (request := connection.recv()) is not None:
        what, argument = request
        try:
            if what == "prepare":
                work = None  # Frees what the case before held.
                case, warm_up = argument
                work = peer(case)
                for _ in range(warm_up if work else 0):
                    work()
                connection.send(work is not None)
            else:
                seconds = []
                for _ in range(argument):
                    start = time.perf_counter()
                    told = work()
                    passed = time.perf_counter() - start
                    seconds.append(told if isinstance(told, dict) else passed)
                connection.send(seconds)
        except Exception as error:  # for the parent, which raises it
            connection.send(RuntimeError(f"{peer.__name__}, {what}: {error}"))


def spread(seconds: list[float]) -> dict[str, float]:
    """The median, and the first and third quartile."""
    several = seconds if len(seconds) > 1 else 2 * seconds
    low, median, high = statistics.quantiles(several, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high, "calls": len(seconds)}


def geometric_mean(ratios: Sequence[float]) -> float:
    """The number that the ratios are about, whichever way round they are formed."""
    return math.exp(statistics.fmean(map(math.log, ratios)))


def machine() -> dict[str, Any]:
    """What was measured on, and with what."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:  # a peer that was not asked
            continue
    return {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": packages,
    }


@cache
def gpu_name() -> str:
    """What the first GPU is called; asked of its driver, so that this process takes none of it."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"--device cuda was given, but nvidia-smi names no GPU ({error}); leave it out.")
    return told.splitlines()[0]


def name_of_results(script: str, device: str) -> str:
    """The name of the file: that of the script, and on a GPU also the GPU's."""
    return script if device == "cpu" else f"{script}_{gpu_name()}".lower().replace(" ", "_")


def command_line() -> str:
    """How this script was called."""
    script, *options = sys.argv
    return shlex.join(["python", f"experiments/benchmarks/{Path(script).name}", *options])


def save(name: str, command: str, results: dict[str, Any], *, complete: bool = True) -> Path:
    """Writes the results beside the script, with what they were measured on.

    What is not complete goes to a file of its own, which is gone once all is there.
    """
    RESULTS.mkdir(exist_ok=True)
    whole, partial = RESULTS / f"{name}.json", RESULTS / f"{name}.partial.json"
    path = whole if complete else partial
    content = {"command": command, **machine(), **results}
    path.write_text(json.dumps(content, indent=1) + "\n")
    if complete:
        partial.unlink(missing_ok=True)
    return path
