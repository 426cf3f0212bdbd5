"""Running statistics over training steps, as the plain loop that they are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .basis import Axes, moments, other_axes
from .ghost import ghost_moments


@dataclass
class RunningStatistics:
    """Mean and variance, each of `shape`, from 0 and 1.

    `momentum` is the share kept; None averages all updates so far alike. `debias` divides averages
    that start at zero by `1 - momentum**updates`, as Adam does. `unbiased` multiplies each variance
    by n / (n - 1). A batch that is empty or not finite is left out; a feature of which a batch has
    no value keeps its statistics.
    """

    shape: tuple[int, ...]
    momentum: float | None = 0.99
    unbiased: bool = False
    debias: bool = False
    mean: np.ndarray = field(init=False)
    variance: np.ndarray = field(init=False)
    seen: list[tuple[np.ndarray, np.ndarray]] = field(init=False, default_factory=list)

    def __post_init__(self):
        self.mean, self.variance = np.zeros(self.shape), np.ones(self.shape)

    def update(self, mean, variance, count) -> None:
        self.enter(mean, variance * self.correction(count), np.asarray(count) > 0)

    def correction(self, count) -> np.ndarray | float:
        return np.asarray(count) / np.maximum(np.asarray(count) - 1, 1) if self.unbiased else 1.0

    def enter(self, mean, variance, counted) -> None:
        """Lets a mean and a variance enter as they are, where anything was counted."""
        finite = np.isfinite(mean).all() and np.isfinite(variance).all()
        if not (np.any(counted) and finite):
            return
        mean = np.where(counted, mean, self.mean)
        variance = np.where(counted, variance, self.variance)
        self.seen.append((mean, variance))
        means, variances = zip(*self.seen, strict=True)
        if self.momentum is None:
            self.mean, self.variance = np.mean(means, 0), np.mean(variances, 0)
        elif self.debias:
            self.mean, self.variance = self._debiased(means), self._debiased(variances)
        else:
            self.mean = self.momentum * self.mean + (1 - self.momentum) * mean
            self.variance = self.momentum * self.variance + (1 - self.momentum) * variance

    def _debiased(self, values: Sequence[np.ndarray]) -> np.ndarray:
        average = np.zeros(self.shape)
        for value in values:
            average = self.momentum * average + (1 - self.momentum) * value
        return average / (1 - self.momentum ** len(values))

    def update_from_batch(self, x, *, axis: Axes = -1, mask=None) -> None:
        reduced = other_axes(np.ndim(x), axis)
        self.update(*(m.squeeze(reduced) for m in moments(x, reduced, mask)))

    def update_from_ghosts(
        self, x, groups: Iterable[np.ndarray], *, running: str, axis: Axes = -1, mask=None
    ) -> None:
        """Enters one batch by the rule `running`; `groups` are its ghost batches, of all devices.

        "pooled" is the batch as a whole. "average" is the plain mean over the ghosts that are not
        empty (TF1's virtual batches). "sequential" is one update after the other (Hoffer's code).
        """
        if running == "pooled":
            self.update_from_batch(x, axis=axis, mask=mask)
            return
        ghosts = ghost_moments(x, groups, axis=axis, mask=mask)
        if running == "sequential":
            for ghost in ghosts:
                self.update(*ghost)
            return
        means, variances, counts = (np.array(part) for part in zip(*ghosts, strict=True))
        share = (counts > 0) / np.maximum((counts > 0).sum(0), 1)
        self.enter(
            (share * means).sum(0),
            (share * variances * self.correction(counts)).sum(0),
            counts.any(0),
        )
