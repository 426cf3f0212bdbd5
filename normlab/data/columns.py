"""Sets in columns with names: Parquet, ArrayRecord, and Hugging Face's `datasets` on disk."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..spec import Targets
from .pictures import Decoder, is_encoded
from .reading import DataError, MissingDataError, reason
from .rows import BLOCK, Rows

SPLITS = ("train", "test")
LABELS = ("label", "labels")
IMAGE = "image"
_RECORDS = "expected records that flax.serialization.msgpack_serialize made"


@dataclass
class _Reading:
    """How columns become examples.

    Attributes:
        targets: What the labels are.
        side: As in `Decoder`.
    """

    targets: Targets
    side: int | None
    _decoders: dict[str, Decoder] = field(default_factory=dict)
    _inputs: list[str] = field(default_factory=list)

    def chosen(self, where: str, columns: Iterable[str]) -> tuple[list[str], str | None]:
        """Returns which columns hold the inputs, and which the labels, if these are read.

        Labels are called `label` or `labels`; inputs are what is called `image`, or else all
        others, in the order of the first file or split.

        Raises:
            DataError: There are none, or inputs other than those before.
        """
        known = list(columns)
        label, *others = [it for it in LABELS if it in known] or [None]
        if others:
            raise DataError(
                f"{where}: has {' and '.join(LABELS)}; expected one of them: leave out the other."
            )
        inputs = [IMAGE] if IMAGE in known else [it for it in known if it not in LABELS]
        if not inputs or (label is None and self.targets != "none"):
            raise DataError(
                f"{where}: has {', '.join(known) or 'nothing'}; expected {' or '.join(LABELS)}, "
                f"and {IMAGE} or other columns that all are inputs: rename or leave out some."
            )
        self._inputs = self._inputs or inputs
        if {*inputs} != {*self._inputs}:
            raise DataError(
                f"{where}: has the inputs {', '.join(inputs)}; expected {', '.join(self._inputs)}, "
                "as those before: rename or leave out some."
            )
        return self._inputs, label if self.targets != "none" else None

    def inputs(self, where: str, columns: Mapping[str, Any]) -> np.ndarray:
        """Returns what is stacked, as one feature where it is a number for each example."""
        values = self.stacked(where, columns)
        return values[:, np.newaxis] if values.ndim == 1 else values

    def stacked(self, where: str, columns: Mapping[str, Any]) -> np.ndarray:
        """Returns the values of one column, or those of several beside each other."""
        values = [self._values(f"{where}, {name}", name, it) for name, it in columns.items()]
        if len(values) == 1:
            return values[0]
        for name, it in zip(columns, values, strict=True):
            if it.ndim != 1:
                raise DataError(
                    f"{where}, {name}: {it.shape[1:]} values an example, beside other columns; "
                    f"expected numbers, or a single column of inputs, as {IMAGE}."
                )
        return np.stack(values, axis=1)

    def _values(self, where: str, name: str, values: Any) -> np.ndarray:
        if not isinstance(values, np.ndarray) and is_encoded(values[0]):
            if name not in self._decoders:
                self._decoders[name] = Decoder(self.side, where, values[0])
            return np.stack([self._decoders[name](where, it) for it in values])
        try:
            array = np.asarray(values)
        except ValueError as error:  # of several lengths
            raise DataError(f"{where}: values that make no array ({reason(error)}).") from error
        if array.dtype == object:
            raise DataError(f"{where}: values are missing, or are no numbers; leave them out.")
        return array


class _Inputs(Rows):
    """The inputs among columns that can be read by numbers.

    Args:
        where: They, for messages.
        count: Of examples.
        read: Numbers and names of columns -> the values.
        names: Of the inputs.
        reading: How they become examples.
    """

    def __init__(self, where: str, count: int, read: Any, names: list[str], reading: _Reading):
        self._where, self._read, self._names, self._reading = where, read, names, reading
        example = self[np.zeros(1, np.int64)]
        self.shape, self.dtype = (count, *example.shape[1:]), example.dtype

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        taken = self._reading.inputs(self._where, self._read(indices, self._names))
        if taken.shape[1:] != getattr(self, "shape", taken.shape)[1:]:
            raise DataError(
                f"{self._where}: examples of shape {taken.shape[1:]}, expected {self.shape[1:]} as "
                "the first."
            )
        return taken


def read_parquet(place: Path, targets: Targets, side: int | None) -> list[Any]:
    """Reads Parquet files, whose examples are unpacked first, since they have no order of rows.

    Unpacked they take room in the folder for temporary files, until the process ends.

    Args:
        place: A folder with train*.parquet and test*.parquet, or with folders train and test of
            such files.
        targets: What the labels are.
        side: As in `Decoder`.

    Returns:
        Images and labels to train on, images and labels to test on; or the images alone.
    """
    reading, columns = _Reading(targets, side), []
    for split in SPLITS:
        labels, found = [], set()
        # Without a name: its room is free as soon as nobody has it open.
        with tempfile.TemporaryFile() as store:
            count = 0
            for file in _files(place, split, "parquet"):
                for images, of_images in _frames(file, reading):
                    found.add((str(images.dtype), images.shape[1:]))
                    if len(found) > 1:
                        told = " and ".join(f"{dtype} {shape}" for dtype, shape in sorted(found))
                        raise DataError(f"{file}: examples of {told}, expected one of them.")
                    store.write(np.ascontiguousarray(images).data)
                    count += len(images)
                    labels += of_images
            if not count:
                raise DataError(f"{place}: the files of {split} hold no examples.")
            ((dtype, shape),) = found
            store.flush()
            columns.append(np.memmap(store, dtype, "r", shape=(count, *shape)))
        columns += [np.concatenate(labels)] if labels else []
    return columns


def _frames(file: Path, reading: _Reading) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Reads a file in its order, some rows at a time: inputs, and labels if these are read."""
    # It takes a while to import, which the other sets need not wait for.
    import polars as pl

    def values(frame: pl.DataFrame, name: str) -> Any:
        series = frame[name]
        if series.null_count():
            raise DataError(f"{file}, {name}: values are missing; leave them out.")
        return series.to_numpy() if series.dtype.is_numeric() else series.to_list()

    try:
        lazy = pl.scan_parquet(file)
        inputs, label = reading.chosen(str(file), lazy.collect_schema().names())
        for frame in lazy.collect_batches(chunk_size=BLOCK, maintain_order=True):
            if not len(frame):
                continue
            images = reading.inputs(str(file), {name: values(frame, name) for name in inputs})
            told = {label: values(frame, label)} if label is not None else {}
            yield images, [reading.stacked(str(file), told)] if told else []
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file}: no readable Parquet file ({reason(error)}).") from error


def read_array_records(place: Path, targets: Targets, side: int | None) -> list[Any]:
    """Reads ArrayRecord files, of records that `flax.serialization.msgpack_serialize` made.

    Args:
        place: A folder with train*.array_record and test*.array_record, or with folders train and
            test of such files.
        targets: What the labels are.
        side: As in `Decoder`.

    Returns:
        As `read_parquet`.
    """
    # Half a second that the other sets need not wait for.
    import grain
    from flax.serialization import msgpack_restore

    def of_split(split: str) -> tuple[int, Any, list[str]]:
        files = [str(it) for it in _files(place, split, "array_record")]
        source: Any = grain.sources.ArrayRecordDataSource(files)
        if not len(source):
            raise DataError(f"{place}: the files of {split} hold no records.")

        def record(number: int) -> dict[str, Any]:
            try:
                made = msgpack_restore(source[number])
            except Exception as error:  # what is damaged may raise anything
                raise DataError(f"{place}, {split}: {_RECORDS} ({reason(error)}).") from error
            if not isinstance(made, dict):
                raise DataError(f"{place}, {split}: {_RECORDS} of a dictionary.")
            return made

        def read(indices: np.ndarray, names: list[str]) -> dict[str, list[Any]]:
            records = [record(int(it)) for it in indices]
            if lacking := [it for it in names if any(it not in made for made in records)]:
                raise DataError(f"{place}, {split}: a record lacks {', '.join(lacking)}.")
            return {name: [made[name] for made in records] for name in names}

        return len(source), read, list(record(0))

    return _by_number(place, of_split, _Reading(targets, side))


def read_saved(place: Path, targets: Targets, side: int | None) -> list[Any]:
    """Reads what `save_to_disk` of Hugging Face's `datasets` wrote.

    Args:
        place: The folder, of a set with the splits train and test.
        targets: What the labels are.
        side: As in `Decoder`.

    Returns:
        As `read_parquet`.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            "data.name=hf: datasets is not installed; pip install 'normlab[hf]'."
        ) from error
    try:
        saved: Any = datasets.load_from_disk(str(place))
    except FileNotFoundError as error:
        raise MissingDataError(f"{place}: holds nothing that save_to_disk wrote.") from error
    there = list(saved) if isinstance(saved, Mapping) else []
    if not {*SPLITS} <= {*there}:
        raise DataError(
            f"{place}: has the splits {', '.join(there) or '(none)'}; expected train and test, as "
            "saved.train_test_split(0.1) makes them."
        )

    def of_split(split: str) -> tuple[int, Any, list[str]]:
        part = saved[split]
        decoded = {name for name, it in part.features.items() if isinstance(it, datasets.Image)}
        as_numpy = part.with_format("numpy")

        def column(name: str, numbers: list[int]) -> Any:
            if name in decoded:
                return part.select_columns(name)[numbers][name]
            values, inner = as_numpy.select_columns(name)[numbers][name], part.features[name]
            while hasattr(inner, "feature"):
                inner = inner.feature
            # Whole numbers of every size come as int64.
            whole = np.issubdtype(values.dtype, np.integer)
            return values.astype(inner.dtype) if whole else values

        def read(indices: np.ndarray, names: list[str]) -> dict[str, Any]:
            numbers = indices.tolist()
            return {name: column(name, numbers) for name in names}

        return len(part), read, part.column_names

    return _by_number(place, of_split, _Reading(targets, side))


def _by_number(
    place: Path, of_split: Callable[[str], tuple[int, Any, list[str]]], reading: _Reading
) -> list[Any]:
    """Returns inputs, and labels if these are read, of what can be read by numbers."""
    columns = []
    for split in SPLITS:
        where = f"{place}, {split}"
        count, read, names = of_split(split)
        inputs, label = reading.chosen(where, names)
        columns.append(_Inputs(where, count, read, inputs, reading))
        if label is not None:
            blocks = (np.arange(it, min(it + BLOCK, count)) for it in range(0, count, BLOCK))
            labels = [reading.stacked(where, read(numbers, [label])) for numbers in blocks]
            columns.append(np.concatenate(labels))
    return columns


def _files(place: Path, split: str, suffix: str) -> list[Path]:
    """Returns the files of a split, in the order of their names."""
    found = sorted(place.glob(f"{split}*.{suffix}")) or sorted((place / split).glob(f"*.{suffix}"))
    if not found:
        raise MissingDataError(
            f"{place}: holds no {split}*.{suffix}, and no folder {split} of such files."
        )
    return found
