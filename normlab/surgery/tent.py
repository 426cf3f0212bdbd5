"""Test-time training of scale and bias by the entropy of the predictions."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ..errors import UserError
from .adapt import forward
from .given import as_given, flattened, variables_of
from .layers import Calling, How, find_layers, in_words


class Tented(NamedTuple):
    """What a batch leaves behind.

    Attributes:
        variables: All variables in the form in which they were given, with new scales and biases,
            and the statistics of the batch.
        optimizer_state: For the next batch.
        outputs: Logits of the batch before the step, which are the predictions of the paper.
        entropy: Mean entropy of those predictions, in nats.
    """

    variables: Any
    optimizer_state: Any
    outputs: Array
    entropy: Float[Array, ""]


def tent(
    model: nn.Module,
    variables: Any,
    x: Any,
    optimizer: optax.GradientTransformation,
    optimizer_state: Any = None,
    *,
    prior_strength: float | ArrayLike = 0.0,
    mask: ArrayLike | None = None,
    **how: Unpack[How],
) -> Tented:
    r"""Takes a step of gradient descent on the entropy of predictions for data without labels.

    .. math:: H = -\frac{1}{n} \sum_i \sum_c p_{ic} \log p_{ic}, \qquad
        p_i = \mathrm{softmax}(\mathrm{logits}_i)

    Only `scale` and `bias` of the normalization layers move; layers with running statistics
    normalize by those of the batch meanwhile, or by the blend that `adapt` describes.

    Usage, for a stream of batches::

        step = jax.jit(functools.partial(surgery.tent, model, optimizer=optax.adam(1e-3)))
        adapted = step(variables, batches[0])
        for x in batches[1:]:
            adapted = step(adapted.variables, x, optimizer_state=adapted.optimizer_state)

    Predictions for a batch are `outputs`, or those of the new variables in evaluation. With a prior
    strength above 0, a stream blends each batch into the blend before; to blend with the trained
    statistics every time, put these back in between.

    Args:
        model: A Linen model that returns logits, classes on the last axis.
        variables: Its variables, or a state of training with them, whose optimizer and steps stay.
        x: A batch of test data.
        optimizer: Any transformation of gradients from Optax.
        optimizer_state: What the batch before left; anew by default.
        prior_strength: As in `adapt`; 0, as in the paper, leaves the trained statistics out.
        mask: True at the examples that count.
        how: How the model is called: `call`, `method`, `rngs`; see `How`.

    Returns:
        The variables, the state of the optimizer, and the predictions with their entropy.

    Raises:
        ValueError: If no normalization layer has a scale or bias.

    Source: Wang, Shelhamer, Liu, Olshausen and Darrell, 2021, "Tent: Fully Test-Time Adaptation by
    Entropy Minimization", section 3.
    """
    given = variables_of(variables)
    layers = find_layers(model, given, x, **how)
    rest = flattened(given.get("params", {}))
    names = [(*layer.path, name) for layer in layers for name in ("scale", "bias")]
    affine: Any = {"/".join(name): rest.pop(name) for name in names if name in rest}
    if not affine:
        raise UserError(
            "tent: no normalization layer of the model learns a scale or a bias, which are all "
            f"that could be adapted; {in_words(layers)}."
        )

    def with_affine(variables: dict[str, Any], affine: Any) -> dict[str, Any]:
        learned = {tuple(name.split("/")): value for name, value in affine.items()}
        return {**variables, "params": unflatten_dict({**rest, **learned})}

    def entropy_of(affine: Any) -> tuple[Array, Any]:
        tried = with_affine(given, affine)
        logits, measured = forward(model, tried, x, prior_strength, mask, Calling.of(how))
        return entropy_of_output(logits, mask), (logits, measured)

    (entropy, (logits, measured)), gradients = jax.value_and_grad(entropy_of, has_aux=True)(affine)
    if optimizer_state is None:
        optimizer_state = optimizer.init(affine)
    updates, optimizer_state = optimizer.update(gradients, optimizer_state, affine)
    adapted = with_affine(measured, optax.apply_updates(affine, updates))
    return Tented(as_given(variables, adapted), optimizer_state, logits, entropy)


def entropy_of_output(logits: Any, mask: ArrayLike | None) -> Array:
    """The mean entropy of what a model returned.

    Raises:
        ValueError: If these are no logits.
    """
    if not hasattr(logits, "ndim") or logits.ndim < 2:
        shapes = jax.tree.map(jnp.shape, logits)
        raise UserError(
            "tent: the model must return logits, classes on the last axis, but it returned "
            f"{shapes}. Let call return them, as in "
            'call=lambda model, x: model(x, train=False)["logits"].'
        )
    return mean_entropy(logits, mask)


def mean_entropy(logits: Float[Array, "n ... classes"], mask: ArrayLike | None = None) -> Array:
    """The mean entropy of softmax distributions over the last axis, in nats.

    Args:
        logits: One distribution an example, or several.
        mask: True at the examples that count; the mean over none is 0.
    """
    logits = logits.astype(jnp.float32)
    # The entropy of a distribution is its cross-entropy with itself.
    entropies = optax.losses.safe_softmax_cross_entropy(logits, jax.nn.softmax(logits))
    if mask is None:
        return jnp.mean(entropies)
    kept = jnp.asarray(mask, bool).reshape(-1, *(1,) * (entropies.ndim - 1))
    kept = jnp.broadcast_to(kept, entropies.shape)
    return jnp.sum(jnp.where(kept, entropies, 0)) / jnp.maximum(jnp.sum(kept), 1)
