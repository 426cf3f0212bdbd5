"""Forward and backward pass of every layer, beside the same layer elsewhere and the memory floor.

    python experiments/benchmarks/layers.py

The floor is eight passes over the tensor, as four copies of it: forward it must be read twice and
the result written, backward input and incoming gradient are read twice and a gradient written.
Input, incoming gradient, scale and bias are arguments of the compiled programs, never constants.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from interleaved import command_line, console, geometric_mean, measure, save, spread
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
DTYPES = ("float32", "bfloat16")
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


def _gradients_of_linen(layer: Any, case: Case, arguments: dict[str, Any]) -> Callable[[], None]:
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 3)
    x, dy = (jax.random.normal(key, case.shape).astype(case.dtype) for key in keys[:2])
    variables = dict(layer.init(keys[2], x, **arguments))
    params, state = variables.pop("params", {}), variables
    params = jax.tree.map(lambda p: p + 0.1 * jnp.arange(p.size).reshape(p.shape) / p.size, params)

    @jax.jit
    def both(params, state, x, dy):
        def forward(params, x):
            return layer.apply({"params": params, **state}, x, mutable=list(state), **arguments)

        y, backward, state_after = jax.vjp(forward, params, x, has_aux=True)
        return y, backward(dy), state_after

    return lambda: jax.block_until_ready(both(params, state, x, dy))


def normlab(case: Case) -> Callable[[], None]:
    from normlab.variants import VARIANTS

    layer = VARIANTS[case.layer].layer(dtype=case.dtype)
    return _gradients_of_linen(layer, case, {"use_running_average": False})


def flax(case: Case) -> Callable[[], None] | None:
    from flax import linen as nn

    name = {"rms_norm": "RMSNorm"}.get(case.layer, case.layer.title().replace("_", ""))
    if case.layer not in SHAPES:
        return None
    arguments = {"use_running_average": False} if case.layer == "batch_norm" else {}
    return _gradients_of_linen(getattr(nn, name)(dtype=case.dtype), case, arguments)


def keras(case: Case) -> Callable[[], None] | None:
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

    @jax.jit
    def both(trained, state, x, dy):
        def forward(trained, x):
            return layer.stateless_call(trained, state, x, **arguments)

        y, backward, state_after = jax.vjp(forward, trained, x, has_aux=True)
        return y, backward(dy), state_after

    return lambda: jax.block_until_ready(both(trained, state, x, dy))


def equinox(case: Case) -> Callable[[], None] | None:
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

    @eqx.filter_jit
    def both(trained, state, x, dy):
        def forward(trained, x):
            layer = eqx.combine(trained, rest)
            if case.layer != "batch_norm":
                return jax.vmap(layer)(x).astype(x.dtype), state
            y, after = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
                x, state
            )
            return y.astype(x.dtype), after

        y, backward, state_after = jax.vjp(forward, trained, x, has_aux=True)
        return y, backward(dy), state_after

    return lambda: jax.block_until_ready(both(trained, state, x, dy))


def torch(case: Case, compiled: bool = False) -> Callable[[], None] | None:
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
    dtype = getattr(pt, case.dtype)
    layer = layers[case.layer](channels).to(dtype)
    x, dy = (pt.randn(case.shape).to(dtype) for _ in range(2))
    if images and case.layer not in ("layer_norm", "rms_norm"):
        x, dy = (a.permute(0, 3, 1, 2) for a in (x, dy))  # the same memory: channels last
    x.requires_grad_()
    pt.compiler.reset()  # Compiled anew for each case, as a program of its own would be.
    function = pt.compile(layer) if compiled else layer
    inputs = (x, *layer.parameters())

    def work():
        pt.autograd.grad(function(x), inputs, dy)

    return work


def torch_compiled(case: Case) -> Callable[[], None] | None:
    return torch(case, compiled=True)


def floor(case: Case) -> Callable[[], None]:
    import torch as pt

    source = pt.randn(case.shape).to(getattr(pt, case.dtype))
    target = pt.empty_like(source)

    def work():
        for _ in range(4):
            target.copy_(source)

    return work


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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=5, help="in each peer's turn")
    parser.add_argument("--layers", nargs="*", default=[*SHAPES, *NEAREST])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--untuned", action="store_true", help="without normlab's settings")
    parser.add_argument("--name", default="layers", help="of the file of results")
    given = parser.parse_args()

    shapes = SHAPES | {name: SHAPES[nearest][:1] for name, nearest in NEAREST.items()}
    cases = [
        Case(layer, shape, dtype)
        for layer in given.layers
        for shape in shapes[layer]
        for dtype in DTYPES
    ]
    peers = {name: PEERS[name] for name in given.peers}
    measured = measure(peers, cases, given.rounds, given.calls, tuned=not given.untuned)
    rows = [
        {**case._asdict(), "seconds": {peer: spread(times) for peer, times in seconds.items()}}
        for case, seconds in zip(cases, measured, strict=True)
    ]
    results = {"rows": rows, "ratios": ratios(rows)}
    show(results)
    path = save(given.name, command_line(), results)
    console.print(f"\n{path}")


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


def show(results: dict[str, Any]) -> None:
    peers = [p for p in PEERS if any(p in row["seconds"] for row in results["rows"])]
    table = Table(box=None, pad_edge=False, title="forward + backward, median milliseconds")
    for column in ("layer", "shape", "dtype", *peers):
        table.add_column(column, justify="left" if column in ("layer", "dtype") else "right")
    for row in results["rows"]:
        times = [row["seconds"].get(peer) for peer in peers]
        cells = [f"{it['median'] * 1e3:.2f}" if it else "" for it in times]
        shape = "x".join(map(str, row["shape"]))
        table.add_row(row["layer"], shape, row["dtype"].replace("float", "f"), *cells)
    console.print(table)
    for dtype, of_peer in results["ratios"].items():
        said = ", ".join(
            f"{peer} {it['geometric_mean']:.2f} (least {it['least']:.2f})"
            for peer, it in of_peer.items()
        )
        console.print(f"{dtype}: times as fast as {said}")


if __name__ == "__main__":
    main()
