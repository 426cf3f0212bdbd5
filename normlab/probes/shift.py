"""Internal covariate shift: how the steps of the layers before a layer move its gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .problem import Layers, Problem, Size, cosine, difference, norm, stepped


def internal_covariate_shift(
    problem: Problem, layers: Layers, step: Size
) -> dict[str, dict[str, Array]]:
    r"""Returns how far the gradient of each layer moves when the layers before it take their step.

    .. math:: |G_i - G'_i|, \qquad
              G_i = \nabla_{W_i} L(W_1, ..., W_k), \qquad
              G'_i = \nabla_{W_i} L(W'_1, ..., W'_{i-1}, W_i, ..., W_k)

    with :math:`W'` the parameters after a step of gradient descent on the same batch: `distance`;
    and `cosine`, that of the angle between both, 1 where nothing shifts.

    Args:
        problem: The loss.
        layers: Of the network, from the input on.
        step: Size of the step.

    Source: Santurkar et al., 2018, "How Does Batch Normalization Help Optimization?", definition
    2.1.
    """
    gradient = problem.gradient(problem.params)
    after = stepped(problem.params, gradient, step)

    def of_layer(place: Array) -> tuple[Array, Array]:
        moved = jax.tree.map(
            lambda old, new, own: jnp.where(own < place, new, old),
            problem.params,
            after,
            layers.place,
        )
        ours, theirs = (layers.only(it, place) for it in (gradient, problem.gradient(moved)))
        return norm(difference(ours, theirs)), cosine(ours, theirs)

    found = dict(zip(layers.names, layers.mapped(of_layer), strict=True))
    return {
        "distance": {name: distance for name, (distance, _) in found.items()},
        "cosine": {name: angle for name, (_, angle) in found.items()},
    }
