"""Runs that are killed at random moments, for tests; as a command, with as many kills as wanted.

python tests/compare/killing.py KILLS SEED
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as orbax
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from command import normlab, started

STUDY = {
    "study": "small",
    "data": {"name": "digits", "batch_size": 16, "train_examples": 160},
    "model": {"name": "mlp", "hidden": [16], "dropout": 0.1},
    "optimizer": {"name": "sgd", "momentum": 0.9, "schedule": "cosine", "learning_rate": 0.05},
    # Every step is saved, so that a good part of the moments lie within saving.
    "train": {"epochs": 12, "augment": "flip", "checkpoint_every": 1},
    "variants": {"batch": {"layer": "batch_norm"}},
    "seeds": 2,
}
STEPS = 120


def write_study(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


def train(out):
    return ["train", "small.yaml", "--save", f"{out}_saved", "--out", out]


def kill_at_random(arguments, folder, saved, kills, draw):
    """Kills a command at random moments, counted from its start or from its first checkpoint.

    Returns:
        How often it was saving when it was killed.
    """
    saving = 0
    for _ in range(kills):
        process = started(*arguments, folder=folder)
        if draw.random() < 0.8:
            before = set(folder.glob(f"{saved}/[0-9]*"))
            while set(folder.glob(f"{saved}/[0-9]*")) == before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.6))
        else:
            time.sleep(draw.uniform(0, 6))
        process.kill()
        process.communicate()
        saving += bool([*folder.glob(f"{saved}/*.part*")])
    return saving


def result(folder):
    """What the one run in a folder came to, whatever time it took."""
    (path,) = folder.glob("runs/*.json")
    return {**json.loads(path.read_text()), "seconds": None, "checksum": None}


def arrays(folder):
    """All arrays of the last checkpoint in a folder."""
    last = max(folder.glob("[0-9]*"))
    checkpointer = orbax.Checkpointer(orbax.PyTreeCheckpointHandler())
    return last.name, checkpointer.restore(last / "arrays")


def compare(folder, out, other):
    """Compares two runs to the bit: metrics, parameters, statistics, optimizer, key."""
    assert result(folder / out) == result(folder / other)
    (step, one), (last, two) = (arrays(folder / f"{it}_saved") for it in (out, other))
    assert step == last == f"{STEPS:010d}"
    assert one.keys() == two.keys()
    assert any(name.startswith("opt_state") for name in one)
    for name, array in one.items():
        assert array.dtype == two[name].dtype
        np.testing.assert_array_equal(array, two[name])


def main(kills, seed):
    folder = Path(tempfile.mkdtemp())
    write_study(folder)
    normlab(*train("whole"), folder=folder)
    saving = kill_at_random(train("killed"), folder, "killed_saved", kills, random.Random(seed))
    done = normlab(*train("killed"), folder=folder)
    compare(folder, "whole", "killed")
    print(done.stdout)
    print(f"{kills} kills, {saving} of them while saving: the same to the bit")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
