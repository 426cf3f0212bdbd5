"""How much memory `normlab compare` holds while one study makes 5,000 tiny runs.

    python experiments/benchmarks/many_runs.py

The study has ten variants of a small network on 64 images of the digits for one epoch, with 500
seeds each. While the command goes, its resident memory is read off `/proc` about every 250 runs;
the peak is that of all of it, curves and page included.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from interleaved import command_line, console, save
from rich.table import Table

STUDY = {
    "study": "many_runs",
    "data": {"name": "digits", "train_examples": 64, "batch_size": 32},
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"epochs": 1},
    "variants": {
        "none": {"layer": "identity"},
        **{f"batch_{n}": {"layer": "batch_norm", "momentum": n / 10} for n in range(1, 10)},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), given.runs)
    path = save("many_runs", command_line(), figures, complete=given.runs == 5000)
    table = Table("runs done", "resident MB", box=None)
    for point in figures["curve"]:
        table.add_row(f"{point['runs']:,}", f"{point['mb']:,}")
    console.print(table)
    console.print(f"Peak: {figures['peak_mb']:,} MB. Figures: {path}")


def measure(folder: Path, runs: int) -> dict[str, Any]:
    """Runs the study, and returns its memory by the number of runs done, and what it took."""
    config = folder / "many_runs.yaml"
    config.write_text(
        yaml.safe_dump(STUDY | {"seeds": runs // len(STUDY["variants"])}, sort_keys=False)
    )
    began = time.perf_counter()
    process = subprocess.Popen(
        [Path(sys.executable).with_name("normlab"), "compare", config, "--out", folder / "out"],
        stdout=subprocess.DEVNULL,
    )
    curve: list[dict[str, int]] = []
    peak = 0
    while process.poll() is None:
        now, peak = memory(process.pid, "VmRSS"), memory(process.pid, "VmHWM") or peak
        done = sum(1 for _ in (folder / "out" / "runs").glob("*.json"))
        if done and (not curve or done >= curve[-1]["runs"] + runs // 20):
            curve.append({"runs": done, "mb": now})
        time.sleep(0.2)
    if process.returncode:
        sys.exit(f"normlab compare ended with {process.returncode}")
    seconds = round(time.perf_counter() - began, 1)
    return {"curve": curve, "peak_mb": peak, "seconds": seconds}


def memory(process: int, kind: str) -> int:
    """Memory of a process in MB, of a kind that Linux tells; 0 as it ends."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    told = [line.split()[1] for line in lines if line.startswith(f"{kind}:")]
    return int(told[0]) // 1000 if told else 0


if __name__ == "__main__":
    main()
