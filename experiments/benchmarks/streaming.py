"""A data set that is streamed from a file beside the same one on the device: time of an epoch.

    python experiments/benchmarks/streaming.py

The network and optimizer of configs/cifar10_resnet8.yaml on random images of 32x32x3 bytes in an
npz file. Both epochs are run in turn in one process, the one or the other first, and the ratio is
that of each pair, so that what disturbs the machine disturbs both: of the time that passed, and of
the seconds of all cores, which other processes disturb less.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from interleaved import command_line, console, geometric_mean, save, spread

CONFIG = Path(__file__).parents[2] / "configs/cifar10_resnet8.yaml"


def write_images(file: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, count, 32, 32, 3), np.uint8)
    names = ("train_images", "test_images")
    labels = {name: np.arange(count) % 10 for name in ("train_labels", "test_labels")}
    np.savez(file, **dict(zip(names, images, strict=True)), **labels)


def epoch(file: Path, batch_size: int, *, stream: bool) -> Callable[[], tuple[float, float]]:
    """Returns what trains for an epoch, and tells the seconds, and those of all cores."""
    import jax

    from normlab.config import load_study
    from normlab.data import load
    from normlab.models import network_of
    from normlab.train import Programs, Resident, Streamed, place

    changes = ["data.name=npz", f"data.folder={file}", f"data.batch_size={batch_size}"]
    study = load_study(CONFIG, [*changes, "data.train_examples=null", f"data.stream={stream}"])
    dataset = load(study.data)
    model = study.network(study.arms()[0], dataset.classes, integers=False)
    how = batch_size, study.train.augmentation, study.train.precision
    feed = Streamed(dataset, *how) if stream else Resident(place(dataset, batch_size), *how)
    programs = Programs(network_of(model), study.objective, feed, study.optimizer, study.train)
    state, sums = programs.initialize(*programs.inputs([0], [{}]))
    _, traced = programs.inputs([0], [{}])
    coming = feed.coming(state, 2**30, 1)

    def train() -> tuple[float, float]:
        nonlocal state, sums
        start = time.perf_counter(), time.process_time()
        state, sums = programs.advance(state, sums, traced, coming(feed.steps_per_epoch))
        jax.block_until_ready(sums)
        return time.perf_counter() - start[0], time.process_time() - start[1]

    for _ in range(2):
        train()
    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=3200, help="of which 4 in 5 are trained on")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        write_images(file, given.images)
        ways = [epoch(file, given.batch_size, stream=it) for it in (False, True)]
        pairs = []
        for number in range(given.pairs):
            first = number % 2
            told = {way: ways[way]() for way in (first, 1 - first)}
            pairs.append([told[0], told[1]])
    kinds = ("seconds", "seconds_of_cores")
    results = {}
    for place, kind in enumerate(kinds):
        resident, streamed = ([pair[way][place] for pair in pairs] for way in (0, 1))
        ratios = [after / before for before, after in zip(resident, streamed, strict=True)]
        results[kind] = {
            "resident": spread(resident),
            "streamed": spread(streamed),
            "ratio": {**spread(ratios), "geometric_mean": geometric_mean(ratios)},
        }
        told = results[kind]["ratio"]
        console.print(
            f"{kind.replace('_', ' ')}, streamed over resident: median {told['median']:.2f} "
            f"({told['low']:.2f}-{told['high']:.2f}) of {given.pairs} pairs"
        )
    console.print(save("streaming", command_line(), results))


if __name__ == "__main__":
    main()
