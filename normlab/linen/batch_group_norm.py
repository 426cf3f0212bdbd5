"""Batch group normalization."""

from dataclasses import field
from typing import Any

from ..functional import Moments, group_moments
from .batch_norm import BatchInput, BatchNorm
from .shared import number_of_groups


class BatchGroupNorm(BatchNorm):
    r"""Normalizes groups of channels by their mean and variance over the batch.

    .. math:: y = \frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} \gamma + \beta

    Mean and variance are those of all channels of a group, at all positions of all examples: batch
    normalization whose statistics, in a small batch, are taken over more values. Groups of one
    channel are batch normalization. Unlike `GroupNorm` it normalizes by running statistics in
    evaluation. The authors' code can also cut the batch into groups of examples; that is left out.

    Fields and state are those of `BatchNorm`; `mean` and `var` keep the shape of the features and
    are equal within a group, so that checkpoints of either layer load into the other.

    Attributes:
        num_groups: Number of groups of neighbouring channels, or None if `group_size` is given.
        group_size: Number of channels in a group, or None if `num_groups` is given.

    Raises:
        ValueError: At the call, if there are several feature axes or the groups do not divide the
            channels.

    Source: Summers and Dinneen, 2020, "Four Things Everyone Should Know to Improve Batch
    Normalization", section 3.4.
    """

    num_groups: int | None = field(default=32, kw_only=True)
    group_size: int | None = field(default=None, kw_only=True)

    def _moments(self, given: BatchInput, axes: tuple[int, ...], **over_devices: Any) -> Moments:
        pooled = self._pooled_features(given)
        return group_moments(
            given.x,
            axes,
            given.features[0] // pooled,
            channel_axis=given.feature_axes[0],
            epsilon=self.epsilon,
            stored=given.inputs,
            mask=given.mask,
            use_fast_variance=self.use_fast_variance,
            **over_devices,
        )

    def _pooled_features(self, given: BatchInput) -> int:
        if len(given.feature_axes) != 1:
            raise ValueError(
                f"BatchGroupNorm: axis={self.axis} names {len(given.feature_axes)} axes of an "
                f"input of shape {given.x.shape}; name the one that holds the channels."
            )
        return given.features[0] // number_of_groups(self, given.features[0])
