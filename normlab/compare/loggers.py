"""What is told of runs as they go to other programs that show curves: TensorBoard, and W&B."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..train import Record, RecordHook
from .grid import Run
from .store import writing
from .tensorboard import NAME, Events, library


class Logger(ABC):
    """Takes the points of the curve of one run.

    Args:
        folder: Where it writes, below the folder of the study.
        run: The run.
        name: Its name.
    """

    @abstractmethod
    def __init__(self, folder: Path, run: Run, name: str): ...

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes a point, whose metrics are called as "train_loss"."""

    @abstractmethod
    def close(self) -> None:
        """Has all of it written."""

    @staticmethod
    @abstractmethod
    def refuse_missing() -> None:
        """Finds out before any run whether the library is there.

        Raises:
            UserError: That says how to install it.
        """


class TensorBoard(Logger):
    """Writes `tensorboard/RUN`, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, run: Run, name: str):
        self._events = Events(folder / "tensorboard" / name / NAME, _TENSORBOARD)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds events, of the time that it is."""
        self._events.add(step, time.time(), metrics)

    def close(self) -> None:
        """Ends the file."""
        self._events.close()

    @staticmethod
    def refuse_missing() -> None:
        """Refuses to go on without tensorboardX."""
        library(_TENSORBOARD)


class WandB(Logger):
    """Writes `wandb/offline-run-*`, for `wandb sync`; nothing goes over the network."""

    def __init__(self, folder: Path, run: Run, name: str):
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        wandb = _wandb()
        self._run = wandb.init(
            mode="offline",
            dir=str(folder),
            project=run.study.study,
            group=run.arm.title,
            job_type=run.phase,
            name=name,
            id=name,
            config={**run.setting, "seed": run.seed},
            # Runs that are trained at a time are several in one process.
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, disable_git=True
            ),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a step of the history."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()

    @staticmethod
    def refuse_missing() -> None:
        """Refuses to go on without wandb."""
        _wandb()


_TENSORBOARD = "log: tensorboard"
LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WandB}


def refuse_missing(names: Sequence[str]) -> None:
    """Finds out before any run whether the libraries of some loggers are there.

    Raises:
        UserError: One is not installed.
    """
    for name in names:
        LOGGERS[name].refuse_missing()


@contextmanager
def logging_to(folder: Path, runs: Sequence[Run], names: Sequence[str]) -> Iterator[RecordHook]:
    """Gives the hook that tells the loggers of a study of runs that are trained at a time.

    Args:
        folder: The study's.
        runs: The runs.
        names: Their names.
    """
    with ExitStack() as opened:
        loggers = [
            [
                opened.enter_context(closing(LOGGERS[it](folder / "logs", run, name)))
                for it in run.study.log
            ]
            for run, name in zip(runs, names, strict=True)
        ]

        def log(place: int, record: Record) -> None:
            splits = {"train": record.train, "validation": record.validation or {}}
            metrics = {
                f"{split}_{name}": value
                for split, measured in splits.items()
                for name, value in measured.items()
            }
            for logger in loggers[place]:
                logger.log(record.step, metrics)

        yield RecordHook(log)


def _wandb() -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports] # an extra
    except ImportError as error:
        raise UserError("log: wandb: it is not installed; pip install 'normlab[wandb]'") from error
    return wandb
