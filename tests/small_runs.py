"""Programs and runs of a made data set, for tests of training."""

import numpy as np

from normlab.data import Dataset
from normlab.models import network_of
from normlab.objectives import Classification
from normlab.train import (
    MeshSpec,
    Outcome,
    Programs,
    Resident,
    SGDSpec,
    Streamed,
    TrainSpec,
    fit,
    place,
)


def small_dataset(train=50, validation=13, test=21):
    generator = np.random.default_rng(0)
    count = train + validation + test
    labels = generator.integers(0, 3, count).astype(np.int32)
    images = generator.integers(0, 40, (count, 4, 4, 1)) + 60 * labels[:, None, None, None]
    order = np.arange(count, dtype=np.int32)
    return Dataset(
        name="made",
        images=images.astype(np.uint8),
        labels=labels,
        train=order[:train],
        validation=order[train : train + validation],
        test=order[train + validation :],
        mean=images[:train].mean((0, 1, 2)).astype(np.float32),
        deviation=images[:train].std((0, 1, 2)).astype(np.float32),
        classes=3,
    )


def programs_of(
    model,
    dataset: Dataset,
    batch_size: int = 8,
    optimizer=None,
    train: TrainSpec | None = None,
    objective=None,
    width: int = 1,
    mesh: MeshSpec | None = None,
    stream: bool = False,
) -> Programs:
    train = train or TrainSpec(epochs=3)
    devices = mesh.devices() if mesh else None
    how = batch_size, train.augmentation, train.precision
    if stream:
        feed = Streamed(dataset, *how, devices)
    else:
        feed = Resident(place(dataset, batch_size, devices), *how)
    return Programs(
        network_of(model),
        objective or Classification(),
        feed,
        optimizer or SGDSpec(learning_rate=0.05),
        train,
        width,
        devices,
    )


def run(programs: Programs, seed: int, values=None, **options) -> Outcome:
    (outcome,) = fit(programs, [seed], [values or {}], **options)
    return outcome


def initialized(programs: Programs, seed: int):
    state, _ = programs.initialize(*programs.inputs([seed], [{}]))
    return state
