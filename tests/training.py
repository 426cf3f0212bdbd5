"""Programs and runs of a made data set, for tests of training."""

from normlab.data import Dataset
from normlab.models import network_of
from normlab.objectives import Classification
from normlab.train import Outcome, Programs, Resident, SGDSpec, TrainSpec, fit, place


def programs_of(
    model,
    dataset: Dataset,
    batch_size: int = 8,
    optimizer=None,
    train: TrainSpec | None = None,
    objective=None,
    width: int = 1,
) -> Programs:
    train = train or TrainSpec(epochs=3)
    feed = Resident(place(dataset, batch_size), batch_size, train.augment, train.precision)
    return Programs(
        network_of(model),
        objective or Classification(),
        feed,
        optimizer or SGDSpec(learning_rate=0.05),
        train,
        width,
    )


def run(programs: Programs, seed: int, values=None, **options) -> Outcome:
    (outcome,) = fit(programs, [seed], [values or {}], **options)
    return outcome


def initialized(programs: Programs, seed: int):
    state, _ = programs.initialize(*programs.inputs([seed], [{}]))
    return state
