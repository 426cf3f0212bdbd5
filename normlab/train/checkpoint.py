"""Checkpoints: all that a run needs to go on, written by orbax while training goes on.

A folder has one folder a checkpoint, named by its step. It appears whole, by a rename, and
`checksum.json` in it tells whether it is as it was written. What is read is looked through before,
so that orbax never meets a damaged file; what comes later than the one that is used is removed.

Where several processes train a run, orbax has each write what lies on its devices, into the folder
that all of them see, and the first does all else. The others wait for it where they depend on it.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..checksum import sealed, unsealed
from ..errors import UserError, first_of, refused
from ..interrupts import StoppedError
from .hooks import Moment, Record, StateHook
from .processes import is_first, of_first
from .programs import Programs

# Kept of each run, beside the best one where that is asked for: where the newest is damaged, the
# one before is used.
LAST = 2

_SEAL = "checksum.json"
_UNFINISHED, _REMOVED = ".part", ".tmp"
_STEP = re.compile(r"[0-9]{10}")
# The library that writes arrays has names of its own behind ours.
_BEGUN = re.compile(rf"[0-9]{{10}}({re.escape(_UNFINISHED)}|{re.escape(_REMOVED)})(\..*)?")
_ELSEWHERE = "give another folder; what was saved before stays, and a run goes on from there"

# Of those that write in this process, which are made in the same order in all processes of a run.
_COUNT = count()
# Orbax runs event loops in threads of its own and patches asyncio for all of them: where runs that
# are trained side by side write at the same time, one may find its loop closed by another.
_ONE_AT_A_TIME = threading.Lock()

MOST_TOLD = 300  # signs of what a library says


class _Sealed(BaseModel):
    model_config = ConfigDict(strict=True)

    files: dict[str, str]


class _Described(BaseModel):
    model_config = ConfigDict(strict=True)

    arrays: dict[str, str]


@dataclass(frozen=True)
class _Standing:
    """What a checkpoint says of where runs stand, beside arrays."""

    runs: list[str]
    step: int
    seconds: float
    curves: list[list[Record]]


_STANDING = TypeAdapter(_Standing)


class CheckpointError(UserError, OSError):
    """Checkpoints cannot be written or used."""


class Checkpoints:
    """The checkpoints in one folder, which one run at a time may have.

    Args:
        folder: Where they lie. Writing creates it.
        last: How many are kept.
        tell: Is told in a line of each checkpoint that is damaged.
    """

    def __init__(self, folder: Path, last: int = LAST, tell: Callable[[str], object] = print):
        # Orbax takes a second to import, which is not for those who save nothing.
        import orbax.checkpoint as orbax

        # It logs with a traceback what it also raises.
        logging.getLogger("absl").addFilter(_is_not_of_orbax)
        self.folder = folder.absolute()
        self.best: int | None = None
        """The step of a checkpoint that is kept for as long as this says so."""
        self._last = last
        self._tell = tell
        self._orbax: Any = orbax
        # Processes meet by names, which it makes of the names of folders alone. These are the same
        # for the weights and the checkpoints of a step, which may be written at the same time.
        meeting = orbax.options.MultiprocessingOptions(barrier_sync_key_prefix=f"{next(_COUNT)}")
        self._checkpointer: Any = orbax.AsyncCheckpointer(
            orbax.CompositeCheckpointHandler(), multiprocessing_options=meeting
        )
        self._finishing = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None
        self._sweep()
        of_first(0)

    def hook(
        self,
        runs: Sequence[str],
        every: int,
        asked: Callable[[], bool] = lambda: False,
        score: Callable[[Record], float | None] = lambda _: None,
    ) -> StateHook:
        """Returns what saves runs as they are trained.

        Args:
            runs: Their names.
            every: Steps between two checkpoints.
            asked: Whether to save at once and stop.
            score: Of a point of a curve, None for none; of those saved at a point the one with the
                highest is kept as well.
        """

        def save(moment: Moment) -> None:
            there = {*self.steps()}
            best = [
                (value, record.step)
                for record in moment.curves[0]
                if record.step in there and (value := score(record)) is not None
            ]
            # Of equals the first.
            self.best = max(best, key=lambda it: (it[0], -it[1]))[1] if best else None
            self.save(moment, runs)
            if asked():
                self.wait()
                raise StoppedError

        return StateHook(every, save, asked)

    def save(self, moment: Moment, runs: Sequence[str]) -> None:
        """Begins to write where some runs stand; returns as soon as training may go on.

        Raises:
            CheckpointError: The system refused, this time or the time before.
        """
        record = {
            "runs": [*runs],
            "step": moment.step,
            "seconds": moment.seconds,
            "curves": [[asdict(point) for point in curve] for curve in moment.curves],
        }
        self.write(moment.step, _parts(moment.state, moment.sums), record)

    def newest(self, programs: Programs, runs: Sequence[str]) -> Moment | None:
        """Returns where runs can go on from; None if there is no checkpoint of them.

        Raises:
            CheckpointError: Those that are there are of other runs.
        """
        found = self.newest_whole() if is_first() else None
        step = of_first(-1 if found is None else found)
        if step < 0:
            return None
        state, sums = programs.abstract
        tree, told = self.read(step, _parts(state, sums))
        try:
            record = _STANDING.validate_python(told)
        except ValidationError as error:
            raise self._unusable(step, first_of(error)) from error
        if record.runs != [*runs]:
            raise CheckpointError(
                f"{self._path(step)} is of {', '.join(record.runs)}, not of {', '.join(runs)}; "
                "give another folder"
            )
        if record.step != step or len(record.curves) != len(runs):
            raise self._unusable(step, "its record is of another step or other runs")
        sums = tree.pop("sums")
        # On the devices that there are now, whichever it was saved on.
        state, sums = programs.placed(state.replace(**tree), sums)
        return Moment(step, state, sums, record.curves, record.seconds)

    def write(self, step: int, tree: Any, record: Mapping[str, Any]) -> None:
        """Begins to write arrays and a record of what JSON knows, unless that step is there.

        Raises:
            CheckpointError: The system refused, this time or the time before.
        """
        self.wait()
        path = self._path(step)
        if of_first(path.exists()):  # A run that goes on comes by where it stood.
            return
        args = self._orbax.args
        with self._writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            arrays = _flat(tree)
            _refuse_without_room(self.folder, [it.nbytes for it in arrays.values()])
            told = {**record, "arrays": {name: _in_words(it) for name, it in arrays.items()}}
            _ONE_AT_A_TIME.acquire()
            try:
                self._checkpointer.save(
                    path.with_name(path.name + _UNFINISHED),
                    args=args.Composite(arrays=args.PyTreeSave(arrays), record=args.JsonSave(told)),
                )
            except BaseException:
                _ONE_AT_A_TIME.release()
                raise
        self._under_way = self._finishing.submit(self._finish, path)

    def wait(self) -> None:
        """Waits until all is written, and removes what is not to be kept.

        Raises:
            CheckpointError: The system refused.
        """
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            with self._writing(self.folder):
                under_way.result()
            of_first(0)
        if not is_first():
            return
        there = self.steps()
        for step in there[: -self._last]:
            if step != self.best:
                remove(self._path(step))

    def read(self, step: int, target: Any, *, some: bool = False) -> tuple[Any, dict[str, Any]]:
        """Returns the arrays of a checkpoint and its record.

        Args:
            step: Which.
            target: A tree of what has shapes and dtypes.
            some: Whether there may be further arrays, which are left.

        Raises:
            CheckpointError: The checkpoint has others.
        """
        orbax, path = self._orbax, self._path(step)
        composite, told = orbax.args.Composite, orbax.args.JsonRestore()
        record = self._restored(step, composite(record=told))["record"]
        try:
            there = _Described.model_validate(record).arrays
        except ValidationError as error:
            raise self._unusable(step, first_of(error)) from error
        record = {key: value for key, value in record.items() if key != "arrays"}
        wanted = {name: _stored(leaf) for name, leaf in _flat(target).items()}
        expected = {name: _in_words(leaf) for name, leaf in wanted.items()}
        for name in wanted if some else sorted(wanted.keys() | there.keys()):
            has, lacks = (it.get(name, "nothing") for it in (there, expected))
            if has != lacks:
                raise CheckpointError(
                    f"{path} is of another model or optimizer: at {name} it has {has}, where "
                    f"{lacks} is expected; give another folder"
                )
        as_numpy = dict.fromkeys(wanted, orbax.RestoreArgs(restore_type=np.ndarray))
        arrays = orbax.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
        restored = self._restored(step, composite(arrays=arrays))["arrays"]
        # What is said of the arrays is not what is in them.
        for name, leaf in wanted.items():
            found = _in_words(restored[name]) if name in restored else "nothing"
            if found != expected[name]:
                raise self._unusable(step, f"{name} is {found}, not {_in_words(leaf)}")
        return _filled(target, restored), record

    def _restored(self, step: int, args: Any) -> Any:
        """Reads what its checksums say is as it was written, which whoever wrote it says."""
        try:
            with _ONE_AT_A_TIME:
                return self._checkpointer.restore(self._path(step), args=args)
        except Exception as error:  # the library raises whatever its parts raise
            raise self._unusable(step, f"{type(error).__name__}: {error}") from error

    def _unusable(self, step: int, why: str) -> CheckpointError:
        path, why = self._path(step), " ".join(why.split())[:MOST_TOLD]
        return CheckpointError(
            f"{path} is no checkpoint that normlab wrote ({why}); delete it, and the one before is "
            "used, or give another folder"
        )

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, in their order."""
        return steps_in(self.folder)

    def newest_whole(self) -> int | None:
        """The step of the last checkpoint that is as it was written, after those that are not."""
        return newest_whole(self.folder, self._tell)

    def close(self) -> None:
        """Ends the threads that write, and leaves what they are writing unfinished."""
        try:
            self._checkpointer.close()
        except (OSError, ValueError) as error:
            # What was refused has been told by `write` or `wait`, unless another error came first.
            logging.getLogger(__name__).debug("%s", error)
        self._finishing.shutdown()
        self._sweep()

    def _sweep(self) -> None:
        if is_first():
            sweep(self.folder)

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:010d}"

    def _finish(self, path: Path) -> None:
        """Gives a checkpoint its checksums once all of it is written, and then its name."""
        unfinished = path.with_name(path.name + _UNFINISHED)
        try:
            self._checkpointer.wait_until_finished()
        except TimeoutError as error:
            # So it calls whatever ends an exchange with other processes.
            cause = error.__cause__
            if cause is not None and isinstance(cause, jax.errors.JaxRuntimeError):
                raise cause from None
            raise
        finally:
            _ONE_AT_A_TIME.release()
        if not is_first():
            return
        with (unfinished / _SEAL).open("w", encoding="utf-8") as file:
            file.write(sealed({"files": _digests(unfinished)}))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Tells what the system refuses, which the library that writes arrays says in words."""
        try:
            yield
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            if said := re.search(r"os_error_code='(\d+)'", str(error)):
                number = int(said[1])
            if number is None:
                raise
            self._sweep()
            refusal = OSError(number, os.strerror(number))
            raise CheckpointError(refused("written", path, refusal, _ELSEWHERE)) from error


def steps_in(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, in their order."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if _STEP.fullmatch(path.name))


def newest_whole(
    folder: Path, tell: Callable[[str], object], *, remove_damaged: bool = True
) -> int | None:
    """Returns the step of the last checkpoint that is as it was written.

    Args:
        folder: Where the checkpoints lie.
        tell: Is told in a line of each after it, which is damaged.
        remove_damaged: Whether these are removed, since the run will save them anew.
    """
    steps = steps_in(folder)
    while steps:
        step = steps.pop()
        path = folder / f"{step:010d}"
        if (why := _damage(path)) is None:
            return step
        if remove_damaged:
            use = f"that of step {steps[-1]} is used" if steps else "the run begins anew"
            tell(f"{path} is damaged: {why}. It is removed, and {use}.")
            remove(path)
        else:
            tell(f"{path} is damaged: {why}")
    return None


def sweep(folder: Path) -> None:
    """Removes what processes that were killed had begun to write or to remove."""
    for path in folder.glob("[0-9]*"):
        if _BEGUN.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Removes a checkpoint, so that nobody ever takes a part of it for a damaged one."""
    aside = path.with_name(path.name + _REMOVED)
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _damage(path: Path) -> str | None:
    """Says what in a checkpoint is not as it was written; None for nothing."""
    try:
        content, _ = unsealed((path / _SEAL).read_bytes())
        written = _Sealed.model_validate_json(content).files
        found = _digests(path)
    except FileNotFoundError:
        return f"{_SEAL} is missing"
    except ValidationError as error:
        return f"{_SEAL} cannot be used ({first_of(error)})"
    except (OSError, ValueError) as error:
        return f"{_SEAL} cannot be used ({error})"
    for name in sorted(written.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in written:
            return f"{name} was added since it was written"
        if written[name] != found[name]:
            return f"{name} was changed since it was written"
    return None


def _digests(path: Path) -> dict[str, str]:
    """Hashes the files of a checkpoint."""
    files = {str(it.relative_to(path)): it for it in sorted(path.rglob("*")) if it.is_file()}
    digests = {}
    for name in files.keys() - {_SEAL}:
        with files[name].open("rb") as file:
            digests[name] = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    return digests


def _refuse_without_room(folder: Path, sizes: Sequence[int]) -> None:
    """Finds out before anything is begun that arrays cannot be written.

    What fails within has the threads of the library that writes them complain beside.

    Raises:
        OSError: As the system would.
    """
    number = None
    if sum(sizes) > shutil.disk_usage(folder).free:
        number = errno.ENOSPC
    if os.name == "posix":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY and max(sizes, default=0) > limit:
            number = errno.EFBIG
    if number is not None:
        raise OSError(number, os.strerror(number))


def _parts(state: Any, sums: Any) -> dict[str, Any]:
    """A state and sums as one tree, whose names say what they are."""
    return {**vars(state), "sums": sums}


def _flat(tree: Any) -> dict[str, Any]:
    """A tree as a mapping: path -> array, the keys of random numbers as their data.

    What has no size is left out, which orbax cannot write.
    """
    flat = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        while name in flat:  # Keys may have the separator in them.
            name += "'"
        if leaf.size:
            flat[name] = jax.random.key_data(leaf) if _is_key(leaf) and _is_array(leaf) else leaf
    return flat


def _filled(target: Any, arrays: Mapping[str, Any]) -> Any:
    """The tree of what was stored by `_flat`."""
    leaves, structure = jax.tree.flatten(target)
    there = iter(arrays[name] for name in _flat(target))

    def filled(leaf: Any) -> Any:
        if not leaf.size:
            return jnp.zeros(leaf.shape, leaf.dtype)
        array = jax.device_put(next(there))
        return jax.random.wrap_key_data(array) if _is_key(leaf) else array

    return jax.tree.unflatten(structure, map(filled, leaves))


def _stored(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype that a leaf is stored in."""
    told = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.eval_shape(jax.random.key_data, told) if _is_key(leaf) else told


def _in_words(leaf: Any) -> str:
    return f"{leaf.dtype}{[*leaf.shape]}"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname
