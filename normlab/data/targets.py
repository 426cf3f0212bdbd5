"""What the labels of a data set may be: classes, flags, values, classes of positions, or none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..spec import Targets
from .formats import check_labels
from .reading import DataError
from .rows import blocks

# A spread of so many steps of float32 is resolved to a thousandth.
_RESOLVED = 1000


@dataclass(frozen=True)
class Kind:
    """A kind of labels.

    Attributes:
        expected: What they are, for messages.
        brought: Where, labels, examples, what the images are called, how many outputs are known
            from the training labels or None -> the labels as they are trained on.
        outputs: Of training labels, how many numbers a model gives for each place.
    """

    expected: str
    brought: Callable[[str, np.ndarray, int, str, int | None], np.ndarray]
    outputs: Callable[[np.ndarray], int]


def check_targets(
    kind: Targets,
    source: str,
    names: Sequence[str],
    labels: Sequence[np.ndarray],
    examples: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Brings the labels of a set of one's own to the form in which they are trained on.

    Args:
        kind: What they must be.
        source: Where they come from, for messages.
        names: What those to train on, and those to test on, are called there.
        labels: These.
        examples: How many images there are of each.

    Raises:
        DataError: they are not of the kind, or do not fit to the images or to each other.
    """
    known = KINDS[kind]
    train_where, test_where = (f"{source}, {name}" for name in names)
    train = known.brought(train_where, labels[0], examples[0], source, None)
    outputs = known.outputs(train)
    test = known.brought(test_where, labels[1], examples[1], source, outputs)
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{test_where}: labels of shape {labels[1].shape}, expected {train.shape[1:]} for each "
            f"example, as {names[0]}."
        )
    return train, test


def _classes(
    where: str, labels: np.ndarray, examples: int, images: str, outputs: int | None
) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras has them for CIFAR-10
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where}: labels of type {labels.dtype} and shape {labels.shape}, expected integers "
            "of shape (N,); whole numbers of another type are converted by .astype(int), and "
            "one-hot labels by .argmax(1). For flags, values or classes of positions name their "
            "objective, as in objective: {name: regression}."
        )
    # More classes than examples is no classification: most likely these are not labels.
    classes = examples if outputs is None else outputs
    check_labels(where, labels, examples=examples, images=images, classes=classes)
    if outputs is None and not labels.any():
        raise DataError(f"{where}: all labels are 0; expected at least two classes.")
    return labels.astype(np.int32)


def _flags(
    where: str, labels: np.ndarray, examples: int, images: str, outputs: int | None
) -> np.ndarray:
    _refuse_another(where, labels, "flags", examples, images, kinds="bui", dimensions=(2,))
    return _in_range(where, labels, 0, 1, "flags are 0 or 1").astype(np.uint8)


def _values(
    where: str, labels: np.ndarray, examples: int, images: str, outputs: int | None
) -> np.ndarray:
    _refuse_another(where, labels, "values", examples, images, kinds="uif", dimensions=(1, 2))
    with np.errstate(over="ignore"):  # what float32 cannot hold is reported below
        values = labels.astype(np.float32)
    if wrong := values.size - np.count_nonzero(np.isfinite(values)):
        first = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
        raise DataError(
            f"{where}: {wrong} values are not finite in float32, as {labels[first]} at {first}."
        )
    values = values.reshape(len(values), -1)
    given = labels.reshape(values.shape).astype(np.float64)
    deviations, largest = given.std(0), np.abs(given).max(0)
    for column in np.flatnonzero(deviations > 0):
        step = float(np.spacing(np.float32(largest[column])))
        if deviations[column] < _RESOLVED * step:
            raise DataError(
                f"{where}: values up to {largest[column]:g} of standard deviation "
                f"{deviations[column]:g}, which float32, in steps of {step:g} there, does not "
                "resolve; take an offset out of them, as with values - values.mean()."
            )
    return values


def _positions(
    where: str, labels: np.ndarray, examples: int, images: str, outputs: int | None
) -> np.ndarray:
    _refuse_another(where, labels, "positions", examples, images, kinds="ui", dimensions=(3,))
    most = np.iinfo(np.int32).max - 1 if outputs is None else outputs - 1
    told = f"classes are 0 to {most}, and -1 where a position is left out"
    labels = _in_range(where, labels, -1, most, told)
    if outputs is None and int(labels.max()) < 1:
        raise DataError(
            f"{where}: no position has a class above 0; expected at least two classes, from 0."
        )
    return labels.astype(np.int32)


def _refuse_another(
    where: str,
    labels: np.ndarray,
    kind: Targets,
    examples: int,
    images: str,
    *,
    kinds: str,
    dimensions: tuple[int, ...],
) -> None:
    """Refuses labels of another type or shape."""
    told = f"{where}: labels of type {labels.dtype} and shape {labels.shape}"
    if labels.dtype.kind not in kinds or labels.ndim not in dimensions or labels.size == 0:
        raise DataError(f"{told}, but the objective expects {KINDS[kind].expected}.")
    if len(labels) != examples:
        raise DataError(
            f"{where}: {len(labels)} labels, expected {examples}, as many as images in {images}."
        )


def _in_range(where: str, labels: np.ndarray, low: int, high: int, told: str) -> np.ndarray:
    if labels.dtype == bool:
        return labels
    wrong = np.argwhere((labels < low) | (labels > high))
    if len(wrong):
        first = tuple(wrong[0].tolist())
        raise DataError(
            f"{where}: {labels[first]} at {first}, but {told} ({len(wrong)} of {labels.size} are "
            "out of range)."
        )
    return labels


def _no_labels(*_: Any) -> np.ndarray:
    raise AssertionError("labels that no objective reads are not checked")


def _most(labels: np.ndarray) -> int:
    return int(labels.max()) + 1


def _columns(labels: np.ndarray) -> int:
    return labels.shape[1]


KINDS: dict[Targets, Kind] = {
    "classes": Kind("classes, whole numbers from 0 of shape (N,)", _classes, _most),
    "flags": Kind(
        "flags, truth values or whole numbers 0 and 1 of shape (N, flags)", _flags, _columns
    ),
    "values": Kind("values, numbers of shape (N,) or (N, values)", _values, _columns),
    "positions": Kind(
        "classes of positions, whole numbers from 0, or -1 for none, of shape (N, H, W)",
        _positions,
        _most,
    ),
    "none": Kind("no labels", _no_labels, _columns),
}


def outputs_without_labels(source: str, images: Any, train: int) -> int:
    """Returns how many numbers a model gives for each place where the targets are in the inputs.

    Of tokens, one for each there is; of images, as many as an example has values.

    Args:
        source: Where they come from, for messages.
        images: All examples, those to train on first.
        train: How many these are.

    Raises:
        DataError: tokens are negative, or those to test on have others than those to train on.
    """
    if images.dtype != np.int32:
        return int(np.prod(images.shape[1:]))
    numbers = np.arange(len(images))
    if (least := min(int(it.min()) for it in blocks(images))) < 0:
        raise DataError(f"{source}: a token of number {least}; expected whole numbers from 0.")
    tokens, largest = (
        max(int(it.max()) for it in blocks(images, of)) for of in (numbers[:train], numbers[train:])
    )
    tokens += 1
    if largest >= tokens:
        raise DataError(
            f"{source}: the test examples have a token of number {largest}, but those to train on "
            f"0 to {tokens - 1}; expected no others."
        )
    return tokens
