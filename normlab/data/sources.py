"""The named data sets: where they are found, how they are split."""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Int32
from pydantic import BeforeValidator, Field, create_model, field_validator, model_validator

from ..errors import nearest
from ..modules import enter
from ..modules import told as known_as
from ..registration import check_name, refuse_taken
from ..spec import Count, Spec, Targets
from ..user_code import explained
from . import formats
from .columns import read_array_records, read_parquet, read_saved
from .own import (
    Images,
    Labels,
    Part,
    as_array,
    check_arrays,
    expected,
    names_for,
    read_npz,
)
from .pictures import read_pictures
from .reading import DataError, MissingDataError
from .rows import Joined, Rows, blocks, gathered
from .targets import KINDS, outputs_without_labels
from .text import BYTES, read_text

Indices = Int32[np.ndarray, "_"]
Strata = Int32[np.ndarray, "_"]
Moment = Float32[np.ndarray, " c"] | Float32[np.ndarray, "h w c"]
Parts = tuple[
    list[Part], Part
]  # the files to train on, which are put together once; the test split

DIGITS_TEST_SHARE = 0.2
DEFAULT_BLOCK = 128

# In files of one's own, with the columns of an npz file under other names.
_COLUMNS = {"parquet": read_parquet, "array_record": read_array_records, "hf": read_saved}
_NAMES = ("digits", "mnist", "fashion_mnist", "cifar10", "npz", "images", *_COLUMNS, "text")

# Loaders of the user's own sets, by name.
LOADERS: dict[str, Callable[[], Any]] = {}


def register_data(name: str, loader: Any = None) -> Any:
    """Adds a data set to those that a study can name, as a call or as a decorator.

    Usage::

        @normlab.register_data("mine")
        def load_mine():
            return train_images, train_labels, test_images, test_labels

    A configuration can then say `data: {name: mine}` once it names the module, as in
    `modules: [my_data]`. The arrays are those of an npz file. What a model gets of them:

    - Images uint8 or floating, of shape (N, H, W), (N, H, W, C) or (N, features), arrive as
      batches of (H, W, C), features as (1, 1, features), in the dtype of `train.precision`.
      `data.standardize` says whether mean and deviation of the training examples are taken out of
      them: of each channel unless the study says otherwise.
    - Integers of all other types, as the numbers of tokens (N, T), arrive as they are: their
      values, as int32, in the shape (batch, T), of 2 to 4 dimensions.
    - Labels are what the objective takes: for classification integers from 0, of shape (N,) or
      (N, 1); for several flags truth values, or whole numbers 0 and 1, of shape (N, L); for
      regression numbers of shape (N,) or (N, K); for classes of positions integers from 0, or -1
      for none, of shape (N, H, W). Where the targets are part of the inputs, as the next tokens
      are, a loader returns `train_images, test_images`, and labels are not read.

    Args:
        name: How configurations call it.
        loader: A function without arguments that returns the arrays.

    Returns:
        The loader, or a decorator that returns it.

    Raises:
        ValueError: If the name is none or taken, or the loader needs arguments.
    """
    check_name("register_data", name)
    if loader is None:
        return partial(register_data, name)
    if name in _NAMES:
        raise ValueError(f"register_data: the name {name!r} is normlab's own; choose another.")
    refuse_taken("register_data", name, LOADERS.get(name), loader)
    try:
        inspect.signature(loader).bind()
    except TypeError as error:
        raise ValueError(
            f"register_data({name!r}): {loader!r} is not a function that can be called without "
            f"arguments: {error}."
        ) from error
    enter(LOADERS, name, loader)
    return loader


def _way_to_standardize(given: Any) -> Any:
    known = {"true": True, "false": False, "per_feature": "per_feature"}
    if not isinstance(given, bool | str) or str(given).lower() not in known:
        raise ValueError(f"{given!r} is not known{nearest(str(given), known)}")
    return known[str(given).lower()]


class DataSpec(Spec):
    """Which data set a study uses.

    Attributes:
        name: The data set. `digits` comes with scikit-learn; `mnist`, `fashion_mnist` and
            `cifar10` are read from their official files; `npz` is a file of one's own, or a folder
            of npy files with the names of its arrays; `images` is a folder of image files,
            train/CLASS/FILE and test/CLASS/FILE; `parquet`, `array_record` and `hf` (what
            `save_to_disk` of `datasets` wrote) have columns: `label` or `labels`, and `image` or
            else all others, which are the inputs; `text` is
            a text of one's own, whose bytes are tokens, cut into blocks in their order; others are
            those that `normlab.register_data` has added.
        folder: Where the files are: the folder of this set, or one that holds a folder with the
            set's name. Of a set of one's own the path of its file or folder; of `text` the files
            of a folder are put together by name. Without it, a set is looked for in the
            folder of its name below the one that the variable NORMLAB_DATA names, and
            Fashion-MNIST also where Debian's package dataset-fashion-mnist puts it.
        standardize: What is done to images before a model gets them: `true` takes mean and
            standard deviation of the examples to train on out of each channel; `per_feature` does
            so for each channel at each position; `false` leaves the values as the files have them.
            All of them arrive in the dtype of `train.precision`. Integers of another type than
            uint8, as the numbers of tokens, always arrive as they are, as int32.
        batch_size: Examples in each training step.
        image_size: Of image files and encoded images: what the shorter side of each is brought to,
            before the square in its middle is cut out. Without it all must have one size.
        block: Of `text`: how many bytes of each example are predicted, each from those before it
            in the example, which has one more; 128 if not given.
        validation: Share of the training split that is held out for tuning; of `text` its end.
        train_examples: Train on only so many of the examples that are left for training.
        train_share: Train on only this share of them.
        order: What the batches of an epoch are: `shuffled`, or `by_class` for examples that are
            sorted by their class before they are cut into batches, whose order is random; only
            where an example has one class.
        stream: Whether the examples stay where they are, and batches are read while the device
            works; else the whole set is put on the device. For sets that are larger than its
            memory, or with `npz` than that of the machine. Changes no number, but by rounding those
            of `order: by_class`.
    """

    # Bound where a study is checked: what another study registers by a name changes nothing.
    loaders: ClassVar[Mapping[str, Callable[[], Any]]] = LOADERS

    name: Annotated[
        str,
        Field(json_schema_extra=lambda schema: schema.update(enum=[*_NAMES, *LOADERS])),
    ] = "digits"
    folder: Annotated[str, Field(min_length=1)] | None = None
    standardize: Annotated[
        bool | Literal["per_feature"],
        BeforeValidator(_way_to_standardize),
        Field(json_schema_extra={"enum": [True, False, "per_feature"]}),
    ] = True
    batch_size: Count = 64
    image_size: Annotated[int, Field(gt=0, le=4096)] | None = None
    block: Annotated[int, Field(gt=0, le=65_536)] | None = None
    validation: float = Field(default=0.2, gt=0, lt=0.9)
    train_examples: Annotated[int, Field(gt=0)] | None = None
    train_share: float = Field(default=1.0, gt=0, le=1)
    order: Literal["shuffled", "by_class"] = "shuffled"
    stream: bool = False

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in (*_NAMES, *cls.loaders):
            raise ValueError(f"{name!r} is not known{nearest(name, (*_NAMES, *cls.loaders))}")
        return name

    @model_validator(mode="after")
    def _one_number_of_examples(self) -> "DataSpec":
        if self.train_examples is not None and self.train_share < 1:
            raise ValueError(
                f"train_examples={self.train_examples} and train_share={self.train_share} both say "
                "how many examples to train on; leave out one of them"
            )
        return self

    @model_validator(mode="after")
    def _folder_fits_name(self) -> "DataSpec":
        if self.name in ("npz", "images", *_COLUMNS) and self.folder is None:
            file = "file, folder=FILE.npz" if self.name == "npz" else "folder, folder=FOLDER"
            raise ValueError(f"{self.name} needs the path of its {file}")
        if self.name not in ("images", *_COLUMNS) and self.image_size is not None:
            raise ValueError(
                f"image_size={self.image_size} is for files of images, but name={self.name}; "
                "leave it out"
            )
        if self.name != "text" and self.block is not None:
            raise ValueError(
                f"block={self.block} cuts a text, but name={self.name}; leave it out, or name text"
            )
        if self.name == "digits" and self.folder is not None:
            raise ValueError(
                f"digits comes with scikit-learn and reads no folder, but folder={self.folder}; "
                "leave it out or name another data set"
            )
        if self.name in self.loaders and self.folder is not None:
            raise ValueError(
                f"{self.name} comes from a function and reads no folder, but "
                f"folder={self.folder}; leave it out"
            )
        return self


def data_spec_type() -> type[DataSpec]:
    """Returns the type that validates which data a study uses, among those registered by now."""
    spec = create_model("DataSpec", __base__=DataSpec)
    spec.loaders = dict(LOADERS)
    return spec


@dataclass(frozen=True, eq=False)
class Dataset:
    """A whole data set.

    Attributes:
        name: The data set's name.
        images: All examples of all splits: uint8 or float32, (N, H, W, C); or int32, (N, ...),
            which is not standardized. In memory, or rows that are read when they are asked for.
        labels: Of each, as the objective takes them: the class, int32, (N,); flags, uint8, (N, L);
            values, float32, (N, K); a class for each position, int32, (N, H, W), -1 where it is
            left out; None where the targets are in the inputs.
        train: Indices of the examples to train on.
        validation: Indices of the examples to tune on.
        test: Indices of the examples to report on. No index is in two of the three.
        mean: Over the examples to train on, in the units of `images`: of each channel, (C,), or of
            each channel at each position, (H, W, C). None for images that stay as they are.
        deviation: Standard deviation likewise; 1 where it would be 0.
        classes: How many numbers a model gives for each place: of classes, flags, values, or
            tokens.
        groups: Of each example to train on, its class, where a batch is of examples of one class;
            None where batches are of any.
    """

    name: str
    images: Images | Rows
    labels: Labels | None
    train: Indices
    validation: Indices
    test: Indices
    mean: Moment | None
    deviation: Moment | None
    classes: int
    groups: Indices | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels; of integers the shape of an example."""
        return self.images.shape[1:]


@dataclass(frozen=True)
class Listing:
    """What is known of a named data set before it is read.

    Attributes:
        name: The data set's name.
        place: Where it was found, or None.
        examples: Over all splits; None if that depends on the file.
        image_shape: Height, width and channels; None if that depends on the file.
        remedy: How to get the set or name its place.
    """

    name: str
    place: str | None
    examples: int | None
    image_shape: tuple[int, int, int] | None
    remedy: str


def load(spec: DataSpec, targets: Targets = "classes") -> Dataset:
    """Reads a data set and splits it, the same way on every machine and for every seed.

    The official test split is the test split. Digits has none: a fixed, stratified fifth of its
    examples is taken. From the rest, the training split, a fixed share of `spec.validation` is held
    out, of classes that share of each. A text is split by position: its last tenth is the test
    split, and what is held out lies before that. Images stay in the units of their files; the
    constants that standardize them, as `spec.standardize` says, come from the examples to train on
    alone.

    Args:
        spec: Which set, and how it is split.
        targets: What its labels must be.

    Raises:
        MissingDataError: files are not there; the message says where they were looked for and how
            to get them.
        DataError: files are damaged, its labels are of another kind, or the set is too small for
            what the spec asks.
    """
    own = spec.name in ("npz", "images", *_COLUMNS) or spec.name in spec.loaders
    is_text = spec.name == "text"
    if is_text and targets != "none":
        raise DataError(
            "data.name=text has no labels beside its bytes, but the objective expects "
            f"{KINDS[targets].expected}; predict the bytes, with objective.name=next_token."
        )
    if (not own or spec.name == "images") and targets not in ("classes", "none"):
        raise DataError(
            f"data.name={spec.name} has classes, but the objective expects "
            f"{KINDS[targets].expected}; give such a set by data.name=npz or by "
            "normlab.register_data, or leave out objective."
        )
    training_parts, test_part = _read(spec, targets)
    every = [*training_parts, test_part]
    of_images: list[Any] = [part for part, _ in every]
    images = Joined(of_images) if spec.stream else gathered(spec.name, of_images)
    of_parts = [part for _, part in every if part is not None]
    labels = np.concatenate(of_parts) if of_parts and targets != "none" else None
    count = len(images)
    strata = labels if labels is not None and targets == "classes" else np.zeros(count, np.int32)
    official, test = np.split(np.arange(count, dtype=np.int32), [-len(test_part[0])])
    if is_text:
        outputs = BYTES
    elif labels is None:
        outputs = outputs_without_labels(spec.name, images, len(official))
    else:
        outputs = KINDS[targets].outputs(labels[official]) if own else formats.CLASSES
    held = round(spec.validation * len(official))
    if is_text:
        train, validation = np.split(official, [len(official) - held])
    else:
        train, validation = _stratified(strata, official, spec.validation)
    if not len(train) or not len(validation):
        raise DataError(
            f"data.validation={spec.validation} leaves {len(train)} of {len(official)} training "
            f"examples of {spec.name} to train on, {len(validation)} to tune on; expected some of "
            "each: change data.validation or take a larger set."
        )
    if spec.train_examples is not None:
        if spec.train_examples > len(train):
            raise DataError(
                f"data.train_examples={spec.train_examples}, but {spec.name} has {len(train)} "
                f"examples to train on after data.validation={spec.validation}; expected at most "
                "that many, or leave data.train_examples out for all."
            )
        _, train = _stratified(strata, train, spec.train_examples / len(train))
    _, train = _stratified(strata, train, spec.train_share)
    if spec.batch_size > len(train):
        raise DataError(
            f"data.batch_size={spec.batch_size}, but {spec.name} has {len(train)} examples to "
            "train on; expected at most that many."
        )
    if images.dtype == np.int32 and spec.standardize == "per_feature":
        raise DataError(
            f"data.standardize=per_feature, but {spec.name} has integers, which arrive as they "
            "are; leave data.standardize out, or give the data as floating."
        )
    groups = None
    if spec.order == "by_class":
        if labels is None or targets != "classes":
            raise DataError(
                f"data.order=by_class, but the examples of {spec.name} do not have one class each, "
                "as the objective takes them; leave data.order out."
            )
        groups = labels[train]
    mean, deviation = _moments(images, train, spec.standardize)
    return Dataset(
        name=spec.name,
        images=images,
        labels=labels,
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        deviation=deviation,
        classes=outputs,
        groups=groups,
    )


def describe() -> tuple[Listing, ...]:
    """Says of each named data set whether and where it is found, without reading it."""
    return tuple(_listing(name) for name in (*_NAMES, *LOADERS))


@dataclass(frozen=True)
class _Layout:
    """The files of one version of a published set: those to train on, then those to test on."""

    files: tuple[str, ...]
    suffixes: tuple[str, ...]
    subfolder: str
    read: Callable[[list[Path]], Parts]

    def find(self, folder: Path) -> tuple[list[Path], list[str]]:
        """Returns the files that are there, and the names of those that are not."""
        there, missing = [], []
        for name in self.files:
            paths = [folder / (name + suffix) for suffix in self.suffixes]
            # Whatever can be read, be it a pipe.
            found = [it for it in paths if os.path.exists(it) and not os.path.isdir(it)]
            there += found[:1]
            if not found:
                links = [it.name for it in paths if os.path.islink(it) and not os.path.exists(it)]
                missing.append(f"{links[0]}, a link to what is not there" if links else name)
        return there, missing


@dataclass(frozen=True)
class _Published:
    """A set that comes in official files."""

    examples: int
    image_shape: tuple[int, int, int]
    layouts: tuple[_Layout, ...]
    source: str
    system_folder: str | None = None


def _read_idx(paths: list[Path]) -> Parts:
    train_images, train_labels, test_images, test_labels = paths
    return (
        [formats.read_idx_pair(train_images, train_labels)],
        formats.read_idx_pair(test_images, test_labels),
    )


def _read_cifar10(read: Callable[[Path], Part], paths: list[Path]) -> Parts:
    *train, test = [read(path) for path in paths]
    return train, test


_IDX = _Layout(
    files=(
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ),
    suffixes=("", ".gz"),
    subfolder="",
    read=_read_idx,
)
_CIFAR10_BINARY = _Layout(
    files=(*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
    suffixes=("",),
    subfolder="cifar-10-batches-bin",
    read=lambda paths: _read_cifar10(formats.read_cifar10_binary, paths),
)
_CIFAR10_PYTHON = _Layout(
    files=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
    suffixes=("",),
    subfolder="cifar-10-batches-py",
    read=lambda paths: _read_cifar10(formats.read_cifar10_python, paths),
)
_IDX_FILES = f"{', '.join(_IDX.files)}, each as it is or with .gz"

_PUBLISHED = {
    "mnist": _Published(
        examples=70_000,
        image_shape=(28, 28, 1),
        layouts=(_IDX,),
        source=f"The official files are {_IDX_FILES} (yann.lecun.com/exdb/mnist).",
    ),
    "fashion_mnist": _Published(
        examples=70_000,
        image_shape=(28, 28, 1),
        layouts=(_IDX,),
        source=(
            "On Debian, `apt install dataset-fashion-mnist` is enough. The official files are "
            f"{_IDX_FILES} (github.com/zalandoresearch/fashion-mnist)."
        ),
        system_folder="/usr/share/datasets/fashion-mnist",
    ),
    "cifar10": _Published(
        examples=60_000,
        image_shape=(32, 32, 3),
        layouts=(_CIFAR10_BINARY, _CIFAR10_PYTHON),
        source=(
            "The official files are data_batch_1.bin to data_batch_5.bin and test_batch.bin of "
            "the binary version, or the same without .bin of the Python version "
            "(www.cs.toronto.edu/~kriz/cifar.html)."
        ),
    ),
}


# Whose files are a user's own, which no one can get again.
_OWN_FILES = ("npz", "images", *_COLUMNS, "text")


def is_there(name: str, folder: Path) -> bool:
    """Whether a folder has all files of a published set."""
    try:
        _find(name, str(folder))
    except MissingDataError:
        return False
    return True


def remedy(name: str, targets: Targets = "classes") -> str:
    """Says how to get a set, or where to put one's own."""
    if name == "npz":
        arrays = ", ".join(f"{name}=..." for name in names_for(targets)[0])
        return (
            f"Write a file with numpy.savez(FILE, {arrays}), {expected(targets)}, and name it with "
            "data.folder=FILE; or a folder of such npy files, with data.folder=FOLDER."
        )
    if name == "images":
        return (
            "Name a folder of images, FOLDER/train/CLASS/FILE and FOLDER/test/CLASS/FILE, with "
            "data.folder=FOLDER."
        )
    if name in _COLUMNS:
        return {
            "parquet": "Name a folder with train*.parquet and test*.parquet",
            "array_record": "Name a folder with train*.array_record and test*.array_record",
            "hf": "Name a folder that save_to_disk of datasets wrote",
        }[name] + (
            f", with data.folder=FOLDER; columns are label, {KINDS[targets].expected}, and image, "
            "or others that all are inputs."
        )
    if name == "text":
        return (
            "Name a file of text, or a folder of such files, with data.folder=PLACE, or put them "
            "into the folder text of the one that the variable NORMLAB_DATA names."
        )
    return (
        f"{_PUBLISHED[name].source} Name their folder with data.folder=FOLDER, or put them into "
        f"the folder {name} of the one that the variable NORMLAB_DATA names."
    )


def _folders(name: str, folder: str | None) -> list[Path]:
    """Returns where to look, first choice first."""
    if folder is not None:
        given = _path(folder)
        return [given, given / name]
    folders = []
    if root := os.environ.get("NORMLAB_DATA"):
        folders.append(_path(root) / name)
    if system_folder := _PUBLISHED[name].system_folder:
        folders.append(Path(system_folder))
    return folders


def _find(name: str, folder: str | None) -> tuple[_Layout, list[Path]]:
    """Returns the files of the first folder that has all of a layout."""
    layouts = _PUBLISHED[name].layouts
    looked = [] if folder or os.environ.get("NORMLAB_DATA") else ["NORMLAB_DATA is not set"]
    for parent in _folders(name, folder):
        for place in dict.fromkeys([parent, *(parent / layout.subfolder for layout in layouts)]):
            found = [(layout, *layout.find(place)) for layout in layouts]
            layout, paths, missing = min(found, key=lambda candidate: len(candidate[2]))
            if not missing:
                return layout, paths
            lacks = f"lacks {', '.join(missing)}"
            looked.append(f"{place}: {_unless_folder(place) or lacks}")
    raise MissingDataError(
        "\n  ".join([f"The data set {name} was not found. Looked in:", *looked])
        + f"\n{remedy(name)}"
    )


def _unless_folder(place: Path) -> str:
    """Says why a folder cannot be looked into; nothing where it can."""
    try:
        os.scandir(place).close()
    except FileNotFoundError:
        return "a link to what is not there" if os.path.islink(place) else "no such folder"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _path(folder: str) -> Path:
    """The path that a study or the environment names."""
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:  # There is no such user.
        raise MissingDataError(f"{folder}: {error}; give the path in full.") from error


def _place_of_text(folder: str | None) -> Path:
    if folder is not None:
        return _path(folder)
    if root := os.environ.get("NORMLAB_DATA"):
        return _path(root) / "text"
    raise MissingDataError("The text was not found: NORMLAB_DATA is not set, nor data.folder.")


def _read(spec: DataSpec, targets: Targets) -> Parts:
    if spec.name == "digits":
        return _read_digits()
    if spec.name in spec.loaders:
        return _read_own(spec, targets)
    try:
        if spec.name == "npz":
            assert spec.folder is not None  # DataSpec sees to it
            train, test = read_npz(_path(spec.folder), targets, stays=spec.stream)
            return [train], test
        if spec.name == "text":
            train, test = read_text(_place_of_text(spec.folder), spec.block or DEFAULT_BLOCK)
            return [(train, None)], (test, None)
        if spec.name == "images" or spec.name in _COLUMNS:
            assert spec.folder is not None  # DataSpec sees to it
            return _read_columns(spec, _path(spec.folder), targets)
        layout, paths = _find(spec.name, spec.folder)
        return layout.read(paths)
    except MissingDataError as error:
        if spec.name not in _OWN_FILES:
            raise
        raise MissingDataError(f"{error}\n{remedy(spec.name, targets)}") from error
    except DataError as error:
        again = "" if spec.name in _OWN_FILES else "Get it again: "
        raise DataError(f"{error}\n{again}{remedy(spec.name, targets)}") from error


def _read_columns(spec: DataSpec, place: Path, targets: Targets) -> Parts:
    if not place.is_dir():
        raise MissingDataError(f"{place}: there is no such folder.")
    if spec.name == "images":
        columns = read_pictures(place, spec.image_size)
        columns = columns[::2] if targets == "none" else columns
    else:
        columns = _COLUMNS[spec.name](place, targets, spec.image_size)
    names = names_for(targets)[0]
    train, test = check_arrays(str(place), names, columns, targets, stays=True)
    return [train], test


# What can be gone through and is no tuple of arrays: keys, letters, rows.
_NO_TUPLES = (Mapping, str, np.ndarray)


def _read_own(spec: DataSpec, targets: Targets) -> Parts:
    told, loader = f"register_data({spec.name!r})", spec.loaders[spec.name]
    try:
        returned = loader()
        plain = isinstance(returned, Iterable) and not isinstance(returned, _NO_TUPLES)
        arrays = tuple(returned) if plain else ()
    except (Exception, SystemExit) as error:  # whatever the user's code raises is told as theirs
        raise DataError(f"{told}: its loader failed: {explained(error)}") from error
    names = names_for(targets)[0]
    if not plain:
        raise DataError(
            f"{told}: its loader returned a {type(returned).__name__}; expected a tuple of "
            f"{', '.join(names)}."
        )
    if targets == "none" and len(arrays) == 2 * len(names):  # The labels are not read.
        arrays = arrays[::2]
    if len(arrays) != len(names):
        raise DataError(
            f"{told}: its loader returned {len(arrays)} values; expected {', '.join(names)}."
        )
    try:
        given = [
            as_array(f"{told}, {name}", array) for name, array in zip(names, arrays, strict=True)
        ]
        train, test = check_arrays(told, names, given, targets, stays=spec.stream)
    except DataError as error:
        raise DataError(f"{error}\nA loader returns {expected(targets)}.") from error
    return [train], test


def _read_digits() -> Parts:
    # The file of scikit-learn's load_digits, which takes a second to import.
    package = find_spec("sklearn")
    assert package is not None  # it is required
    assert package.origin is not None
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    else:
        from sklearn.datasets import load_digits

        pixels, classes = load_digits(return_X_y=True)
        table = np.column_stack([pixels, classes])
    images = np.asarray(table[:, :-1], np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(table[:, -1], np.int32)
    every = np.arange(len(labels), dtype=np.int32)
    train, test = _stratified(labels, every, DIGITS_TEST_SHARE)
    return [(images[train], labels[train])], (images[test], labels[test])


def _stratified(strata: Strata, indices: Indices, share: float) -> tuple[Indices, Indices]:
    """Holds out a share of some examples, of each stratum that share to within one example.

    Returns:
        The indices that are kept and those that are held out, both ascending.
    """
    # RandomState, since NumPy promises that its numbers stay the same for ever.
    order = np.random.RandomState(0).permutation(indices)
    by_stratum = order[np.argsort(strata[order], kind="stable")]
    held = np.diff(np.rint(np.arange(len(order) + 1) * share)) > 0
    return np.sort(by_stratum[~held]), np.sort(by_stratum[held])


def _moments(
    images: Images | Rows, indices: Indices, standardize: bool | Literal["per_feature"]
) -> tuple[Moment | None, Moment | None]:
    """Returns mean and standard deviation, in one pass over small blocks."""
    if images.dtype == np.int32 or not standardize:
        return None, None
    # Sums of differences from one image or pixel: exact for constants, stable for a large mean.
    axes = () if standardize == "per_feature" else (0, 1)
    first = images[indices[:1]][0].astype(np.float64)
    origin = first if standardize == "per_feature" else first[0, 0]
    origins = np.ascontiguousarray(np.broadcast_to(origin, images.shape[1:]))
    sums, squares = np.zeros(images.shape[1:]), np.zeros(images.shape[1:])
    for block in blocks(images, indices):
        block = block - origins
        sums += block.sum(0)
        squares += np.einsum("nhwc,nhwc->hwc", block, block)
    mean = sums.mean(axes) / len(indices)
    variance = squares.mean(axes) / len(indices) - mean**2
    deviation = np.sqrt(np.maximum(variance, 0)).astype(np.float32)
    return (origin + mean).astype(np.float32), np.where(deviation == 0, np.float32(1), deviation)


def _listing(name: str) -> Listing:
    if name == "digits":
        return Listing(name, "part of scikit-learn", 1797, (8, 8, 1), "Nothing to do.")
    if name in _OWN_FILES and name != "text":
        return Listing(name, None, None, None, remedy(name))
    if name == "text":
        try:
            place = _place_of_text(None)
        except MissingDataError:
            place = None
        found = str(place) if place is not None and place.is_dir() else None
        return Listing(name, found, None, None, remedy(name))
    if name in LOADERS:
        place = f"registered by {known_as(LOADERS[name].__module__)}"
        return Listing(name, place, None, None, "Nothing to do.")
    try:
        _, paths = _find(name, None)
    except MissingDataError:
        place = None
    else:
        place = str(paths[0].parent)
    known = _PUBLISHED[name]
    return Listing(name, place, known.examples, known.image_shape, remedy(name))
