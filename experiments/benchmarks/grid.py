"""The quickstart's 108 runs from cold: wall seconds of whole processes.

    python experiments/benchmarks/grid.py

`normlab` is the command `normlab compare configs/quickstart.yaml` with an empty cache of compiled
programs, from start to report; `normlab_again` the same into another folder with the cache that the
first has left. The two others are scripts as one writes them with Flax alone, for the same data,
splits, epochs, batches and runs, with an evaluation after each epoch and no report:
`flax_naive` builds and compiles each run anew, `flax_once` compiles once for each variant, learning
rate and seed traced. Both step through an epoch in Python.

A script does only some of each variant's runs, unless --all is given: the first, and --runs of the
others, at whose mean time it is charged for what it has left out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interleaved import command_line, console, save, spread
from rich.table import Table

from normlab.process import settings

STUDY = Path(__file__).parents[2] / "configs/quickstart.yaml"
PEERS = ("normlab", "normlab_again", "flax_naive", "flax_once")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--runs", type=int, default=2, help="of a variant, after its first one, by a script"
    )
    parser.add_argument("--all", action="store_true", help="all runs, by the scripts too")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--study", type=Path, default=STUDY, help="another, with arms of this one")
    parser.add_argument("--name", default="grid", help="of the file of results")
    parser.add_argument("--script", choices=PEERS[2:], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.script:
        return script(given.script, None if given.all else given.runs, given.study)

    measured: dict[str, list[dict[str, float]]] = {peer: [] for peer in given.peers}
    for number in range(given.rounds):
        for peer, of_process in _round(given).items():
            measured[peer].append(of_process)
            seconds = of_process["seconds"]
            console.print(f"round {number + 1} of {given.rounds}: {peer} {seconds:.1f} s")
    rows = {
        peer: {
            "seconds": spread([it["seconds"] for it in processes]),
            **{key: value for key, value in processes[-1].items() if key != "seconds"},
        }
        for peer, processes in measured.items()
    }
    results = {"rows": rows, "ratios": ratios(rows)}
    show(results)
    path = save(given.name, command_line(), results)
    console.print(f"\n{path}")
    return None


def _round(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One process of each peer, one after the other."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for peer in given.peers:
            if peer.startswith("normlab"):
                found[peer] = _normlab(Path(folder), peer, given.study)
            else:
                found[peer] = _flax(peer, given)
    return found


def _environment() -> dict[str, str]:
    """As in a new shell: what normlab's command line sets is for it to set."""
    own = {name: value for name, value in os.environ.items() if name not in settings()}
    return own | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}


def _normlab(folder: Path, peer: str, study: Path) -> dict[str, float]:
    cache = folder / "cache"
    before = _programs(cache)
    normlab = Path(sys.executable).with_name("normlab")
    command = [str(normlab), "compare", str(study), "--out", str(folder / peer)]
    seconds, _ = _timed(command, _environment() | {"XDG_CACHE_HOME": str(cache)})
    runs = len(list((folder / peer / "runs").glob("*.json")))
    return {"seconds": seconds, "runs": runs, "programs": _programs(cache) - before}


def _programs(cache: Path) -> int:
    """JAX keeps one file for each program that it has compiled."""
    return len(list(cache.rglob("*-cache")))


def _flax(peer: str, given: argparse.Namespace) -> dict[str, float]:
    arguments = ["--script", peer, "--runs", str(given.runs), "--study", str(given.study)]
    command = [sys.executable, __file__, *arguments, *(["--all"] if given.all else [])]
    seconds, printed = _timed(command, _environment())
    told = json.loads(printed.splitlines()[-1])
    scaled = sum(
        sum(it["seconds"]) * (it["of"] / len(it["seconds"]) - 1) for it in told["variants"]
    )
    return {
        "seconds": seconds + scaled,
        "runs": sum(1 + it["of"] for it in told["variants"]),
        "runs_done": sum(1 + len(it["seconds"]) for it in told["variants"]),
        "programs": told["programs"],
    }


def _timed(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return seconds, done.stdout


def script(peer: str, most: int | None, path: Path) -> None:
    """What a peer's process does: trains, and prints the seconds of each run as JSON."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import plain_flax

    from normlab.config import load_study
    from normlab.data import load

    compiled = 0

    def count(event: str, _: float, **__: Any) -> None:
        nonlocal compiled
        compiled += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    study = load_study(path)
    data = load(study.data)
    images = (data.images - data.mean) / data.deviation
    parts = (data.train, data.validation, data.test)
    train, validation, test = (
        (jnp.asarray(images[part]), jnp.asarray(data.labels[part])) for part in parts
    )
    batch_size = study.data.batch_size
    steps_per_epoch = len(data.train) // batch_size
    steps = study.train.epochs * steps_per_epoch

    @optax.inject_hyperparams
    def sgd(learning_rate):
        schedule = optax.cosine_decay_schedule(learning_rate, steps)
        return optax.sgd(schedule, study.optimizer.momentum)

    def build(variant: str) -> tuple[Callable[..., Any], ...]:
        model, transformation = plain_flax.MLP(variant), sgd(0.0)

        def initialize(seed, learning_rate):
            state = plain_flax.initialize(model, transformation, jax.random.key(seed), train[0])
            state.opt_state.hyperparams["learning_rate"] = jnp.float32(learning_rate)
            return state

        # Functions of their own, or JAX would find the programs of the last model.
        step = jax.jit(lambda *given: plain_flax.step(*given), donate_argnums=0)
        evaluate = jax.jit(lambda *given: plain_flax.evaluate(*given))
        return initialize, step, evaluate

    def run(programs: tuple[Callable[..., Any], ...], seed: int, rate: float, final: bool) -> None:
        initialize, step, evaluate = programs
        state = initialize(seed, rate)
        order = np.random.default_rng(seed)
        for _ in range(study.train.epochs):
            shuffled = order.permutation(len(data.train))[: steps_per_epoch * batch_size]
            metrics = []
            for batch in shuffled.astype(np.int32).reshape(steps_per_epoch, batch_size):
                state, of_step = step(state, *train, batch)
                metrics.append(of_step)
            np.mean(jax.device_get(metrics), axis=0)
            jax.device_get(evaluate(state, *validation))
        if final:
            jax.device_get(evaluate(state, *test))

    grid = study.tune.space["optimizer.learning_rate"]
    planned = [(seed, rate, False) for rate in grid for seed in range(study.tune.seeds)]
    planned += [(seed, grid[len(grid) // 2], True) for seed in range(study.seeds)]
    # What is compiled once, for the process or for the variant, is compiled in the first run, which
    # counts but once. A final run has all the programs there are.
    first, *planned = reversed(planned)
    # Spread over all of them, so that tuning and final runs have the share that they have there.
    most = min(most or len(planned), len(planned))
    chosen = [planned[int((i + 0.5) * len(planned) / most)] for i in range(most)]
    told = []
    for variant in study.variants:
        programs = build(variant)
        if peer == "flax_once":
            initialize, *others = programs
            programs = (jax.jit(initialize), *others)
        run(programs, *first)
        seconds = []
        for of_run in chosen:
            start = time.perf_counter()
            run(build(variant) if peer == "flax_naive" else programs, *of_run)
            seconds.append(time.perf_counter() - start)
        told.append({"variant": variant, "seconds": seconds, "of": len(planned)})
    print(json.dumps({"variants": told, "programs": compiled}))


def ratios(rows: dict[str, Any]) -> dict[str, float]:
    """Seconds of each other peer over those of normlab."""
    seconds = {peer: row["seconds"]["median"] for peer, row in rows.items()}
    own = seconds.pop("normlab", None)
    return {peer: it / own for peer, it in seconds.items()} if own else {}


def show(results: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, title="from start to end of the process")
    for column in ("", "seconds", "quartiles", "runs", "of them done", "programs", "x normlab"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for peer, row in results["rows"].items():
        seconds, ratio = row["seconds"], results["ratios"].get(peer)
        table.add_row(
            peer,
            f"{seconds['median']:.1f}",
            f"{seconds['low']:.1f}-{seconds['high']:.1f}",
            str(row["runs"]),
            str(row.get("runs_done", row["runs"])),
            str(row["programs"]),
            f"{ratio:.2f}" if ratio else "",
        )
    console.print(table)
    if any(row.get("runs_done", row["runs"]) < row["runs"] for row in results["rows"].values()):
        console.print("Runs that were not done are counted at the mean time of those that were.")


if __name__ == "__main__":
    main()
