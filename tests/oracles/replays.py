"""Layers with running statistics, replayed step by step: normalize, update, evaluate.

Features lie on the last axis. Ioffe & Szegedy 2015 (batch), Hoffer et al. 2017 (ghost batch), Ioffe
2017 (renormalization), Luo et al. 2018 (switchable), Summers & Dinneen 2020 (batch group, inference
example weighing), Liu et al. 2020 (EvoNorm).
"""

import numpy as np
import scipy.special

from .basis import Moments, affine, as_double, moments
from .ghost import ghost_batch_norm, ghost_groups
from .running import RunningStatistics
from .standardizing import group_moments


def divide(x, mean, variance, epsilon: float, scale, bias) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # of infinite values
        return affine((as_double(x) - mean) / np.sqrt(variance + epsilon), -1, scale, bias)


class BatchNormReplay:
    """Batch normalization; what the others share.

    `rule` is that of `RunningStatistics`. In evaluation `example_weight` is the share that an
    example has in the statistics that it is normalized by: those of the mixture of two
    distributions, one with the running statistics and one with the example's.
    """

    def __init__(
        self, channels: int, *, epsilon: float = 1e-5, example_weight: float = 0.0, **rule
    ):
        self.epsilon, self.example_weight = epsilon, example_weight
        self.running = RunningStatistics((channels,), **rule)

    @property
    def state(self) -> dict[str, np.ndarray]:
        """What the layer is to keep, under the names it keeps it by."""
        state = {"mean": self.running.mean, "var": self.running.variance}
        counts = self.running.momentum is None or self.running.debias
        return state | ({"count": np.array(float(len(self.running.seen)))} if counts else {})

    def moments(self, x, mask=None) -> Moments:
        """Statistics of a batch, of the rank of it."""
        return moments(x, range(np.ndim(x) - 1), mask)

    def normalize(self, x, mask=None, *, constant_of=None, scale=None, bias=None) -> np.ndarray:
        """What the layer returns in training; statistics stay as they are.

        `constant_of` is the input that is to stand in for `x` where no derivative flows; there is
        such a place in renormalization only.
        """
        del constant_of
        mean, variance, _ = self.moments(x, mask)
        return divide(x, mean, variance, self.epsilon, scale, bias)

    def update(self, x, mask=None) -> None:
        """What a training step leaves behind."""
        self.running.update(*(m.reshape(-1) for m in self.moments(x, mask)))

    def evaluate(self, x, mask=None, *, scale=None, bias=None) -> np.ndarray:
        """What the layer returns in evaluation."""
        mean, variance = self.mixture(x, mask)
        return divide(x, mean, variance, self.epsilon, scale, bias)

    def mixture(self, x, mask=None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance for evaluation."""
        a, mean, variance = self.example_weight, self.state["mean"], self.state["var"]
        of_example = self.example_moments(x, mask)
        between = a * (1 - a) * np.abs(mean - of_example.mean) ** 2
        return (
            (1 - a) * mean + a * of_example.mean,
            (1 - a) * variance + a * of_example.variance + between,
        )

    def example_moments(self, x, mask=None) -> Moments:
        return moments(x, range(1, np.ndim(x) - 1), mask)


class GhostBatchNormReplay(BatchNormReplay):
    def __init__(
        self,
        channels: int,
        *,
        ghost_batch_size: int,
        grouping: str = "contiguous",
        remainder: str = "error",
        running: str = "pooled",
        **options,
    ):
        super().__init__(channels, **options)
        self.layout = ghost_batch_size, grouping, remainder
        self.rule = running

    def normalize(self, x, mask=None, *, constant_of=None, scale=None, bias=None) -> np.ndarray:
        del constant_of
        size, grouping, remainder = self.layout
        return ghost_batch_norm(
            x,
            ghost_batch_size=size,
            grouping=grouping,
            remainder=remainder,
            epsilon=self.epsilon,
            mask=mask,
            scale=scale,
            bias=bias,
        )

    def update(self, x, mask=None) -> None:
        groups = ghost_groups(len(x), *self.layout)
        self.running.update_from_ghosts(x, groups, running=self.rule, mask=mask)


class BatchGroupNormReplay(BatchNormReplay):
    def __init__(self, channels: int, *, num_groups: int = 32, **options):
        super().__init__(channels, **options)
        self.num_groups = num_groups

    def moments(self, x, mask=None) -> Moments:
        return group_moments(x, self.num_groups, range(np.ndim(x) - 1), mask)

    def example_moments(self, x, mask=None) -> Moments:
        return group_moments(x, self.num_groups, range(1, np.ndim(x) - 1), mask)


class BatchRenormReplay(BatchNormReplay):
    """The deviation sigma is averaged from 1, epsilon within: sigma = sqrt(variance + epsilon)."""

    def __init__(
        self,
        channels: int,
        *,
        momentum: float | None = 0.99,
        r_max: float = 3.0,
        d_max: float = 5.0,
        start_steps: int = 5000,
        r_steps: int = 40000,
        d_steps: int = 25000,
        **options,
    ):
        super().__init__(channels, momentum=momentum, **options)
        self.r_max, self.d_max = r_max, d_max
        self.start, self.r_end, self.d_end = start_steps, r_steps, d_steps
        # The running "variance" is sigma, which starts at 1.

    @property
    def state(self) -> dict[str, np.ndarray]:
        return {
            "mean": self.running.mean,
            "var": self.running.variance**2 - self.epsilon,
            "count": np.array(float(len(self.running.seen))),
        }

    def limits(self) -> tuple[float, float]:
        """The largest r and d at this step: 1 and 0 at first, then linear, then the final ones."""
        step = len(self.running.seen)

        def progress(end):
            return min(max((step - self.start) / (end - self.start), 0.0), 1.0)

        return 1 + (self.r_max - 1) * progress(self.r_end), self.d_max * progress(self.d_end)

    def corrections(self, x, mask=None) -> tuple[np.ndarray, np.ndarray]:
        """r and d, which derivatives take for constants."""
        mean, variance, _ = self.moments(x, mask)
        r_limit, d_limit = self.limits()
        sigma = self.running.variance
        r = np.clip(np.sqrt(variance + self.epsilon) / sigma, 1 / r_limit, r_limit)
        d = np.clip((mean - self.running.mean) / sigma, -d_limit, d_limit)
        return r, d

    def normalize(self, x, mask=None, *, constant_of=None, scale=None, bias=None) -> np.ndarray:
        mean, variance, _ = self.moments(x, mask)
        r, d = self.corrections(x if constant_of is None else constant_of, mask)
        y = divide(x, mean, variance, self.epsilon, None, None)
        return affine(y * r + d, -1, scale, bias)

    def update(self, x, mask=None) -> None:
        mean, variance, count = (m.reshape(-1) for m in self.moments(x, mask))
        sigma = np.sqrt(variance * self.running.correction(count) + self.epsilon)
        self.running.enter(mean, sigma, count > 0)


class SwitchableNormReplay(BatchNormReplay):
    """The weights are for instance, layer and batch; the running statistics are the batch's."""

    def normalize(
        self,
        x,
        mask=None,
        *,
        constant_of=None,
        mean_weight=(1, 1, 1),
        variance_weight=(1, 1, 1),
        scale=None,
        bias=None,
    ) -> np.ndarray:
        del constant_of
        mean, variance, _ = self.moments(x, mask)
        return self._switch(x, mask, mean, variance, mean_weight, variance_weight, scale, bias)

    def evaluate(
        self,
        x,
        mask=None,
        *,
        mean_weight=(1, 1, 1),
        variance_weight=(1, 1, 1),
        scale=None,
        bias=None,
    ) -> np.ndarray:
        mean, variance = self.mixture(x, mask)
        return self._switch(x, mask, mean, variance, mean_weight, variance_weight, scale, bias)

    def _switch(
        self, x, mask, batch_mean, batch_variance, mean_weight, variance_weight, scale, bias
    ) -> np.ndarray:
        rank = np.ndim(x)
        instance, layer = moments(x, range(1, rank - 1), mask), moments(x, range(1, rank), mask)
        means = instance.mean, layer.mean, batch_mean
        variances = instance.variance, layer.variance, batch_variance
        shares = scipy.special.softmax(as_double(mean_weight))
        mean = sum(share * of_kind for share, of_kind in zip(shares, means, strict=True))
        shares = scipy.special.softmax(as_double(variance_weight))
        variance = sum(share * of_kind for share, of_kind in zip(shares, variances, strict=True))
        return divide(x, mean, variance, self.epsilon, scale, bias)


class EvoNormB0Replay(BatchNormReplay):
    """Keeps the variance only, since it subtracts no mean."""

    @property
    def state(self) -> dict[str, np.ndarray]:
        state = super().state
        del state["mean"]
        return state

    def normalize(self, x, mask=None, *, constant_of=None, v=1.0, scale=None, bias=None):
        del constant_of
        return self._divide(x, mask, self.moments(x, mask).variance, v, scale, bias)

    def evaluate(self, x, mask=None, *, v=1.0, scale=None, bias=None):
        # Without means there is no variance between example and batch to add.
        a, of_example = self.example_weight, self.example_moments(x, mask).variance
        variance = (1 - a) * self.running.variance + a * of_example
        return self._divide(x, mask, variance, v, scale, bias)

    def _divide(self, x, mask, variance, v, scale, bias) -> np.ndarray:
        x = as_double(x)
        of_example = np.sqrt(self.example_moments(x, mask).variance + self.epsilon)
        divisor = np.maximum(np.sqrt(variance + self.epsilon), v * x + of_example)
        return affine(x / divisor, -1, scale, bias)
