"""Test-time training of NNX models, against a step written out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from leaks import checking_leaks
from surgery.models import DIGITS

import normlab
from normlab import surgery

X = DIGITS[:32].reshape(32, -1)


class Net(nnx.Module):
    def __init__(self, norm=normlab.nnx.BatchNorm):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(X.shape[-1], 16, rngs=rngs)
        self.norm = norm(16, rngs=rngs)
        self.last = nnx.Linear(16, 10, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


def affine_of(model, transformation):
    trained = surgery.nnx.trainable_filter(model, affine=True, rest=False)
    return nnx.Optimizer(model, transformation, wrt=trained)


@pytest.mark.parametrize("norm", [normlab.nnx.BatchNorm, nnx.BatchNorm])
def test_a_step_is_the_optimizers_along_the_gradient_through_batch_statistics(norm):
    model = Net(norm)
    before = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(model, nnx.Param)))
    # The same in training, without what is dropped.
    plain = nnx.clone(model)
    plain.drop.deterministic = True

    def entropy_of(model):
        return surgery.mean_entropy(model(X))

    gradients = nnx.as_pure(nnx.grad(entropy_of)(nnx.clone(plain)))
    tented = surgery.nnx.tent(model, X, affine_of(model, optax.sgd(0.1)))
    for name in ("scale", "bias"):
        expected = before["norm"][name] - 0.1 * gradients["norm"][name]
        np.testing.assert_allclose(getattr(model.norm, name)[...], expected, rtol=1e-4, atol=1e-6)
    for name in ("first", "last"):
        np.testing.assert_array_equal(getattr(model, name).kernel[...], before[name]["kernel"])
    np.testing.assert_allclose(tented.outputs, plain(X), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tented.entropy, surgery.mean_entropy(tented.outputs), rtol=1e-6)
    of_batch = Net(norm).first(X).mean(0)
    np.testing.assert_allclose(model.norm.mean[...], of_batch, rtol=1e-4, atol=1e-5)
    assert not model.drop.deterministic  # It is left in its mode.


def test_steps_compiled_once_lower_the_entropy_of_the_examples_that_count():
    model = Net(normlab.nnx.LayerNorm)
    optimizer = affine_of(model, optax.adam(3e-2))
    mask = np.arange(32) < 16
    changed = jnp.asarray(X).at[16:].set(100.0)
    step = nnx.jit(partial(surgery.nnx.tent, mask=mask))
    with checking_leaks():
        first = step(model, changed, optimizer)
    for _ in range(10):
        last = step(model, changed, optimizer)
    assert last.entropy < first.entropy
    assert optimizer.step[...] == 11
    alone = surgery.nnx.tent(Net(normlab.nnx.LayerNorm), X[:16], affine_of(Net(), optax.sgd(0.1)))
    np.testing.assert_allclose(first.entropy, alone.entropy, rtol=1e-5)


def test_an_optimizer_of_other_parameters_or_of_none_is_refused(without_type_checks):
    model = Net()
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    with pytest.raises(
        ValueError, match=r"^tent: the optimizer is one of first/bias, first/kernel"
    ):
        surgery.nnx.tent(model, X, optimizer)
    model = Net(partial(normlab.nnx.BatchNorm, use_scale=False, use_bias=False))
    with pytest.raises(ValueError, match=r"^tent: the optimizer is one of no parameter, but"):
        surgery.nnx.tent(model, X, affine_of(model, optax.sgd(0.1)))
    for optimizer in (optax.sgd(0.1), None):
        with pytest.raises(ValueError, match=r"^tent: optimizer is .* an nnx.Optimizer was"):
            surgery.nnx.tent(Net(), X, optimizer)
