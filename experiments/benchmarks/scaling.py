"""How cost grows with batch, channels, runs of a grid, and devices, beside what it could be.

    python experiments/benchmarks/scaling.py

- `batch`, `channels`: forward and backward pass of batch and layer norm on (n, 32, 32, 64) and on
  (64, 32, 32, n), float32. The limit is eight passes over the tensor (see layers.py) at the
  bandwidth at which the largest of them was copied.
- `runs`: n runs of one arm of the quickstart, compiled before. The limit is n times one run.
- `devices`: forward and backward pass of synchronized batch norm on (128, 32, 32, 64) cut over n
  devices that the CPU pretends to be. They share its cores, so that the limit is the time of one.

Each sweep is drawn to results/scaling_NAME.svg.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import layers
from interleaved import command_line, console, measure, save, spread
from rich.table import Table

from normlab.report.style import BASELINE_COLOR, COLORS, style

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
LAYERS = ("batch_norm", "layer_norm")
SIZES = {
    "batch": (32, 64, 128, 256, 512),
    "channels": (16, 32, 64, 128, 256, 512),
    "runs": (1, 2, 4, 8, 16, 32),
    "devices": (1, 2, 4, 8),
}
TITLES = {
    "batch": ("Forward + backward by batch", "examples in the batch, each 32 x 32 x 64"),
    "channels": ("Forward + backward by channels", "channels, of 64 examples of 32 x 32"),
    "runs": ("Runs of one arm of the quickstart", "runs"),
    "devices": ("Synchronized batch norm, one batch", "devices, on the same cores"),
}
LIMITS = {
    "batch": "8 passes at copy bandwidth",
    "channels": "8 passes at copy bandwidth",
    "runs": "as many times one run",
    "devices": "one device",
}


class Sizes(NamedTuple):
    sizes: tuple[int, ...]
    images: tuple[int, ...]


def runs(case: Sizes) -> Callable[[], dict[int, float]]:
    from normlab.compare.environment import environment
    from normlab.compare.grid import final_runs
    from normlab.compare.workbench import Group, Workbench
    from normlab.config import load_study

    study = load_study(QUICKSTART, [f"seeds={max(case.sizes)}"])
    (batch,) = [arm for arm in study.arms() if arm.variant == "batch"]
    planned = final_runs(study, batch, {"optimizer.learning_rate": 0.1})
    bench = Workbench(environment(""))

    def train(n: int) -> None:  # as many at a time as there are cores, as a study does
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(bench.execute, [Group((run,), 1) for run in planned[:n]]))

    works = {n: partial(train, n) for n in case.sizes}
    return lambda: {n: _timed(work) for n, work in works.items()}


def devices(case: Sizes) -> Callable[[], dict[int, float]]:
    import jax
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    import normlab as nl

    keys = jax.random.split(jax.random.key(0), 2)
    x, dy = (jax.random.normal(key, case.images) for key in keys)
    variables = nl.BatchNorm(False).init(jax.random.key(0), x)
    layer = nl.BatchNorm(False, axis_name="devices")

    def both(params, state, x, dy):
        def forward(params, x):
            return layer.apply({"params": params, **state}, x, mutable=["batch_stats"])

        y, backward, state_after = jax.vjp(forward, params, x, has_aux=True)
        of_params, dx = backward(dy)
        return y, dx, of_params, state_after

    def work_on(n: int) -> Callable[[], Any]:
        mesh = jax.make_mesh(
            (n,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n]
        )
        whole, cut = P(), P("devices")
        program = jax.jit(
            jax.shard_map(
                both,
                mesh=mesh,
                in_specs=(whole, whole, cut, cut),
                out_specs=(cut, cut, whole, whole),
            )
        )
        state = {"batch_stats": variables["batch_stats"]}
        given = jax.device_put((variables["params"], state), NamedSharding(mesh, whole))
        given = (*given, *jax.device_put((x, dy), NamedSharding(mesh, cut)))
        return lambda: jax.block_until_ready(program(*given))

    works = {n: work_on(n) for n in case.sizes}
    return lambda: {n: _timed(work) for n, work in works.items()}


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=5, help="in each turn")
    parser.add_argument("--sweeps", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--largest", type=int, default=512, help="no larger sizes than this")
    parser.add_argument("--images", type=int, default=128, help="shared by the devices")
    parser.add_argument("--name", default="scaling", help="of the files of results")
    given = parser.parse_args()

    results: dict[str, Any] = {}
    for sweep in given.sweeps:
        sizes = tuple(n for n in SIZES[sweep] if n <= given.largest)
        if sweep in ("batch", "channels"):
            results[sweep] = _layers(sweep, sizes, given)
        else:
            results[sweep] = _of_one(sweep, Sizes(sizes, (given.images, 32, 32, 64)), given)
        show(sweep, results[sweep])
    path = save(given.name, command_line(), {"sweeps": results})
    console.print(f"\n{path}")
    for sweep, rows in results.items():
        picture = path.with_name(f"{path.stem}_{sweep}.svg")
        chart(sweep, rows).save(str(picture), format="svg")
        console.print(f"{picture}")


def _layers(sweep: str, sizes: Iterable[int], given: argparse.Namespace) -> list[dict[str, Any]]:
    cases = []
    for n in sizes:
        shape = (n, 32, 32, 64) if sweep == "batch" else (64, 32, 32, n)
        cases += [layers.Case(layer, shape, "float32") for layer in LAYERS]
    peers = {"normlab": layers.normlab, "floor": layers.floor}
    measured = list(measure(peers, cases, given.rounds, given.calls))
    # At the largest size, which no cache holds.
    floor = spread(measured[-1]["floor"])["median"] / math.prod(cases[-1].shape)
    return [
        {
            "line": case.layer,
            "size": case.shape[0 if sweep == "batch" else 3],
            "seconds": spread(seconds["normlab"]),
            "limit": floor * math.prod(case.shape),
        }
        for case, seconds in zip(cases, measured, strict=True)
    ]


def _of_one(sweep: str, case: Sizes, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A sweep whose sizes take turns within each call."""
    before = os.environ.get("XLA_FLAGS", "")
    if sweep == "devices":
        count = f"--xla_force_host_platform_device_count={max(case.sizes)}"
        os.environ["XLA_FLAGS"] = f"{before} {count}"
    peer = {"runs": runs, "devices": devices}[sweep]
    [measured] = measure({"normlab": peer}, [case], given.rounds, given.calls)
    os.environ["XLA_FLAGS"] = before
    spreads = {n: spread([call[n] for call in measured["normlab"]]) for n in case.sizes}
    one = spreads[1]["median"]
    line = {"runs": "batch", "devices": "batch_norm"}[sweep]
    return [
        {
            "line": line,
            "size": n,
            "seconds": seconds,
            "limit": n * one if sweep == "runs" else one,
        }
        for n, seconds in spreads.items()
    ]


def show(sweep: str, rows: list[dict[str, Any]]) -> None:
    title, size = TITLES[sweep]
    table = Table(box=None, pad_edge=False, title=title)
    for column in ("", size.split(",")[0], "ms", "quartiles", "limit", "x limit"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        low, median, high = (1e3 * row["seconds"][it] for it in ("low", "median", "high"))
        limit = 1e3 * row["limit"]
        numbers = (f"{median:.2f}", f"{low:.2f}-{high:.2f}", f"{limit:.2f}")
        table.add_row(row["line"], str(row["size"]), *numbers, f"{median / limit:.2f}")
    console.print(table)


def chart(sweep: str, rows: list[dict[str, Any]]) -> alt.LayerChart:
    """The medians with their quartiles by size, and the limit."""
    title, size = TITLES[sweep]
    drawn = [
        {"line": row["line"].replace("_", " "), "size": row["size"]}
        | {it: 1e3 * row["seconds"][it] for it in ("low", "median", "high")}
        for row in rows
    ]
    limits = {row["size"]: 1e3 * row["limit"] for row in rows}
    limit = [{"line": LIMITS[sweep], "size": n, "median": ms} for n, ms in limits.items()]
    lines = list(dict.fromkeys(row["line"] for row in drawn))
    colors = alt.Scale(
        domain=[*lines, LIMITS[sweep]], range=[*COLORS[: len(lines)], BASELINE_COLOR]
    )
    sizes = alt.Axis(values=sorted(limits), grid=False)
    x = alt.X("size:Q", title=size, axis=sizes, scale=alt.Scale(type="log", base=2, padding=12))
    # What should not grow at all is drawn from 0.
    scale = alt.Scale() if sweep == "devices" else alt.Scale(type="log", padding=12)
    y = alt.Y("median:Q", title="milliseconds", scale=scale)
    color = alt.Color("line:N", title=None, scale=colors)
    measured = alt.Chart(alt.Data(values=drawn))
    low = alt.Y("low:Q", title="milliseconds")
    layered = alt.layer(
        alt.Chart(alt.Data(values=limit)).mark_line(strokeDash=[5, 4]).encode(x, y, color),
        measured.mark_line(strokeWidth=2).encode(x, y, color),
        measured.mark_circle(size=60, opacity=1).encode(x, y, color),
        measured.mark_rule(strokeWidth=2).encode(x, low, alt.Y2("high:Q"), color),
    )
    heading = alt.Title(title, subtitle="Medians with quartiles; dashed: the limit.")
    look = style("#1c2330", "#5b6472", "#e6e8ec", "white")
    return layered.properties(title=heading, width=380, height=260, config=look)


if __name__ == "__main__":
    main()
