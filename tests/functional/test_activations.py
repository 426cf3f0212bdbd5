"""The threshold in half precision."""

import jax
import jax.numpy as jnp
import numpy as np

from normlab.functional import thresholded_linear


def test_the_gradient_to_a_threshold_is_summed_in_its_own_precision():
    """bfloat16 has no 301."""
    x = jnp.zeros((301, 50), jnp.bfloat16)
    threshold = jnp.ones((1, 50), jnp.float32)
    y, pullback = jax.vjp(thresholded_linear, x, threshold)
    assert y.dtype == jnp.bfloat16
    of_x, of_threshold = pullback(jnp.ones_like(y))
    assert of_x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(of_x, 0)
    np.testing.assert_array_equal(of_threshold, 301)
