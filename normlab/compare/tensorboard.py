"""Events as TensorBoard reads them, written by this process as they come."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .store import writing

NAME = "events.out.tfevents.normlab"


def library(told: str) -> Any:
    """Returns the modules of tensorboardX that write events.

    Args:
        told: What asks for them, for the message.

    Raises:
        UserError: It is not installed.
    """
    try:
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar
    except ImportError as error:
        raise UserError(
            f"{told}: tensorboardX is not installed; pip install 'normlab[tensorboard]'"
        ) from error
    return event_pb2, RecordWriter, scalar


class Events:
    """A file of events, begun anew.

    The library's own writer leaves the writing to a thread, whose errors nobody hears of.

    Args:
        path: The file.
        told: What asks for it, for the message where the library is not installed.
    """

    def __init__(self, path: Path, told: str):
        self._protocol, writer, self._scalar = library(told)
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            self._records = writer(str(path))
        self._write(wall_time=0, file_version="brain.Event:2")

    def add(self, step: int, time: float, metrics: Mapping[str, float | None]) -> None:
        """Adds the metrics of a point; those that are None are left out."""
        for name, value in metrics.items():
            if value is not None:
                self._write(wall_time=time, step=step, summary=self._scalar(name, value))
        with writing(self._path):
            self._records.flush()

    def close(self) -> None:
        """Ends the file."""
        with writing(self._path):
            self._records.close()

    def _write(self, **fields: Any) -> None:
        with writing(self._path):
            self._records.write(self._protocol.Event(**fields).SerializeToString())
