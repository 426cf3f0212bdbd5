"""Writes the tables of the last full runs into README.md, here and at the top.

python experiments/benchmarks/tables.py
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compile import STAGES
from layers import NEAREST, PASSES

HERE = Path(__file__).parent
GPU = "nvidia_h200"
PAGES = (HERE / "README.md", HERE.parents[1] / "README.md")


def results(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def layers() -> str:
    """Milliseconds of the layers that Flax has, and how they compare on the whole."""
    measured = results("layers")
    rows = [row for row in measured["rows"] if "flax" in row["seconds"]]
    peers = [peer for peer in rows[0]["seconds"] if peer != "floor"]
    lines = []
    for row in rows:
        times = [row["seconds"].get(peer) for peer in (*peers, "floor")]
        shape = " x ".join(map(str, row["shape"]))
        cells = [f"{it['median'] * 1e3:.2f}" if it else "" for it in times]
        lines.append([f"`{row['layer']}` {shape} {row['dtype']}", *cells])
    return table(["milliseconds", *peers, "floor"], lines) + "\n\n" + ratios()


def nearest() -> str:
    """The time of the layers that Flax lacks over that of the nearest one it has."""
    found = results("layers")["over_nearest"]
    lines = [
        [f"`{layer}`", f"`{NEAREST[layer]}`", *(f"{found[dtype][layer]:.2f}" for dtype in found)]
        for layer in found["float32"]
    ]
    return table(["layer", "nearest", *found], lines)


def ratios() -> str:
    """How many times as fast as each peer, in geometric mean over all shapes."""
    found = results("layers")["ratios"]
    peers = [peer for peer in found["float32"] if peer != "floor"]
    lines = [
        [dtype, *(f"{it[p]['geometric_mean']:.2f} ({it[p]['least']:.2f})" for p in peers)]
        for dtype, it in found.items()
    ]
    return table(["layers, times as fast as (at least)", *peers], lines)


def training() -> str:
    """Images a second of two networks, and the memory of a step."""
    sizes = results("training")["bytes_of_step"]
    lines = [
        [name, *(f"{n / 1e6:.0f}" for n in of_peer.values())] for name, of_peer in sizes.items()
    ]
    peers = next(iter(sizes.values()))
    memory = table(["memory of a step at its peak, MB", *peers], lines)
    return _rates("training") + "\n\n" + memory


def training_on_gpu() -> str:
    """As on a CPU, in two precisions."""
    return _rates(f"training_{GPU}")


def _rates(name: str) -> str:
    lines = []
    for row in results(name)["rows"]:
        if row["arm"] != "batch":
            continue
        rates = row["images_per_second"]
        precision = "" if row["precision"] == "float32" else f" {row['precision']}"
        lines.append([row["model"] + precision, *(f"{rate:,.0f}" for rate in rates.values())])
    return table(["training, images a second", *rates], lines)


def layers_on_gpu() -> str:
    """What each layer takes, in passes over the array; of other libraries, both parts together."""
    rows = results(f"layers_{GPU}")["rows"]
    others = [peer for peer in rows[0]["passes"] if peer not in ("normlab", "floor")]
    lines = []
    for row in rows:
        own = [f"{row['passes']['normlab'][part]:.1f}" for part in PASSES]
        times = [row["passes"].get(peer) for peer in others]
        shape = " x ".join(map(str, row["shape"]))
        cells = [f"{it['both']:.1f}" if it else "" for it in times]
        lines.append([f"`{row['layer']}` {shape} {row['dtype']}", *own, *cells])
    columns = [f"{part} ({passes})" for part, passes in PASSES.items()]
    return table(["passes (floor)", *columns, *(f"{peer} both" for peer in others)], lines)


def grid() -> str:
    """Seconds of the quickstart, from the start of the process to its end."""
    rows = results("grid")["rows"]
    lines = [
        ["seconds", *(f"{row['seconds']['median']:.0f}" for row in rows.values())],
        ["programs compiled", *(str(row["programs"]) for row in rows.values())],
    ]
    return table(["quickstart, 108 runs from cold", *rows], lines)


def compilation() -> str:
    """Programs, and seconds of tracing, lowering and compiling them, by arm."""
    rows = results("compile")["rows"]
    peers = list(rows[0]["programs"])
    lines = []
    for row in rows:
        cells = []
        for peer in peers:
            made = row["programs"].get(peer, {}).values()
            seconds = sum(it[stage]["median"] for it in made for stage in STAGES.values())
            count = sum(it["programs"] for it in made)
            cells += [str(count), f"{seconds:.2f}"] if made else ["", ""]
        lines.append([f"{row['study']} {row['arm']}", *cells])
    columns = [f"{peer}, {what}" for peer in peers for what in ("programs", "seconds")]
    return table(["arm", *columns], lines)


TABLES = {
    "layers": layers,
    "nearest": nearest,
    "ratios": ratios,
    "training": training,
    "grid": grid,
    "compile": compilation,
    "layers on gpu": layers_on_gpu,
    "training on gpu": training_on_gpu,
}


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        for name, made in TABLES.items():
            begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
            text = re.sub(f"{begin}.*?{end}", f"{begin}\n\n{made()}\n\n{end}", text, flags=re.S)
        page.write_text(text)


if __name__ == "__main__":
    main()
