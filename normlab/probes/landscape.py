"""The loss around a point: along its gradient, its curvature, and how layers act together."""

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .problem import Layers, Params, Problem, difference, norm, stepped

# Of the step that is asked about.
SHARES = (0.25, 0.5, 0.75, 1.0)
ITERATIONS = 12


def along_gradient(problem: Problem, step: Any) -> dict[str, dict[str, Array]]:
    r"""Returns what the loss does along a step of gradient descent.

    At a quarter, a half, three quarters and all of the step :math:`\eta`: `loss`, the loss after
    it; `predictiveness`, :math:`|\nabla L(W) - \nabla L(W - \eta \nabla L)|`, how far the gradient
    moves away from itself. `smoothness` is the largest ratio of that to the length of the step,
    which bounds the curvature along it from below, and `before` the loss before the step.

    Source: Santurkar et al., 2018, "How Does Batch Normalization Help Optimization?", section 3.1
    and figure 4.
    """
    params = problem.params
    before, gradient = jax.value_and_grad(problem.loss)(params)
    length = norm(gradient)

    def at(share: Array) -> tuple[Array, Array]:
        loss, moved = jax.value_and_grad(problem.loss)(stepped(params, gradient, share * step))
        return loss, norm(difference(gradient, moved))

    losses, distances = jax.lax.map(at, jnp.array(SHARES))
    taken = jnp.array(SHARES) * step * length
    return {
        "before": {"all": before},
        "loss": {f"{share:g}": losses[place] for place, share in enumerate(SHARES)},
        "predictiveness": {f"{share:g}": distances[place] for place, share in enumerate(SHARES)},
        "smoothness": {"all": jnp.max(distances / jnp.where(taken > 0, taken, 1))},
    }


def sharpness(
    problem: Problem, key: PRNGKeyArray, iterations: int = ITERATIONS
) -> Float[Array, ""]:
    """Returns the largest eigenvalue of the Hessian of the loss, by Lanczos' iteration.

    Each of the iterations, which are at most as many as there are parameters, takes one product of
    the Hessian with a vector, the derivative of the gradient along it; vectors are made orthogonal
    to all former ones. What is returned is never above the eigenvalue but for rounding.

    Source: Lanczos, 1950; for the loss of networks Ghorbani, Krishnan and Xiao, 2019, "An
    Investigation into Neural Net Optimization via Hessian Eigenvalue Density", section 2.
    """
    flat, unflat = jax.flatten_util.ravel_pytree(problem.params)
    iterations = min(iterations, flat.size)

    def product(vector: Array) -> Array:
        _, along = jax.jvp(problem.gradient, (problem.params,), (unflat(vector),))
        return jax.flatten_util.ravel_pytree(along)[0]

    def one(index: Any, carry: tuple[Array, Array, Array, Array]) -> Any:
        vectors, vector, diagonal, beside = carry
        vectors = vectors.at[index].set(vector)
        moved = product(vector)
        diagonal = diagonal.at[index].set(jnp.vdot(moved, vector))
        for _ in range(2):  # Once does not suffice in float32.
            moved = moved - vectors.T @ (vectors @ moved)
        size = jnp.linalg.norm(moved)
        # Where all directions that are reached are used up, the rest of the matrix is 0.
        ended = size <= 1e-6 * jnp.maximum(jnp.max(jnp.abs(diagonal)), 1e-30)
        size = jnp.where(ended, 0, size)
        beside = beside.at[index].set(size)
        return vectors, moved / jnp.where(ended, 1, size) * (~ended), diagonal, beside

    start = jax.random.normal(key, flat.shape, flat.dtype)
    none = jnp.zeros(iterations, flat.dtype)
    carry = jnp.zeros((iterations, flat.size), flat.dtype), start / jnp.linalg.norm(start)
    *_, diagonal, beside = jax.lax.fori_loop(0, iterations, one, (*carry, none, none))
    small = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    # Directions after the last one that was reached stand for nothing.
    reached = jnp.cumprod(jnp.concatenate([jnp.ones(1), (beside[:-1] > 0).astype(flat.dtype)]))
    small = small - jnp.diag(jnp.where(reached > 0, 0, jnp.finfo(flat.dtype).max / 4))
    return jnp.linalg.eigvalsh(small)[-1]


def interaction(problem: Problem, layers: Layers, step: Any) -> Float[Array, ""]:
    r"""Returns how much of a step's effect on the loss no single layer's step has.

    .. math:: \frac{\left|\Delta(\text{all}) - \sum_l \Delta(l)\right|}{\sum_l |\Delta(l)|}

    where :math:`\Delta` is the change of the loss by a step of gradient descent of all parameters,
    or of those of one layer while the others stay. It is 0 of layers that act independently.

    Args:
        problem: The loss.
        layers: Of the network.
        step: Size of the step.

    Source: Goodfellow, Bengio and Courville, 2016, "Deep Learning", section 8.7.1, which describes
    the effects of second and higher order of a step of all layers at once.
    """
    before, gradient = jax.value_and_grad(problem.loss)(problem.params)

    def change(gradient: Params) -> Array:
        return problem.loss(stepped(problem.params, gradient, step)) - before

    single = jnp.stack(layers.mapped(lambda place: change(layers.only(gradient, place))))
    sizes = jnp.sum(jnp.abs(single))
    beyond = jnp.abs(change(gradient) - jnp.sum(single))
    return beyond / jnp.where(sizes > 0, sizes, 1)
