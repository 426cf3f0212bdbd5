"""Ghost batch normalization."""

import math
from dataclasses import field
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..functional import (
    Grouping,
    Moments,
    Part,
    Remainder,
    average_moments,
    gather_groups,
    gathered,
    ghost_parts,
    lie_within_devices,
    moments,
    pool_axes,
    pool_moments,
    small_beside,
    split_groups,
    spread_groups,
)
from .batch_norm import BatchInput, BatchNorm, Running
from .shared import pooled_axis


class GhostBatchNorm(BatchNorm):
    r"""Batch normalization whose statistics are those of small groups of the batch.

    A training batch is cut into groups (ghost batches) of `ghost_batch_size` examples, and each is
    normalized by its own mean and variance, so that a large batch keeps the noise of a small one.
    In evaluation the layer is `BatchNorm` and takes any number of examples. A ghost batch as large
    as the batch is batch normalization, to the bit.

    Fields, state and call are those of `BatchNorm`. With `axis_name`, groups never cross devices;
    only the running statistics are pooled over them.

    Attributes:
        ghost_batch_size: Examples in a group. The first axis that is no feature axis holds the
            examples.
        grouping: `"contiguous"`: group i holds examples i s to (i + 1) s - 1, s the size of a group
            (the paper's code). `"strided"`: it holds examples i, i + g, i + 2 g, ..., g the number
            of groups (the virtual batch of TensorFlow 1).
        remainder: What becomes of the examples that do not fill a group: an `"error"`, a
            `"smaller_group"`, or part of the last group, `"merge_last"`. With strided grouping
            the last group of the latter two lies at the end of the batch, in one piece.
        running: How the statistics of the groups enter the running ones. `"pooled"`: as the mean
            and total variance of the whole batch, which is what evaluation sees. `"average"`: as
            the plain averages of their means and variances, which leaves out the variance between
            groups (the virtual batch of TensorFlow 1). `"sequential"`: one after the other, each
            with the full momentum (the paper's code; for its numbers, `momentum=0.9` and
            `running_variance="unbiased"`).

    Source: Hoffer, Hubara and Soudry, 2017, "Train longer, generalize better", algorithm 1.
    """

    ghost_batch_size: int = field(default=32, kw_only=True)
    grouping: Grouping = field(default="contiguous", kw_only=True)
    remainder: Remainder = field(default="error", kw_only=True)
    running: Literal["pooled", "average", "sequential"] = field(default="pooled", kw_only=True)

    def _batch_moments(self, given: BatchInput, running: Running | None) -> tuple[Moments, Moments]:
        del running  # Groups are normalized by their own statistics alone.
        x, mask = given.x, given.mask
        parts, axis = self._parts(x, given.reduced_axes)
        if len(parts) == parts[0].groups == 1:
            # Not cut at all, so that one group is batch normalization to the bit.
            whole = self._moments(given, given.reduced_axes)
            return whole, self._collect(jax.tree.map(lambda a: a[None], whole))
        shifted_axes = tuple(a + 1 for a in given.reduced_axes)
        groups, spread = [], []
        within = lie_within_devices(x, parts, axis, self.grouping)
        # Of groups that devices share, each example's own moments are put together instead, so that
        # small arrays are sent around and not the input.
        of_examples = None if within else self._gathered_moments(given, axis)
        for part in parts:  # One, or two where the last group has a size of its own.

            def split(a, part=part):
                return split_groups(a, part, axis, self.grouping)

            if of_examples is not None:
                group = pool_axes(jax.tree.map(split, of_examples), (axis + 1,))
            else:
                group = moments(
                    split(x),
                    shifted_axes,
                    epsilon=self.epsilon,
                    stored=split(given.inputs),
                    mask=None if mask is None else split(mask),
                    use_fast_variance=self.use_fast_variance,
                )
            groups.append(jax.tree.map(lambda a: jnp.moveaxis(a, axis, 0), group))
            spread.append(
                jax.tree.map(
                    partial(spread_groups, part=part, axis=axis, grouping=self.grouping), group
                )
            )
        of_example = jax.tree.map(lambda *a: small_beside(x, jnp.concatenate(a, axis)), *spread)
        return of_example, self._collect(jax.tree.map(lambda *a: jnp.concatenate(a), *groups))

    def _gathered_moments(self, given: BatchInput, axis: int) -> Moments:
        """The moments of each example, on all devices."""
        of_examples = self._moments(given, tuple(a for a in given.reduced_axes if a != axis))
        return jax.tree.map(partial(gathered, axis=axis), of_examples)

    def _parts(self, x: Array, reduced_axes: tuple[int, ...]) -> tuple[tuple[Part, ...], int]:
        """Plans the groups; returns them with the axis of the examples."""
        if not reduced_axes:
            raise ValueError(
                f"GhostBatchNorm: axis={self.axis} makes every axis of an input of shape {x.shape} "
                "a feature axis; one is needed that holds the examples."
            )
        axis = reduced_axes[0]
        examples = x.shape[axis]
        if self.is_initializing() and examples % self.ghost_batch_size:
            # Shapes are all that counts here, and the batch is often a single example.
            return (Part(0, 1, examples),), axis
        parts = ghost_parts(examples, self.ghost_batch_size, self.remainder)
        values = math.prod(x.shape[a] for a in reduced_axes[1:])
        for part in parts if not self.is_initializing() else ():
            self._refuse_single_value(x, part.group_size * values)
        return parts, axis

    def _collect(self, groups: Moments) -> Moments:
        """Turns the statistics of the groups into those that enter the running ones."""
        over_devices = {} if self.is_initializing() else pooled_axis(self)
        if len(groups.counted) == 1 and not over_devices:
            return self._for_running(groups)
        if self.running == "pooled":
            # What does not fit the dtype is passed over, so that no units need be agreed on.
            return self._for_running(pool_moments(groups.plain(), **over_devices))
        groups = self._for_running(groups)
        if self.running == "average":
            return average_moments(groups, **over_devices)
        return gather_groups(groups, **over_devices) if over_devices else groups
