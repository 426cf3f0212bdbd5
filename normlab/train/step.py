"""What training computes, as pure functions: the first state, one step, and one evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Num, PRNGKeyArray

from ..models import Network
from ..objectives import Objective, Sums
from .accumulation import accumulated, cut
from .optim import AdamSpec, SGDSpec, optimizer
from .spec import TrainSpec
from .state import TrainState

# Inputs and targets; None for these where they are part of the inputs.
Batch = tuple[Num[Array, "batch ..."], Any]


@dataclass(frozen=True)
class Steps:
    """The pure functions of training one network.

    Attributes:
        network: The model.
        objective: Loss and metrics.
        outputs: How many numbers the model gives for each place of a target.
        optimizer_spec: The optimizer. Numbers of it that may differ between runs are arguments.
        train_spec: How long and how to train.
        steps_per_epoch: Steps of an epoch.
    """

    network: Network
    objective: Objective
    outputs: int
    optimizer_spec: SGDSpec | AdamSpec
    train_spec: TrainSpec
    steps_per_epoch: int

    def initialize(
        self, seed: Array, traced: Mapping[str, Array], example: Batch
    ) -> tuple[TrainState, Sums]:
        """Returns the state that a run starts from, and sums over nothing.

        Args:
            seed: Decides initial weights, order of examples and all that is drawn.
            traced: Numbers of the optimizer, by name.
            example: A batch of one.
        """
        initial_key, order_key = jax.random.split(jax.random.key(seed))
        inputs, *_ = self.objective.prepared(*example)
        params, batch_stats = self.network.init(initial_key, inputs)
        scale = self.train_spec.initialization_scale
        params = jax.tree.map(
            lambda leaf, is_weight: scale * leaf if is_weight else leaf,
            params,
            self.network.roles(params).weights,
        )
        state = TrainState(
            params=params,
            batch_stats=batch_stats,
            opt_state=self._optimizer(traced).init(params),
            step=jnp.zeros((), jnp.int32),
            key=order_key,
        )
        return state, self.objective.no_sums(*example, self.outputs)

    def train(
        self, state: TrainState, traced: Mapping[str, Array], batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, Sums]:
        """Takes one step of gradient descent on the mean loss of a batch.

        With `accumulate` the batch is cut into so many micro-batches, which go through the network
        one after the other, each from the state before the step: the first has examples 0, k,
        2 k, ..., so that each device of several has its share of every one. Loss and sums are
        those of the whole batch.

        Args:
            state: The state before.
            traced: Numbers of the optimizer, by name.
            batch: Inputs, floating or integers as the numbers of tokens, and targets.
            key: Decides what the model draws, as which features it leaves out.

        Returns:
            The state after, and the sums over the batch as it was before.
        """
        given, wanted, weights = self.objective.prepared(*batch)
        counted = jnp.maximum(jnp.sum(weights), 1)

        def differentiated(part: Any, key: PRNGKeyArray) -> tuple[Any, Sums, Any]:
            given, wanted, weights = part

            def loss_of(params: Any):
                output, batch_stats = self.network.train(params, state.batch_stats, given, key)
                output = self._checked(output, weights)
                sums = self.objective.sums(output, wanted, weights)
                total = self.objective.total(output, wanted, weights)
                return total / counted, (sums, batch_stats)

            gradients, (sums, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
            return gradients, sums, batch_stats

        whole = given, wanted, weights
        if self.train_spec.accumulate == 1:
            gradients, sums, batch_stats = differentiated(whole, key)
        else:
            parts = cut(whole, self.train_spec.accumulate)
            gradients, sums, batch_stats = accumulated(
                differentiated, parts, key, state.batch_stats
            )
        transformation = self._optimizer(traced)
        updates, opt_state = transformation.update(gradients, state.opt_state, state.params)
        stepped = state.replace(
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            step=state.step + 1,
        )
        return stepped, sums

    def evaluate(self, params: Any, batch_stats: Any, batch: Batch, counted: Array) -> Sums:
        """Returns the sums over those examples of a batch that count.

        Args:
            params: Parameters of the model.
            batch_stats: Its state.
            batch: Inputs and targets.
            counted: Which examples count, (batch,).
        """
        given, wanted, weights = self.objective.prepared(*batch)
        output = self._checked(self.network.evaluate(params, batch_stats, given), weights)
        of_each = counted.reshape(counted.shape + (1,) * (weights.ndim - 1))
        return self.objective.sums(output, wanted, weights * of_each)

    def _checked(self, output: Any, weights: Array) -> Array:
        return self.objective.check(self.network.name, output, weights.shape, self.outputs)

    def _optimizer(self, traced: Mapping[str, Array]) -> optax.GradientTransformation:
        steps = self.train_spec.length(self.steps_per_epoch).steps
        warmup = self.optimizer_spec.warmup_epochs
        if round(warmup * self.steps_per_epoch) > steps:
            raise ValueError(
                f"optimizer.warmup_epochs={warmup:g} are "
                f"{round(warmup * self.steps_per_epoch)} steps, more than the {steps} of the run, "
                "so that the rate would never be reached; shorten it."
            )
        return optimizer(
            self.optimizer_spec, traced, steps, self.steps_per_epoch, self.network.roles
        )
