"""What a model must return and keep is checked when its programs are traced."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_runs import programs_of, run

from normlab.data import Dataset
from normlab.train import SGDSpec, TrainSpec


def dataset(classes=5):
    order = np.arange(24, dtype=np.int32)
    images = np.random.default_rng(0).normal(size=(24, 2, 2, 1)).astype(np.float32)
    return Dataset(
        name="made",
        images=images,
        labels=(order % classes).astype(np.int32),
        train=order[:16],
        validation=order[16:20],
        test=order[20:],
        mean=np.zeros(1, np.float32),
        deviation=np.ones(1, np.float32),
        classes=classes,
    )


class Returns(nn.Module):
    """Makes of logits what it is told to."""

    made: Callable
    classes: int = 5

    @nn.compact
    def __call__(self, x, *, train):
        return self.made(nn.Dense(self.classes)(x.reshape(len(x), -1)), train, self)


def trained(model):
    return programs_of(model, dataset(), 4, SGDSpec(), TrainSpec(epochs=1))


WRONG = {
    "fewer than classes": (lambda y, *_: y[:, :3], r"returns an array float32\[4, 3\]"),
    "more than classes": (lambda y, *_: jnp.pad(y, ((0, 0), (0, 1))), r"float32\[4, 6\]"),
    "classes first": (lambda y, *_: y.T, r"float32\[5, 4\]"),
    "a mean over the batch": (lambda y, *_: y.mean(0, keepdims=True), r"float32\[1, 5\]"),
    "one answer": (lambda y, *_: y.argmax(-1), r"int32\[4\]"),
    "positions": (lambda y, *_: y[:, None], r"float32\[4, 1, 5\]"),
    "whole numbers": (lambda y, *_: y.astype(jnp.int32), r"int32\[4, 5\]"),
    "complex numbers": (lambda y, *_: y + 1j, r"complex64\[4, 5\]"),
    "a pair": (lambda y, *_: (y, y), "returns tuple"),
    "a dictionary": (lambda y, *_: {"logits": y}, "returns dict"),
    "nothing": (lambda y, *_: None, "returns NoneType"),
    "other in evaluation": (lambda y, train, _: y if train else y[:, :3], r"float32\[4, 3\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_are_no_logits_is_refused_before_training(name):
    """3 logits for 10 classes ended as 'every final run diverged'."""
    made, told = WRONG[name]
    with pytest.raises(ValueError, match=told) as error:
        trained(Returns(made))
    assert "expected logits, floating of shape (4, 5)" in str(error.value)


def test_logits_of_half_precision_are_widened_before_the_loss():
    halved = run(trained(Returns(lambda y, *_: y.astype(jnp.bfloat16))), 0).curve
    rounded = lambda y, *_: y.astype(jnp.bfloat16).astype(jnp.float32)  # noqa: E731
    assert halved == run(trained(Returns(rounded)), 0).curve


def test_variables_that_no_step_would_keep_are_refused():
    def counted(y, _, module):
        return y + module.variable("cache", "count", jnp.zeros, ()).value

    with pytest.raises(ValueError, match="Returns has variables in cache; expected params and bat"):
        trained(Returns(counted))


class Nothing(nn.Module):
    def __call__(self, x, *, train):
        return x.reshape(len(x), -1)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="Nothing has no parameters"):
        trained(Nothing())
