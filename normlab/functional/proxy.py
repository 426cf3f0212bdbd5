"""Proxy normalization: an activation standardized by what it makes of a Gaussian."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from .arguments import checked
from .moments import moments
from .normalize import normalize


@checked()
def proxy_normalize(
    y: Float[Array, "..."],
    activation: Callable[[Array], Array],
    proxy_scale: Array,
    proxy_bias: Array,
    *,
    scale: Array | None,
    bias: Array | None,
    samples: int,
    epsilon: float,
) -> Array:
    r"""Activates `y` and standardizes the result by the moments of an activated proxy of `y`.

    .. math:: z = \frac{\phi(\gamma y + \beta) - \mathrm{E}[\phi(\gamma \tilde y + \beta)]}
        {\sqrt{\mathrm{Var}[\phi(\gamma \tilde y + \beta)] + \epsilon}}, \qquad
        \tilde y \sim \mathcal{N}(\tilde\beta, (1 + \tilde\gamma)^2)

    Args:
        y: Normalized values.
        activation: The activation, phi.
        proxy_scale: What the deviation of the proxy is more than 1, of the rank of `y` and
            broadcastable to it, as the following.
        proxy_bias: Mean of the proxy.
        scale: Factor before the activation, gamma; 1 if not given.
        bias: Summand before the activation, beta; 0 if not given.
        samples: Number of points for the expectations: the quantiles of the Gaussian at
            (i + 1/2) / samples.
        epsilon: Added to the variance.

    Returns:
        An array of the shape of `y`.
    """

    def activated(values):
        values = values if scale is None else values * scale
        return activation(values if bias is None else values + bias)

    quantiles = special.ndtri((np.arange(samples) + 0.5) / samples)
    gaussian = jnp.asarray(quantiles, y.dtype).reshape(samples, *(1,) * y.ndim)
    # The proxy has an axis of its own for the points, which `activated` must not take for one of y.
    proxy = jax.vmap(lambda point: activated(proxy_bias + (1 + proxy_scale) * point))(gaussian)
    proxy = jax.tree.map(lambda a: a[0], moments(proxy, (0,), epsilon=epsilon))
    return normalize(
        activated(y),
        proxy.shift,
        proxy.scaled_variance,
        residual=proxy.residual,
        factor=proxy.factor,
        epsilon=epsilon,
    )
