"""Compiles the study for 1, 16, 64 and 256 chips, and puts the table into the README."""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SLICES = ("1x1", "4x4", "8x8", "16x16")
MARK = "<!-- written by run.py -->"
HEAD = """\
| variant | chips | passes | more than none | peak memory, MB | collectives | bytes in them | ms |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""


def table(costs):
    """The figures of cost.json as Markdown."""
    least = {cost["chips"]: cost["passes"] for cost in costs if cost["arm"] == "none"}
    rows = []
    for cost in costs:
        exchanges = cost["collectives"].values()
        rows.append(
            f"| {cost['arm']} | {cost['chips']} | {cost['passes']:.1f} "
            f"| {cost['passes'] - least[cost['chips']]:+.1f} | {cost['memory'] / 1e6:.0f} "
            f"| {sum(it['count'] for it in exchanges)} "
            f"| {sum(it['bytes'] for it in exchanges):,} | {_milliseconds(cost['seconds'])} |\n"
        )
    return HEAD + "".join(rows)


def _milliseconds(seconds):
    return "" if seconds is None else f"{1e3 * seconds:.2f}"


def main():
    results = HERE / "results"
    targets = [f"tpu:v5e:{shape}" for shape in SLICES]
    command = ["cost", HERE / "scale_on_paper.yaml", "--target", *targets, "--out", results]
    program = "from normlab.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, *map(str, command)], check=True)
    readme = HERE / "README.md"
    before, _, after = readme.read_text().split(MARK)
    costs = json.loads((results / "cost.json").read_text())["costs"]
    readme.write_text(f"{before}{MARK}\n\n{table(costs)}\n{MARK}{after}")


if __name__ == "__main__":
    main()
