"""Writes the tables of the last full runs into README.md, here and at the top.

python experiments/benchmarks/tables.py
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEEDS, MANY = 4, ("normlab_vmap", "normlab_map")
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
    """Images a second of two networks."""
    lines = []
    for row in results("training")["rows"]:
        if row["arm"] != "batch":
            continue
        peers = list(row["seconds"])
        # Those that train several seeds at once go through as many times the images.
        images = [row["images"] * (SEEDS if peer in MANY else 1) for peer in peers]
        seconds = [it["median"] for it in row["seconds"].values()]
        lines.append(
            [row["model"], *(f"{n / s:.0f}" for n, s in zip(images, seconds, strict=True))]
        )
    return table(["training, images a second", *peers], lines)


def grid() -> str:
    """Seconds of the quickstart, from the start of the process to its end."""
    rows = results("grid")["rows"]
    lines = [
        ["seconds", *(f"{row['seconds']['median']:.0f}" for row in rows.values())],
        ["programs compiled", *(str(row["programs"]) for row in rows.values())],
    ]
    return table(["quickstart, 108 runs from cold", *rows], lines)


TABLES = {"layers": layers, "ratios": ratios, "training": training, "grid": grid}


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        for name, made in TABLES.items():
            begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
            text = re.sub(f"{begin}.*?{end}", f"{begin}\n\n{made()}\n\n{end}", text, flags=re.S)
        page.write_text(text)


if __name__ == "__main__":
    main()
