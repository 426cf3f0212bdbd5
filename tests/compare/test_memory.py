"""One study of many tiny runs: memory stays where it is once the first of them are made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = {
    "study": "many",
    "data": {"name": "digits", "train_examples": 64, "batch_size": 32},
    "model": {"name": "mlp", "hidden": [4]},
    "train": {"epochs": 1},
    "variants": {"batch": {"layer": "batch_norm"}},
    "seeds": 301,
}
# The resident memory as each result is written, which the study's own process tells.
PROGRAM = """
import json, os, sys
from pathlib import Path
from normlab.compare.environment import environment
from normlab.compare.run import run_study
from normlab.compare.store import Store
from normlab.config import make_study

resident, write = [], Store.write

def written(store, result):
    write(store, result)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    resident.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

Store.write = written
study = make_study(json.loads(sys.argv[1]), {})
run_study(study, Store(Path("runs")), environment("many"), lambda *_: None)
print(json.dumps(resident))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read off /proc")
def test_a_run_leaves_nothing_in_memory_but_its_figures(tmp_path):
    """A result that is kept as Python reads it takes 10 KiB: 50 MB in a study of 5,000."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(STUDY)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    resident = json.loads(done.stdout.splitlines()[-1])
    assert len(resident) == 301
    # Python or JAX may take a block once; in MiB, of which such results take 1 in each hundred.
    growth = resident[200] - resident[100], resident[300] - resident[200]
    assert min(growth) < 0.5, resident[::50]
