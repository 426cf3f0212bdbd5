"""Optimizers: what a configuration may ask of Optax, and how it is put together."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from ..models import Roles
from ..spec import Spec

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class _Optimizer(Spec):
    """What all optimizers have.

    Attributes:
        learning_rate: The rate at its highest.
        schedule: How it goes on from there: `"constant"`, `"cosine"` to 0 at the end of the run,
            or in steps down, `"step"`.
        warmup_epochs: Epochs over which it rises from 0, in equal steps, before the schedule.
        milestones: For `"step"`: the shares of the run after which the rate is multiplied.
        step_factor: For `"step"`: what it is multiplied by.
        weight_decay: Strength of the decay of weights.
        decayed: Which parameters decay: `"weights"` for the weights of dense layers and
            convolutions, as the model tells them (`normlab.models.Roles`), which leaves out biases,
            scalars, positions and the parameters of normalizations; `"all"` for these too.
        gradient_clip: Largest norm of the whole gradient; None for no limit.
        adaptive_gradient_clip: Largest norm of a unit's gradient over that of its weights, or over
            1e-3 if they are smaller; None for no limit. A unit is what feeds one output of a dense
            layer or convolution, or a vector as a whole. Left out are the head, as in the paper,
            and scalars. Comes before the limit of the whole gradient. Source: Brock et al., 2021,
            "High-Performance Large-Scale Image Recognition Without Normalization", section 4.1.
    """

    learning_rate: PositiveFloat = 0.1
    schedule: Literal["constant", "cosine", "step"] = "constant"
    warmup_epochs: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    milestones: Annotated[tuple[Fraction, ...], Field(max_length=1_000)] = (0.5, 0.75)
    step_factor: PositiveFloat = 0.1
    weight_decay: NonNegativeFloat = 0.0
    decayed: Literal["weights", "all"] = "weights"
    gradient_clip: PositiveFloat | None = None
    adaptive_gradient_clip: PositiveFloat | None = None

    @model_validator(mode="after")
    def _milestones_in_order(self) -> "_Optimizer":
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(
                f"milestones={list(self.milestones)} must rise, as shares of the run between 0 "
                "and 1, for example [0.5, 0.75]"
            )
        return self

    def traced(self) -> dict[str, float]:
        """The numbers that may differ between runs of one compiled program."""
        names = ("learning_rate", "weight_decay", "momentum", "beta1", "beta2")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def untraced(self) -> Any:
        """The same optimizer but for the numbers that may differ: equal for equal programs."""
        return self.model_copy(update=dict.fromkeys(self.traced(), 0.0))


class SGDSpec(_Optimizer):
    """Stochastic gradient descent; weight decay is added to the gradient.

    Attributes:
        momentum: Share of the velocity that a step keeps.
        nesterov: Whether the gradient is taken a step ahead.
    """

    name: Literal["sgd"] = "sgd"
    momentum: Decay = 0.9
    nesterov: bool = False


class AdamSpec(_Optimizer):
    """Adam and its kin.

    Weight decay is added to the gradient in `adam`, and to the update in `adamw` (Loshchilov and
    Hutter, 2019) and `lamb` (You et al., 2020).

    Attributes:
        beta1: Share that the average of gradients keeps.
        beta2: Share that the average of squared gradients keeps.
        epsilon: Added to the root of the latter.
    """

    name: Literal["adam", "adamw", "lamb"]
    learning_rate: PositiveFloat = 1e-3
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    epsilon: PositiveFloat = 1e-8


OptimizerSpec = Annotated[SGDSpec | AdamSpec, Field(discriminator="name")]


def learning_rates(
    spec: SGDSpec | AdamSpec, learning_rate: ArrayLike, steps: int, steps_per_epoch: int
) -> optax.Schedule:
    """Returns the learning rate by step.

    Args:
        spec: Schedule and warm-up.
        learning_rate: The rate at its highest; may be traced.
        steps: Steps of the run.
        steps_per_epoch: Steps of an epoch.
    """
    warmup = round(spec.warmup_epochs * steps_per_epoch)
    remaining = max(steps - warmup, 1)
    if spec.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, remaining)
    elif spec.schedule == "step":
        factors: dict[int, float] = {}
        for share in spec.milestones:  # Two may fall on one step of a short run.
            step = round(share * steps) - warmup
            factors[step] = factors.get(step, 1.0) * spec.step_factor
        schedule = optax.piecewise_constant_schedule(learning_rate, factors)
    else:
        schedule = optax.constant_schedule(learning_rate)
    if warmup == 0:
        return schedule
    # The first step already moves: it is one of `warmup` equal ones up to the full rate.
    rise = optax.linear_schedule(learning_rate / warmup, learning_rate, max(warmup - 1, 1))
    return optax.join_schedules([rise, schedule], [warmup])


def optimizer(
    spec: SGDSpec | AdamSpec,
    traced: Mapping[str, Any],
    steps: int,
    steps_per_epoch: int,
    roles: Callable[[Any], Roles],
) -> optax.GradientTransformation:
    """Builds the Optax transformation.

    Args:
        spec: What to build.
        traced: Values for the names of `spec.traced()`, which take the place of the spec's own and
            may be traced, so that one program serves them all.
        steps: Steps of the run.
        steps_per_epoch: Steps of an epoch.
        roles: Tells what the parameters are for.
    """
    decay = optax.add_decayed_weights(
        traced["weight_decay"],
        mask=None if spec.decayed == "all" else lambda params: roles(params).weights,
    )
    if isinstance(spec, SGDSpec):
        update = [decay, optax.trace(traced["momentum"], nesterov=spec.nesterov)]
    else:
        adam = optax.scale_by_adam(traced["beta1"], traced["beta2"], spec.epsilon)
        update = {
            "adam": [decay, adam],
            "adamw": [adam, decay],
            "lamb": [adam, decay, optax.scale_by_trust_ratio()],
        }[spec.name]
    if spec.gradient_clip is not None:
        update = [optax.clip_by_global_norm(spec.gradient_clip), *update]
    if spec.adaptive_gradient_clip is not None:
        clip = optax.adaptive_grad_clip(spec.adaptive_gradient_clip)
        # The scalar of a residual branch starts at 0. Its steps would be so short that it stayed
        # there for hundreds of them.
        update = [
            optax.masked(
                clip,
                lambda params: jax.tree.map(
                    lambda leaf, is_head: not is_head and jnp.ndim(leaf) > 0,
                    params,
                    roles(params).head,
                ),
            ),
            *update,
        ]
    rates = learning_rates(spec, traced["learning_rate"], steps, steps_per_epoch)
    return optax.chain(*update, optax.scale_by_learning_rate(rates))
