"""Weights: their sizes, how far a step turns them, and whether layers undo themselves."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .problem import Params, Problem, Size, named, of_leaves, stepped
from .reports import Report


def weights(problem: Problem, step: Size) -> dict[str, dict[str, Array]]:
    r"""Returns what the parameters are like, by their paths, and those of layers by their names.

    `norm` is the Euclidean norm of each parameter. Of those of two axes or more, `turned` is the
    angle in radians by which a step of gradient descent of size :math:`\eta` turns it;
    `effective_rate`, :math:`\eta / |w|^2`, the rate at which the direction of a weight moves on
    whose length the network does not depend. `undone` and `undone_bias` say how far layers are
    from undoing themselves; see `undone`.

    Source: van Laarhoven, 2017, "L2 Regularization versus Batch and Weight Normalization", section
    3 (effective rate); Wan et al., 2021, "Spherical Motion Dynamics", section 3 (angular update).
    """
    params = problem.params
    after = stepped(params, problem.gradient(params), step)

    def effective(leaf: Array) -> Array:
        return step / jnp.sum(jnp.square(leaf.astype(jnp.float32)))

    told = {
        "norm": of_leaves(params, lambda leaf: jnp.linalg.norm(leaf.ravel())),
        "turned": _of_matrices(params, of_leaves(params, _angle, after)),
        "effective_rate": _of_matrices(params, of_leaves(params, effective)),
    }
    of_layers = {name: undone(it) for name, it in problem.reports().items()}
    for quantity in ("undone", "undone_bias"):
        found = {name: it[quantity] for name, it in of_layers.items() if quantity in it}
        if found:
            told[quantity] = found
    return told


def _of_matrices(params: Params, told: dict[str, Array]) -> dict[str, Array]:
    """Leaves out biases and scales, which may be 0 and have no direction then."""
    return {name: told[name] for name, leaf in named(params) if leaf.ndim > 1}


def undone(report: Report) -> dict[str, Float[Array, ""]]:
    r"""Returns how far scale and bias of a layer are from undoing its normalization.

    Over the features, the root mean square of :math:`\gamma / \sigma - 1` is `undone`, and that of
    :math:`(\beta - \mu) / \sigma` is `undone_bias`, with mean and deviation of the inputs of the
    batch: both are 0 where :math:`\gamma = \sigma, \beta = \mu`, which gives a batch norm's input
    back. Empty for a layer whose scale or bias does not vary along the last axis alone.

    Source: Ioffe and Szegedy, 2015, "Batch Normalization", section 3.
    """
    inputs = report.inputs.astype(jnp.float32)
    given = inputs.reshape(-1, inputs.shape[-1])
    mean, deviation = jnp.mean(given, 0), jnp.std(given, 0)
    deviation = jnp.where(deviation > 0, deviation, 1)
    told = {}
    scale, bias = report.params.get("scale"), report.params.get("bias")
    if scale is not None and scale.shape == mean.shape:
        told["undone"] = _root_mean_square(scale / deviation - 1)
    if bias is not None and bias.shape == mean.shape:
        told["undone_bias"] = _root_mean_square((bias - mean) / deviation)
    return told


def _angle(before: Array, after: Array) -> Array:
    """Angle between two arrays, exact also where it is small; 0 where one of them is 0."""
    one, other = (it.ravel().astype(jnp.float32) for it in (before, after))
    sizes = [jnp.linalg.norm(it) for it in (one, other)]
    one, other = (
        one / jnp.where(sizes[0] > 0, sizes[0], 1),
        other / jnp.where(sizes[1] > 0, sizes[1], 1),
    )
    # Half of it has the sine and cosine of half the difference and half the sum.
    angle = 2 * jnp.arctan2(jnp.linalg.norm(one - other), jnp.linalg.norm(one + other))
    return jnp.where(jnp.minimum(*sizes) > 0, angle, 0)


def _root_mean_square(values: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(values)))
