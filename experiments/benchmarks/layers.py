"""Forward and backward pass of every layer, beside the same layer elsewhere and the memory floor.

    python experiments/benchmarks/layers.py

The floor is eight passes over the tensor, as four copies of it: forward it must be read twice and
the result written, backward input and incoming gradient are read twice and a gradient written.
Input, incoming gradient, scale and bias are arguments of the compiled programs, never constants.

    python experiments/benchmarks/layers.py --device cuda

takes arrays that fill a GPU, and measures forward and backward pass each by itself as well, against
three and five passes. A call is one of many that are enqueued at once, so that what it takes to
launch them is hidden behind those that came before.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from interleaved import (
    DEVICES,
    command_line,
    console,
    geometric_mean,
    gpu_name,
    measure,
    name_of_results,
    save,
    spread,
)
from rich.table import Table

IMAGES, LATE, ROWS, NARROW = (128, 32, 32, 64), (32, 8, 8, 512), (8192, 768), (65536, 64)
WIDE, TINY = (4096, 512), (60, 100)
SHAPES = {
    "batch_norm": [IMAGES, LATE, WIDE, TINY],
    "group_norm": [IMAGES, LATE],
    "instance_norm": [IMAGES, LATE],
    "layer_norm": [ROWS, NARROW, LATE, WIDE, TINY],
    "rms_norm": [ROWS, NARROW, LATE, WIDE, TINY],
}
# Hundreds of megabytes each: no cache holds them, and to pass over one takes longer than to enqueue
# the next call. The second is where a ResNet-50 ends.
GPU_IMAGES, GPU_LATE = (1024, 32, 32, 128), (2048, 7, 7, 2048)
GPU_ROWS, GPU_WIDE = (262144, 768), (32768, 4096)
GPU_SHAPES = {
    "batch_norm": [GPU_IMAGES, GPU_LATE],
    "group_norm": [GPU_IMAGES, GPU_LATE],
    "instance_norm": [GPU_IMAGES, GPU_LATE],
    "layer_norm": [GPU_ROWS, GPU_WIDE],
    "rms_norm": [GPU_ROWS, GPU_WIDE],
}
DTYPES = ("float32", "bfloat16")
# The passes over the tensor that are the floor.
PASSES = {"forward": 3, "backward": 5, "both": 8}
ENQUEUED = 10
# What Flax lacks, with the layer of Flax that does most nearly as much.
NEAREST = {
    "ghost_batch_norm": "batch_norm",
    "batch_renorm": "batch_norm",
    "batch_group_norm": "batch_norm",
    "switchable_norm": "batch_norm",
    "evonorm_b0": "batch_norm",
    "position_norm": "instance_norm",
    "filter_response_norm": "instance_norm",
    "evonorm_s0": "group_norm",
    "proxy_norm": "group_norm",
    "scale_norm": "rms_norm",
    "affine": "rms_norm",
    "dynamic_tanh": "rms_norm",
    "dynamic_erf": "rms_norm",
    "local_response_norm": "layer_norm",
}


class Case(NamedTuple):
    layer: str
    shape: tuple[int, ...]
    dtype: str


Work = Callable[[], Any]


def _work_of_jax(
    function: Callable[..., Any],
    trained: Any,
    state: Any,
    x: Any,
    dy: Any,
    jit: Callable[..., Any] | None = None,
) -> Work:
    """Forward and backward pass of what takes and returns its state.

    Args:
        function: Of trained arrays, state and input; returns output and state.
        trained: The arrays whose gradients are wanted, besides that of the input.
        state: The state before.
        x: The input.
        dy: The gradient that comes in.
        jit: What compiles it, if not `jax.jit`.
    """
    import jax

    def forward(trained, state, x):
        def output(trained, x):
            return function(trained, state, x)

        y, backward, state_after = jax.vjp(output, trained, x, has_aux=True)
        return y, backward, state_after

    @(jit or jax.jit)
    def both(trained, state, x, dy):
        y, backward, state_after = forward(trained, state, x)
        return y, backward(dy), state_after

    if os.environ["JAX_PLATFORMS"] == "cpu":
        return lambda: jax.block_until_ready(both(trained, state, x, dy))
    alone, backward, held = programs_apart(forward, (trained, state, x))
    calls = {
        "forward": lambda: alone(trained, state, x),
        "backward": lambda: backward(held, dy),
        "both": lambda: both(trained, state, x, dy),
    }
    return lambda: {part: _seconds(call, jax.block_until_ready) for part, call in calls.items()}


def programs_apart(forward: Callable[..., Any], arguments: Any) -> tuple[Any, Any, Any]:
    """Forward and backward pass as two programs.

    A pullback holds arguments of the forward pass, and one array more than once. A program that
    returned them would copy each, which no training step does. So the forward pass returns only
    what it made, and the backward pass takes the rest from where it came.

    Args:
        forward: Returns output, pullback and state.
        arguments: What it is called with.

    Returns:
        The program of the forward pass, of the arguments; that of the backward pass, of what it
        holds and the gradient that comes in; and what it holds.
    """
    import jax

    traced = jax.jit(forward).trace(*arguments)
    structure = jax.tree.structure(traced.out_info)
    program = traced.jaxpr.jaxpr
    given, returned = list(map(id, program.invars)), list(map(id, program.outvars))
    distinct = list(dict.fromkeys(given + returned))
    places = [distinct.index(array) for array in returned]
    made = [places.index(place) for place in range(len(given), len(distinct))]

    @jax.jit
    def alone(*arguments):
        leaves = jax.tree.leaves(forward(*arguments))
        return [leaves[place] for place in made]

    @jax.jit
    def backward(held, dy):
        _, pullback, _ = jax.tree.unflatten(structure, [held[place] for place in places])
        return pullback(dy)

    return alone, backward, [*jax.tree.leaves(arguments), *alone(*arguments)]


def _seconds(call: Callable[[], Any], wait: Callable[[Any], Any]) -> float:
    """The seconds of each of many calls that are enqueued at once.

    Args:
        call: Enqueues work on a GPU, and returns before it is done.
        wait: Waits for it, given what the last call returned.
    """
    last = None
    start = time.perf_counter()
    for _ in range(ENQUEUED):
        last = call()
    wait(last)
    return (time.perf_counter() - start) / ENQUEUED


def _linen(layer: Any, case: Case, arguments: dict[str, Any]) -> Work:
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 3)
    x, dy = (jax.random.normal(key, case.shape).astype(case.dtype) for key in keys[:2])
    # Compiled, so that the output, which is not asked for, is not computed.
    variables = dict(jax.jit(partial(layer.init, **arguments))(keys[2], x))
    params, state = variables.pop("params", {}), variables
    params = jax.tree.map(lambda p: p + 0.1 * jnp.arange(p.size).reshape(p.shape) / p.size, params)

    def apply(params, state, x):
        return layer.apply({"params": params, **state}, x, mutable=list(state), **arguments)

    return _work_of_jax(apply, params, state, x, dy)


def normlab(case: Case) -> Work:
    from normlab.variants import VARIANTS

    layer = VARIANTS[case.layer].layer(dtype=case.dtype)
    return _linen(layer, case, {"use_running_average": False})


def flax(case: Case) -> Work | None:
    from flax import linen as nn

    name = {"rms_norm": "RMSNorm"}.get(case.layer, case.layer.title().replace("_", ""))
    if case.layer not in SHAPES:
        return None
    arguments = {"use_running_average": False} if case.layer == "batch_norm" else {}
    return _linen(getattr(nn, name)(dtype=case.dtype), case, arguments)


def keras(case: Case) -> Work | None:
    import jax
    import keras

    def group(groups):
        return partial(keras.layers.GroupNormalization, groups=groups)

    layers = {
        "batch_norm": keras.layers.BatchNormalization,
        "group_norm": group(32),
        "instance_norm": group(-1),
        "layer_norm": keras.layers.LayerNormalization,
        "rms_norm": keras.layers.RMSNormalization,
    }
    if case.layer not in layers:
        return None
    layer = layers[case.layer](
        dtype=keras.DTypePolicy("mixed_bfloat16" if case.dtype == "bfloat16" else "float32")
    )
    layer.build(case.shape)
    keys = jax.random.split(jax.random.key(0), 2)
    x, dy = (jax.random.normal(key, case.shape).astype(case.dtype) for key in keys)
    trained = [v.value for v in layer.trainable_variables]
    state = [v.value for v in layer.non_trainable_variables]
    arguments = {"training": True} if case.layer == "batch_norm" else {}
    return _work_of_jax(partial(layer.stateless_call, **arguments), trained, state, x, dy)


def equinox(case: Case) -> Work | None:
    import equinox as eqx
    import jax

    images = len(case.shape) == 4
    channels = case.shape[-1]
    if case.layer == "batch_norm":
        layer: Any = eqx.nn.BatchNorm(channels, axis_name="batch", mode="batch")
    elif case.layer in ("layer_norm", "rms_norm") and not images:
        layer = {"layer_norm": eqx.nn.LayerNorm, "rms_norm": eqx.nn.RMSNorm}[case.layer](channels)
    elif case.layer in ("group_norm", "instance_norm"):
        layer = eqx.nn.GroupNorm(32 if case.layer == "group_norm" else channels, channels)
    else:
        return None
    # Channels come first in Equinox; its layers take one example.
    shape = (case.shape[0], channels, *case.shape[1:-1])
    keys = jax.random.split(jax.random.key(0), 2)
    x, dy = (jax.random.normal(key, shape).astype(case.dtype) for key in keys)
    trained, rest = eqx.partition(layer, eqx.is_inexact_array)
    state = eqx.nn.State(layer)

    def apply(trained, state, x):
        layer = eqx.combine(trained, rest)
        if case.layer != "batch_norm":
            return jax.vmap(layer)(x).astype(x.dtype), state
        y, after = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
            x, state
        )
        return y.astype(x.dtype), after

    return _work_of_jax(apply, trained, state, x, dy, jit=eqx.filter_jit)


def torch(case: Case, compiled: bool = False) -> Work | None:
    import torch as pt

    channels, images = case.shape[-1], len(case.shape) == 4
    layers = {
        "batch_norm": pt.nn.BatchNorm2d if images else pt.nn.BatchNorm1d,
        "group_norm": partial(pt.nn.GroupNorm, 32),
        "instance_norm": partial(pt.nn.InstanceNorm2d, affine=True),
        "layer_norm": pt.nn.LayerNorm,
        "rms_norm": pt.nn.RMSNorm,
    }
    if case.layer not in layers:
        return None
    dtype, device = getattr(pt, case.dtype), os.environ["JAX_PLATFORMS"]
    layer = layers[case.layer](channels).to(device, dtype)
    x, dy = (pt.randn(case.shape, device=device).to(dtype) for _ in range(2))
    if images and case.layer not in ("layer_norm", "rms_norm"):
        x, dy = (a.permute(0, 3, 1, 2) for a in (x, dy))  # the same memory: channels last
    x.requires_grad_()
    pt.compiler.reset()  # Compiled anew for each case, as a program of its own would be.
    function = pt.compile(layer) if compiled else layer
    inputs = (x, *layer.parameters())

    def both():
        pt.autograd.grad(function(x), inputs, dy)

    if device == "cpu":
        return both
    # Else a compiled backward pass may overwrite what it is given, and refuses to be repeated.
    from torch._functorch import config

    config.donated_buffer = False
    y = function(x)
    calls = {
        "forward": lambda: function(x),
        "backward": lambda: pt.autograd.grad(y, inputs, dy, retain_graph=True),
        "both": both,
    }
    return lambda: {part: _seconds(call, _wait_for_torch) for part, call in calls.items()}


def _wait_for_torch(_: Any) -> None:
    import torch as pt

    pt.cuda.synchronize()


def torch_compiled(case: Case) -> Work | None:
    return torch(case, compiled=True)


def floor(case: Case) -> Work:
    import torch as pt

    device = os.environ["JAX_PLATFORMS"]
    source = pt.randn(case.shape, device=device).to(getattr(pt, case.dtype))
    target = pt.empty_like(source)

    def work():
        for _ in range(PASSES["both"] // 2):
            target.copy_(source)

    def work_on_gpu():
        of_pass = _seconds(lambda: target.copy_(source), _wait_for_torch) / 2
        return {part: passes * of_pass for part, passes in PASSES.items()}

    return work if device == "cpu" else work_on_gpu


PEERS = {
    "normlab": normlab,
    "flax": flax,
    "torch": torch,
    "torch_compiled": torch_compiled,
    "keras": keras,
    "equinox": equinox,
    "floor": floor,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=5, help="in each peer's turn")
    parser.add_argument("--layers", nargs="*", default=[*SHAPES, *NEAREST])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--untuned", action="store_true", help="without normlab's settings")
    parser.add_argument("--name", help="of the file of results, if not that of script and GPU")
    given = parser.parse_args()

    shapes = SHAPES if given.device == "cpu" else GPU_SHAPES
    shapes = shapes | {name: shapes[nearest][:1] for name, nearest in NEAREST.items()}
    cases = [
        Case(layer, shape, dtype)
        for layer in given.layers
        for shape in shapes[layer]
        for dtype in DTYPES
    ]
    peers = {name: PEERS[name] for name in given.peers}
    name = given.name or name_of_results("layers", given.device)
    measured = measure(
        peers, cases, given.rounds, given.calls, device=given.device, tuned=not given.untuned
    )
    rows, results = [], {}
    # Written after every case, so that what was measured is kept if the rest is cut off.
    for case, seconds in zip(cases, measured, strict=True):
        if given.device == "cpu":
            spreads = {peer: spread(calls) for peer, calls in seconds.items()}
            rows.append({**case._asdict(), "seconds": spreads})
            results = {"rows": rows, "ratios": ratios(rows), "over_nearest": over_nearest(rows)}
        else:
            rows.append({**case._asdict(), **_by_part(seconds)})
            of_parts = {part: ratios(_rows_of(part, rows)) for part in PASSES}
            results = {"device": gpu_name(), "rows": rows, "ratios": of_parts}
        save(name, command_line(), results, complete=False)
    path = save(name, command_line(), results)
    if given.device == "cpu":
        show(results, "forward + backward, median milliseconds")
    else:
        for part in PASSES:
            of_part = {"rows": _rows_of(part, rows), "ratios": results["ratios"][part]}
            show(of_part, f"{part}, median milliseconds (passes over the tensor)")
    console.print(f"\n{path}")


def _by_part(seconds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """The spread of each part's seconds by peer, and how many passes could be made in that time."""
    spreads = {
        peer: {part: spread([call[part] for call in calls]) for part in PASSES}
        for peer, calls in seconds.items()
    }
    if "floor" not in spreads:
        return {"seconds": spreads}
    of_pass = spreads["floor"]["both"]["median"] / PASSES["both"]
    passes = {
        peer: {part: it[part]["median"] / of_pass for part in PASSES}
        for peer, it in spreads.items()
    }
    return {"seconds": spreads, "passes": passes}


def _rows_of(part: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with that part alone, and with the fastest of the other libraries for each."""
    found = []
    for row in rows:
        seconds = {peer: it[part] for peer, it in row["seconds"].items()}
        passes = {peer: it[part] for peer, it in row.get("passes", {}).items()}
        others = [it for peer, it in seconds.items() if peer not in ("normlab", "floor")]
        if others:
            seconds["fastest_other"] = min(others, key=lambda it: it["median"])
        found.append({**row, "seconds": seconds, "passes": passes})
    return found


def ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many times as fast as each peer normlab is, by dtype; and the slowest against Flax."""
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        of_peer: dict[str, list[float]] = {}
        for row in rows:
            times = {peer: it["median"] for peer, it in row["seconds"].items()}
            if row["dtype"] == dtype and row["layer"] in SHAPES and "normlab" in times:
                for peer, seconds in times.items():
                    of_peer.setdefault(peer, []).append(seconds / times["normlab"])
        of_peer.pop("normlab", None)
        found[dtype] = {
            peer: {"geometric_mean": geometric_mean(r), "least": min(r), "cases": len(r)}
            for peer, r in of_peer.items()
        }
    return found


def over_nearest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The time of each layer that Flax lacks over that of Flax's nearest, by dtype."""
    times = {
        (row["layer"], tuple(row["shape"]), row["dtype"], peer): it["median"]
        for row in rows
        for peer, it in row["seconds"].items()
    }
    found: dict[str, Any] = {dtype: {} for dtype in DTYPES}
    for (layer, shape, dtype, peer), seconds in times.items():
        nearest = times.get((NEAREST.get(layer), shape, dtype, "flax"))
        if peer == "normlab" and nearest:
            found[dtype][layer] = seconds / nearest
    return found


def show(results: dict[str, Any], title: str) -> None:
    peers = [p for p in PEERS if any(p in row["seconds"] for row in results["rows"])]
    table = Table(box=None, pad_edge=False, title=title)
    for column in ("layer", "shape", "dtype", *peers):
        table.add_column(column, justify="left" if column in ("layer", "dtype") else "right")
    for row in results["rows"]:
        times = [row["seconds"].get(peer) for peer in peers]
        cells = [f"{it['median'] * 1e3:.2f}" if it else "" for it in times]
        if row.get("passes"):
            passes = [row["passes"].get(peer) for peer in peers]
            cells = [f"{c} ({n:.2f})" if n else "" for c, n in zip(cells, passes, strict=True)]
        shape = "x".join(map(str, row["shape"]))
        table.add_row(row["layer"], shape, row["dtype"].replace("float", "f"), *cells)
    console.print(table)
    for dtype, of_peer in results["ratios"].items():
        said = ", ".join(
            f"{peer} {it['geometric_mean']:.2f} (least {it['least']:.2f})"
            for peer, it in of_peer.items()
        )
        console.print(f"{dtype}: times as fast as {said}")
    for dtype, of_layer in results.get("over_nearest", {}).items():
        if of_layer:
            said = ", ".join(f"{layer} {ratio:.2f}" for layer, ratio in of_layer.items())
            console.print(f"{dtype}: time over that of Flax's nearest layer: {said}")


if __name__ == "__main__":
    main()
