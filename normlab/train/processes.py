"""Several processes, on one machine or many, that train one run together."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..errors import UserError

# Seconds after which a process that is not heard of counts as ended, and the others end; and for
# which all wait for the first one, which writes what the run came to, to part from it.
SILENCE = 30

# Where launchers of MPI say how many processes there are, which one this is, and which of those on
# its machine: Open MPI; MPICH and Intel MPI.
_MPI = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
)


class ProcessesError(UserError):
    """The processes of a run do not come together."""


def join(coordinator: str, count: int | None, number: int | None) -> bool:
    """Makes this process one of several whose devices are those of one run.

    All of them call the same, before JAX has looked for devices.

    Args:
        coordinator: Address and port of process 0, where the others find it; "auto" for what Slurm,
            Open MPI or a cloud says of all three; empty for a process by itself.
        count: How many processes there are; None for what a launcher of MPI, or Slurm, says.
        number: Which one this is, from 0; likewise.

    Returns:
        Whether this process is the one that tells and writes.

    Raises:
        ProcessesError: If the arguments are not those of one of several, or not all came.
    """
    told = {"--num-processes": count, "--process-id": number}
    given = [name for name, value in told.items() if value is not None]
    if not coordinator and not given:
        return True
    if coordinator == "auto":
        if given:
            raise ProcessesError(
                f"--coordinator auto finds out {' and '.join(given)} itself; leave out one or the "
                "other"
            )
    elif not coordinator or len(given) == 1:
        raise ProcessesError(
            "of --coordinator, --num-processes and --process-id some were given; expected all "
            "three, as in --coordinator 10.0.0.1:1234 --num-processes 2 --process-id 0, or only "
            "the first, where a launcher of MPI says the others, or --coordinator auto, where "
            "Slurm, Open MPI or a cloud says all"
        )
    elif count is not None and number is not None and not 0 <= number < count:
        raise ProcessesError(f"--process-id: {number} is none of 0 to {count - 1}")
    elif not all(coordinator.rpartition(":")) or not coordinator.rpartition(":")[2].isdecimal():
        raise ProcessesError(
            f"--coordinator: {coordinator!r} is no address and port, as 10.0.0.1:1234"
        )
    # It would take SIGTERM for itself, which then would end nothing.
    jax.config.update("jax_enable_preemption_service", False)
    devices = None
    try:
        if coordinator != "auto" and not given:
            count, number, devices = _of_mpi()
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            count,
            number,
            devices,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=SILENCE,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ProcessesError(f"--coordinator {coordinator}: {error}{_remedy(error)}") from error
    return is_first()


def _of_mpi() -> tuple[int | None, int | None, int | None]:
    """What a launcher of MPI says: how many processes, which one this is, and which GPU it has."""
    for names in _MPI:
        count, number, device = (os.environ.get(name) for name in names)
        if count is not None and number is not None:
            return int(count), int(number), None if device is None else int(device)
    return None, None, None


def _remedy(error: Exception) -> str:
    """What to do where JAX finds nothing of what it is to find out."""
    if "should be defined" in str(error):
        return (
            " Give the address of process 0 as --coordinator HOST:PORT, which mpiexec of any MPI "
            "adds the numbers of the processes to."
        )
    if "must be defined" in str(error):
        return " No launcher says it; give --num-processes and --process-id."
    return ""


def is_first() -> bool:
    """Whether this process is the one that tells and writes, as one by itself is."""
    return jax.process_index() == 0


def of_first(number: int) -> int:
    """Returns the number that the first process gives, which the others wait for."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def any_of_all(here: bool) -> bool:
    """Whether something is so in one of the processes, which wait for each other to know it."""
    return bool(np.any(multihost_utils.process_allgather(np.bool_(here))))


def fetched(array: jax.Array) -> np.ndarray:
    """Returns the whole of an array, parts that lie with other processes included."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def leave() -> None:
    """Parts from the others, before an end that would not wait for them."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


@contextmanager
def with_others() -> Iterator[None]:
    """Ends this process with a message where an exchange with the others fails.

    That is how the end of one of them shows, or `SILENCE` seconds without a sign of it, where no
    exchange was under way.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} ends, as when another "
            f"has ended or is out of reach: {str(error).splitlines()[0]}; start all of them again",
            file=sys.stderr,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        # At an exit JAX would wait for those that are no more.
        os._exit(1)
