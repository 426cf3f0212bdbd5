"""How long reports of many results take, and how much memory: whole processes on drawn folders.

    python experiments/benchmarks/report_load.py

Three folders are written, whose results are drawn from formulas and cost no training. Of each,
`report` is the command `normlab report FOLDER`; `written` is `normlab compare` of the same study,
which finds every run done and writes curves and page; `again` is the same once more, which has
nothing to do. Seconds of the processor, user and system, are less disturbed by what else runs on a
machine than those on the wall.

| case | arms | results |
| --- | ---: | ---: |
| `seeds` | 20, of 150 seeds | 3,000 |
| `arms` | 60, of 5 seeds and 4 rates with 3 seeds | 1,020 |
| `thousand` | 1,000, of 100 seeds | 100,000 |

The last has `report` alone, since the names of its runs are not those of a study.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from interleaved import command_line, console, save
from rich.table import Table

EPOCHS = 20
STEPS = 22
RATES = [0.01, 0.03, 0.1, 0.3]
CASES = {
    "seeds": {"arms": 20, "seeds": 150, "rates": [], "tune_seeds": 0, "named": True},
    "arms": {"arms": 60, "seeds": 5, "rates": RATES, "tune_seeds": 3, "named": True},
    "thousand": {"arms": 1000, "seeds": 100, "rates": [], "tune_seeds": 0, "named": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--folder", type=Path, help="keeps what is written, and takes it up again")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = {case: measure(case, given.folder or Path(temporary)) for case in given.cases}
    complete = set(given.cases) == set(CASES)
    path = save("report_load", command_line(), {"cases": rows}, complete=complete)
    table = Table("", *rows, box=None)
    for name in dict.fromkeys(name for row in rows.values() for name in row):
        table.add_row(name, *(f"{row[name]:,.1f}" if name in row else "" for row in rows.values()))
    console.print(table)
    console.print(f"Figures: {path}")


def measure(case: str, folder: Path) -> dict[str, float]:
    """Writes the folder of a case unless it is there, and measures the commands on it."""
    study, config = folder / case, folder / f"{case}.yaml"
    if not (study / "environment.json").exists():
        began = time.perf_counter()
        write(study, config, **CASES[case])
        console.print(f"{case}: written in {time.perf_counter() - began:.0f} s")
    measured = dict(_timed("report", "report", str(study)))
    measured["page_mb"] = round((study / "report.html").stat().st_size / 1e6, 2)
    if CASES[case]["named"]:
        for name in ("written", "again"):
            measured |= _timed(name, "compare", str(config), "--out", str(study))
    return measured


def _timed(name: str, *arguments: str) -> Iterator[tuple[str, float]]:
    began = time.perf_counter()
    process = subprocess.Popen(
        [Path(sys.executable).with_name("normlab"), *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"normlab {' '.join(arguments)} ended with {process.returncode}")
    yield f"{name}_wall_seconds", round(time.perf_counter() - began, 2)
    yield f"{name}_user_seconds", round(usage.ru_utime, 2)
    yield f"{name}_system_seconds", round(usage.ru_stime, 2)
    yield f"{name}_peak_mb", round(usage.ru_maxrss / 1e3)


def write(
    folder: Path,
    config: Path,
    *,
    arms: int,
    seeds: int,
    rates: list[float],
    tune_seeds: int,
    named: bool,
) -> None:
    """Writes a study and a result for each of its runs, without training any."""
    momenta = [round(0.5 + 0.49 * place / arms, 6) for place in range(arms)]
    given = {
        "study": folder.name,
        "data": {"name": "digits", "batch_size": 64},
        "model": {"name": "mlp", "hidden": [16]},
        "train": {"epochs": EPOCHS},
        "variants": {
            f"momentum_{momentum:g}": {"layer": "batch_norm", "momentum": momentum}
            for momentum in momenta
        },
        "seeds": seeds,
    }
    if rates:
        given["tune"] = {"optimizer.learning_rate": rates, "seeds": tune_seeds}
    config.parent.mkdir(parents=True, exist_ok=True)
    from normlab.compare.environment import environment
    from normlab.compare.grid import final_runs, tuning_runs
    from normlab.compare.store import Store
    from normlab.compare.workbench import Workbench, label
    from normlab.config import load_study

    # A study of a thousand arms would be told to take more seeds before its first run, so that it
    # is written as one of two and its variants are put in by hand.
    if not named:
        given["variants"] = dict(list(given["variants"].items())[:2])
    config.write_text(yaml.safe_dump(given, sort_keys=False))
    study = load_study(config)
    store, described = Store(folder), environment(f"normlab compare {config}")
    told = study.model_dump(mode="json")
    if not named:
        fields = next(iter(told["variants"].values()))
        told["variants"] = {
            f"momentum_{momentum:g}": fields | {"momentum": momentum} for momentum in momenta
        }
    store.write_config(told)
    (folder / "runs").mkdir(exist_ok=True)
    if not named:
        for place, variant in enumerate(told["variants"]):
            where = {"arm": variant, "variant": variant, "levels": {}, "task": ""}
            for seed in range(seeds):
                name, skill = f"final-{place}-{seed}", 0.9 + 0.07 * np.sin(place) ** 2
                draw(folder, name, where, "final", seed, {}, skill, {})
        store.write_environment(described)
        return
    bench, plan = Workbench(described), {}
    for place, arm in enumerate(study.arms()):
        skill = 0.9 + 0.07 * np.sin(place) ** 2
        runs = tuning_runs(study, arm)
        best = {"optimizer.learning_rate": rates[1]} if rates else {}
        for run in [*runs, *final_runs(study, arm, best)]:
            name, identity = bench.identify(run)
            plan[name] = label(run)
            rate = run.values.get("optimizer.learning_rate", RATES[1])
            worse = 0.03 * abs(np.log10(rate / RATES[1]))
            where = dict(label(run)) | {"variant": arm.variant}
            draw(folder, name, where, run.phase, run.seed, run.values, skill - worse, identity)
    store.write_plan(plan)
    store.write_environment(described)


def draw(
    folder: Path,
    name: str,
    where: Mapping[str, Any],
    phase: str,
    seed: int,
    values: Mapping[str, Any],
    skill: float,
    identity: Mapping[str, Any],
) -> None:
    """Writes a result whose accuracy rises to a skill, with chance of the seed and of its own."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    end = skill + 0.01 * np.random.default_rng(seed).normal() + 0.005 * rng.normal()
    accuracy = end - 0.6 * np.exp(-0.4 * np.arange(EPOCHS)) + 0.004 * rng.normal(size=EPOCHS)
    accuracy = np.clip(accuracy, 0, 1).tolist()
    loss = (2.2 * (1 + np.arange(EPOCHS)) ** -0.7 * (1 + 0.05 * rng.normal())).tolist()
    measured = {"loss": loss, "accuracy": accuracy}
    steps = [STEPS * (epoch + 1) for epoch in range(EPOCHS)]
    curve = {"step": steps, "train": measured, "validation": measured}
    result = {
        "id": name,
        "phase": phase,
        **where,
        "seed": seed,
        "values": dict(values),
        "status": "finished",
        "steps_per_epoch": STEPS,
        "curve": curve,
        "test": {"loss": 2.5 * max(0, 1 - end), "accuracy": round(min(end, 1) * 360) / 360},
        "seconds": 0.4 + 0.05 * rng.random(),
        "identity": dict(identity),
    }
    if phase == "tune":
        result["test"] = None
    from normlab.checksum import sealed

    # Not by the store, which waits for the disk after each file.
    (folder / "runs" / f"{name}.json").write_text(sealed(result))
    lines = (
        json.dumps(
            {"epoch": epoch + 1, "step": (epoch + 1) * STEPS}
            | {
                f"{split}_{name}": values[epoch]
                for split in ("train", "validation")
                for name, values in measured.items()
            }
        )
        for epoch in range(EPOCHS)
    )
    (folder / "runs" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
