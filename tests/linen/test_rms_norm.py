"""Root mean square normalization: its zero-centred and its partial form."""

import jax
import numpy as np
from flax import linen as nn

import normlab as nl

X = np.random.default_rng(0).normal(3, 2, (4, 8)).astype(np.float32)


def test_zero_centred_scale_may_say_how_it_is_sharded():
    """The box around the initial value was taken for a number."""
    scale_init = nn.with_partitioning(nn.initializers.constant(3.0), ("model",))
    layer = nl.RMSNorm(zero_centred=True, scale_init=scale_init)
    variables = layer.init(jax.random.key(0), X)
    box = variables["params"]["scale"]
    assert box.names == ("model",)
    np.testing.assert_array_equal(box.value, np.full(8, 2.0))
    expected = nl.RMSNorm(scale_init=nn.initializers.constant(3.0)).init_with_output(
        jax.random.key(0), X
    )[0]
    np.testing.assert_allclose(layer.apply(nn.unbox(variables), X), expected, rtol=1e-6)


def test_the_smallest_fraction_is_one_feature():
    """A fraction that rounded to no feature left the input as it was."""
    y = nl.RMSNorm(fraction=1e-8, use_scale=False, epsilon=0.0).apply({}, X)
    np.testing.assert_allclose(y, X / np.abs(X[:, :1]), rtol=1e-5)


def test_masked_half_precision_keeps_what_its_square_cannot():
    """Masked values above 255 were taken for garbage in float16."""
    x = np.full((2, 4), 300, np.float16)
    mask = np.array([[True, True, False, False]])
    layer = nl.LayerNorm(force_float32_reductions=False, use_scale=False, use_bias=False)
    y = layer.apply({}, x, mask=mask, bias=x[0])
    np.testing.assert_allclose(y, x, rtol=1e-2)
    y = nl.BatchNorm(
        use_running_average=False, force_float32_reductions=False, use_scale=False, use_bias=False
    ).apply({}, np.float16([[1], [3], [300]]), mask=np.array([[True], [True], [False]]))
    assert y[2, 0] > 250
