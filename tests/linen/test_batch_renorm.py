"""Batch renormalization beside batch normalization: the state they share, and where they agree."""

import jax
import numpy as np
import pytest

import normlab as nl

X = np.random.default_rng(0).normal(3, 2, (16, 4)).astype(np.float32)


def trained_batch_norm():
    layer = nl.BatchNorm(momentum=0.5)
    variables = layer.init(jax.random.key(0), X, use_running_average=False)
    _, moved = layer.apply(variables, X, use_running_average=False, mutable=["batch_stats"])
    return {**variables, **moved}


@pytest.mark.parametrize(
    "layer",
    [nl.BatchRenorm(), nl.BatchNorm(debias=True), nl.BatchNorm(momentum=None)],
    ids=["renorm", "debiased", "cumulative"],
)
def test_a_state_without_a_count_serves_a_layer_that_counts(layer):
    """A missing count ended evaluation of a batch norm's checkpoint in an error."""
    variables = trained_batch_norm()
    expected = nl.BatchNorm().apply(variables, X, use_running_average=True)
    y = layer.apply(variables, X, use_running_average=True)
    np.testing.assert_array_equal(y, expected)
    layer.apply(variables, X, use_running_average=False)
    _, moved = layer.apply(variables, X, use_running_average=False, mutable=["batch_stats"])
    assert moved["batch_stats"]["count"] == 1


def test_before_the_first_step_it_is_batch_norm_where_the_variance_overflows():
    """The correction by nothing was 0 times infinity."""
    variables = nl.BatchRenorm().init(jax.random.key(0), X, use_running_average=False)

    def loss(layer, x):
        return (layer.apply(variables, x, use_running_average=False) * X).sum()

    x = X * np.float32(1e25)
    for function in (loss, jax.grad(loss, 1)):
        renormed, normed = function(nl.BatchRenorm(), x), function(nl.BatchNorm(), x)
        assert np.isfinite(normed).all()
        np.testing.assert_allclose(renormed, normed, rtol=1e-6, atol=1e-6)


def test_batches_that_do_not_count_leave_the_state_to_the_bit():
    """The variance went to its root and back, and lost a bit on the way."""
    layer = nl.BatchRenorm()
    variables = layer.init(jax.random.key(0), X, use_running_average=False)
    var = np.random.default_rng(1).uniform(0.1, 5, 4).astype(np.float32)
    variables["batch_stats"]["var"] = var
    for x, mask in ((X * np.nan, None), (X, np.zeros((1, 1), bool))):
        _, moved = layer.apply(
            variables, x, use_running_average=False, mask=mask, mutable=["batch_stats"]
        )
        np.testing.assert_array_equal(moved["batch_stats"]["var"], var)
        assert moved["batch_stats"]["count"] == 0
