"""Powers by square roots are those by logarithms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab.functional import local_response


@pytest.mark.parametrize("beta", [0.25, 0.5, 0.75, 1.0, 0.6, 2.0])
def test_any_power_divides(beta):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7)), jnp.float32)

    def normalized(x):
        return local_response(x, size=5, k=1.0, alpha=0.3, beta=beta, average=False)

    def expected(x):
        square = np.pad(np.square(x), ((0, 0), (2, 2)))
        energy = sum(square[:, i : i + 7] for i in range(5))
        return x / (1 + 0.3 * energy) ** beta

    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(normalized(x), expected(exact), rtol=3e-6)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(normalized(x))))(x)
    step = 1e-6
    for i, j in np.ndindex(3, 7):
        moved = [exact.copy() for _ in range(2)]
        moved[0][i, j] += step
        moved[1][i, j] -= step
        up, down = (np.sum(np.sin(expected(it))) for it in moved)
        np.testing.assert_allclose(gradient[i, j], (up - down) / (2 * step), rtol=2e-4, atol=2e-5)
