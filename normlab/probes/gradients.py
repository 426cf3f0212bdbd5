"""Gradients by layer, and how much of them is noise of the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .problem import Problem, Size, cosine, inner, of_leaves, stepped

# Into how many parts a batch is cut to see how its gradient varies: the first that fits.
PARTS = (4, 2, 3)


def gradients(problem: Problem, step: Size) -> dict[str, dict[str, Array]]:
    """Returns the sizes of gradients by layer, their noise scale, and how a step turns them.

    `to_input` are the norms of the gradients of the mean loss to the inputs of normalization
    layers, in the order of their calls, `to_parameter` those to each parameter by its path, and
    `noise_scale` is one number, under "all", unless the batch cannot be cut into 4, 2 or 3 parts;
    so is `cosine_of_steps`, that of the angle between two successive steps of gradient descent of
    the given size on the batch: 1 where the loss goes on as it began, -1 where the steps go back
    and forth.
    """
    count = len(problem.inputs)
    whole = problem.gradient(problem.params)
    after = problem.gradient(stepped(problem.params, whole, step))
    sizes = {name: jnp.linalg.norm(it) for name, it in problem.gradients_of_inputs().items()}
    told = {
        "to_input": sizes,
        "to_parameter": of_leaves(whole, lambda leaf: jnp.linalg.norm(leaf.ravel())),
        "cosine_of_steps": {"all": cosine(whole, after)},
    }
    if parts := next((it for it in PARTS if count % it == 0 and count >= 2 * it), None):
        told["noise_scale"] = {"all": noise_scale(problem, parts)}
    return told


def noise_scale(problem: Problem, parts: int) -> Float[Array, ""]:
    r"""Returns the batch size at which the noise of a gradient is as large as the gradient.

    .. math:: \frac{\mathrm{tr}\,\Sigma}{|G|^2}, \qquad
              |G|^2 \approx \frac{B |G_B|^2 - b |G_b|^2}{B - b}, \qquad
              \mathrm{tr}\,\Sigma \approx \frac{|G_b|^2 - |G_B|^2}{1 / b - 1 / B}

    where :math:`G_B` is the mean of the gradients :math:`G_b` of parts of b of the B examples, and
    :math:`|G_b|^2` the mean over the parts. Where layers pool over a batch, each part is
    normalized by itself. It is infinite where the noise leaves nothing of the gradient.

    Source: McCandlish et al., 2018, "An Empirical Model of Large-Batch Training", equations A.2
    and A.3.
    """
    found = problem.gradients_of_parts(parts)
    many, few = len(problem.inputs), len(problem.inputs) // parts
    of_parts = inner(found, found) / parts
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, 0), found)
    of_all = inner(mean, mean)
    signal = (many * of_all - few * of_parts) / (many - few)
    noise = (of_parts - of_all) / (1 / few - 1 / many)
    return jnp.where(signal > 0, noise / jnp.where(signal > 0, signal, 1), jnp.inf)
