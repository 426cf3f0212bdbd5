"""Adaptation of NNX models to test data without labels."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array

from ..errors import UserError
from .adapt import check_prior_strength
from .given import check_batch
from .layers import How
from .nnx_calls import (
    LayerCall,
    calling_of,
    check_model,
    described,
    find_layers,
    intercepted,
    kept,
    set_statistics,
    with_statistics,
)
from .nnx_replace import check_optimizer
from .statistics import blended, keeps_statistics
from .tent import entropy_of_output


class Tented(NamedTuple):
    """What a batch leaves behind beside the changed model.

    Attributes:
        outputs: Logits of the batch before the step, which are the predictions of the paper.
        entropy: Mean entropy of those predictions, in nats.
    """

    outputs: Array
    entropy: Array


def adapt(
    model: nnx.Module,
    x: Any,
    *,
    prior_strength: float | ArrayLike,
    mask: ArrayLike | None = None,
    **how: Unpack[How],
) -> None:
    """Blends the running statistics with those of a batch of test data.

    As `normlab.surgery.adapt`, which says what the arguments are. It may be called within
    `nnx.jit`. To start from the trained statistics with each batch, adapt an `nnx.clone`.
    """
    copy = _in_evaluation(model, x)
    _forward(copy, x, prior_strength, mask, calling_of(how))
    _take_statistics(model, copy)


def _in_evaluation(model: nnx.Module, x: Any) -> nnx.Module:
    """Returns a copy of a model in evaluation, for a batch."""
    check_model(model)
    check_batch(x)
    copy = nnx.clone(model)
    copy.eval()
    return copy


def _forward(
    copy: nnx.Module, x: Any, prior_strength: Any, mask: Any, call: Callable[[Any, Any], Any]
) -> Any:
    """Calls a copy of a model under blended statistics, which it keeps; returns its output."""
    check_prior_strength(prior_strength)

    def adapted(given: LayerCall) -> Array:
        form = described(given.layer)
        if not keeps_statistics(form):
            return given.proceed()
        number = given.x.shape[0] if mask is None else jnp.sum(jnp.asarray(mask, bool))
        moments = given.moments(mask)
        new = blended(form, kept(given.layer), moments, number, prior_strength)
        set_statistics(given.layer, new)
        return given.evaluate({})

    with intercepted(copy, adapted):
        return call(copy, x)


def _take_statistics(model: nnx.Module, copy: nnx.Module) -> None:
    originals = with_statistics(model)
    for path, layer in with_statistics(copy).items():
        set_statistics(originals[path], kept(layer))


def tent(
    model: nnx.Module,
    x: Any,
    optimizer: nnx.Optimizer[Any],
    *,
    prior_strength: float | ArrayLike = 0.0,
    mask: ArrayLike | None = None,
    **how: Unpack[How],
) -> Tented:
    """Takes a step of gradient descent on the entropy of predictions for data without labels.

    As `normlab.surgery.tent`, which says what the arguments are. Usage, for a stream of batches::

        affine = surgery.nnx.trainable_filter(model, affine=True, rest=False)
        optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=affine)
        step = nnx.jit(surgery.nnx.tent)
        for x in batches:
            logits, entropy = step(model, x, optimizer)

    Args:
        model: A model that returns logits, classes on the last axis.
        x: A batch of test data.
        optimizer: An optimizer of scale and bias of the normalization layers, or of some of them.
        prior_strength: As in `adapt`; 0, as in the paper, leaves the trained statistics out.
        mask: True at the examples that count.
        how: How the model is called: `call` or `method`; see `normlab.surgery.How`.

    Returns:
        The predictions with their entropy.

    Raises:
        ValueError: If the optimizer is one of other parameters too, or of none.
    """
    check_optimizer(optimizer, "tent")
    copy, call = _in_evaluation(model, x), calling_of(how)
    names = [
        "/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, optimizer.wrt))
    ]
    affine = {
        "/".join(map(str, (*path, name)))
        for path in find_layers(model)
        for name in ("scale", "bias")
    }
    others = [name for name in names if name not in affine]
    if others or not names:
        raise UserError(
            f"tent: the optimizer is one of {', '.join(others) or 'no parameter'}, but scale and "
            "bias of the normalization layers are all that is adapted. Make it with "
            "wrt=surgery.nnx.trainable_filter(model, affine=True, rest=False)."
        )

    def entropy_of(copy: nnx.Module) -> tuple[Array, Array]:
        logits = _forward(copy, x, prior_strength, mask, call)
        return entropy_of_output(logits, mask), logits

    graded = nnx.value_and_grad(entropy_of, argnums=nnx.DiffState(0, optimizer.wrt), has_aux=True)
    (entropy, logits), gradients = graded(copy)
    optimizer.update(model, gradients)
    _take_statistics(model, copy)
    return Tented(logits, entropy)
