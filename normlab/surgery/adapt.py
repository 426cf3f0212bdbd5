"""Statistics for data unlike that of training, from batches of it without labels."""

from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.core import Tracer
from jax.typing import ArrayLike

from ..errors import UserError
from .given import as_given, name_of, variables_of
from .layers import Calling, How, LayerCall, run
from .statistics import batch_moments, blended, check_running, keeps_statistics


def adapt(
    model: nn.Module,
    variables: Any,
    x: Any,
    *,
    prior_strength: float | ArrayLike,
    mask: ArrayLike | None = None,
    **how: Unpack[How],
) -> Any:
    r"""Blends the running statistics with those of a batch of test data.

    .. math:: \mu = \frac{N}{N + n} \mu_s + \frac{n}{N + n} \mu_t, \qquad
        \sigma^2 = \frac{N}{N + n} \sigma_s^2 + \frac{n}{N + n} \sigma_t^2

    with the statistics s of training and t of a batch of n examples. The prior strength N says how
    many examples the trained statistics are worth: 0 normalizes by the batch alone, infinity leaves
    the model as it is. Every layer measures its input under the blended statistics of those before;
    one that is called several times takes in the input of each call in turn.

    Usage, compiled once for all batches::

        adapted = jax.jit(functools.partial(surgery.adapt, model, prior_strength=16))
        logits = model.apply(adapted(variables, x), x, train=False)

    Each batch starts from the trained variables; to go along with data that changes slowly, hand
    on the ones that were returned.

    Args:
        model: A Linen model.
        variables: Its trained variables, or a state of training with them.
        x: A batch of test data.
        prior_strength: N, not negative.
        mask: True at the examples that count.
        how: How the model is called: `call`, `method`, `rngs`; see `How`.

    Returns:
        All variables in the form in which they were given, the running statistics blended. A layer
        whose input is not finite keeps its own. The number of updates that some layers count stays.

    Raises:
        ValueError: If the prior strength is negative, the batch is empty, or running statistics
            are missing or none of their layer.

    Source: Schneider et al., 2020, "Improving robustness against common corruptions by covariate
    shift adaptation", equation 3.
    """
    given = variables_of(variables)
    _, adapted = forward(model, given, x, prior_strength, mask, Calling.of(how))
    return as_given(variables, adapted)


def check_prior_strength(prior_strength: float | ArrayLike) -> None:
    """Refuses a negative number of examples.

    Raises:
        ValueError: That says what the number means.
    """
    if not isinstance(prior_strength, Tracer) and not np.all(np.asarray(prior_strength) >= 0):
        raise UserError(
            f"prior_strength={prior_strength} is the number of examples that the trained "
            "statistics are worth; it cannot be negative."
        )


def forward(
    model: nn.Module,
    variables: dict[str, Any],
    x: Any,
    prior_strength: float | ArrayLike,
    mask: ArrayLike | None,
    calling: Calling,
) -> tuple[Any, dict[str, Any]]:
    """Calls the model under blended statistics; returns its output and the variables with them."""
    check_prior_strength(prior_strength)

    def adapted(given: LayerCall) -> Any:
        module, x = given.module, given.x
        if not keeps_statistics(module):
            return given.proceed()
        name = name_of(module.path)
        batch = batch_moments(module, x, given.arguments.get("mask"), mask, name)
        examples = x.shape[0] if mask is None else jnp.sum(jnp.asarray(mask, bool))
        kept = dict(module.variables.get("batch_stats", {}))
        if "var" not in kept:
            raise UserError(
                f"{name} has no running statistics in batch_stats to blend those of the batch "
                "with. Give all variables of the trained model."
            )
        check_running(module, kept, x.shape, name)
        statistics = blended(module, kept, batch, examples, prior_strength)
        y, _ = given.evaluate(module.variables, statistics)
        for name, value in statistics.items():
            module.put_variable("batch_stats", name, value)
        return y

    return run(model, variables, x, calling, adapted)
