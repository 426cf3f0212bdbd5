"""What surgery says of a mistake, and that it does not act on one."""

import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

import normlab
from normlab import surgery
from normlab.variants import VARIANTS

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


class Model(nn.Module):
    norm: type[nn.Module] = normlab.BatchNorm

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(4, name="dense")(x)
        return self.norm(name="norm")(x, use_running_average=not train)


def initialized():
    return Model().init(jax.random.key(0), X, train=True)


def test_missing_statistics_are_not_taken_to_be_mean_0_and_variance_1():
    """Folding and freezing normalized by initial statistics where none were given."""
    given = {"params": initialized()["params"]}
    with pytest.raises(ValueError, match="norm has no running statistics"):
        surgery.fold(Model(), given, X)
    with pytest.raises(ValueError, match="norm has no running statistics"):
        surgery.freeze(Model()).apply(given, X, train=True)
    (layer,) = surgery.summary(Model(), given, X).layers
    assert layer.warnings == ("no running statistics given",)


@pytest.mark.parametrize("within", ["", [], ["norm", ""]])
def test_freezing_within_nothing_is_refused(within):
    with pytest.raises(ValueError, match="names no part of the model"):
        surgery.freeze(Model(), within=within)


def test_a_mask_of_other_parameters_is_refused():
    """Given all variables instead of the parameters, it marked every one as trained."""
    variables = initialized()
    layers = surgery.find_layers(Model(), variables, X)
    with pytest.raises(ValueError, match=r'Give variables\["params"\]'):
        surgery.trainable_mask(variables, layers)
    mask = surgery.trainable_mask(variables["params"], layers)
    assert mask["dense"]["kernel"]
    assert not mask["norm"]["scale"]


@pytest.mark.parametrize("strength", [-1, np.float32(-3), np.array(-1.0)])
def test_a_negative_prior_strength_is_refused_whatever_its_type(strength):
    with pytest.raises(ValueError, match="cannot be negative"):
        surgery.adapt(Model(), initialized(), X, prior_strength=strength)


def test_batches_and_masks_that_do_not_fit_are_refused():
    masks = [np.ones(8, bool)] * 2
    with pytest.raises(ValueError, match="there are 1 batches, but more masks"):
        surgery.recalibrate(Model(), initialized(), [X], masks=masks)
    with pytest.raises(ValueError, match="a mapping with the keys image"):
        surgery.recalibrate(Model(), initialized(), {"image": X})
    ended = iter([X])
    with pytest.raises(ValueError, match="must return the batches anew"):
        surgery.recalibrate(Model(), initialized(), lambda: ended, layer_by_layer=True)


WRONG_KINDS = """
import jax
import numpy as np
from flax import linen as nn
from flax import nnx

import normlab
from normlab import surgery

rngs = nnx.Rngs(0)
linen = nn.Dense(4)
for call in (
    lambda: surgery.freeze("model"),
    lambda: surgery.freeze(nnx.Linear(4, 4, rngs=rngs)),
    lambda: surgery.convert(linen, {}, "model", np.ones((2, 4))),
    lambda: surgery.nnx.summary(linen),
    lambda: surgery.nnx.freeze(linen),
    lambda: surgery.nnx.trainable_filter(linen),
    lambda: normlab.nnx.BatchNorm(0, rngs=rngs),
    lambda: normlab.nnx.BatchNorm(8.0, rngs=rngs),
    lambda: normlab.nnx.BatchNorm("8", rngs=rngs),
    lambda: normlab.nnx.BatchNorm(8, rngs=jax.random.key(0)),
    lambda: normlab.nnx.WeightNorm(3, rngs=rngs),
    lambda: normlab.nnx.ConditionalNorm(8, 3, nnx.LayerNorm, rngs=rngs),
    lambda: normlab.nnx.ConditionalNorm(8, 3, normlab.LayerNorm, rngs=rngs),
):
    try:
        call()
    except (TypeError, ValueError) as error:
        print(error)
"""


def test_the_wrong_kind_of_thing_is_refused():
    """In a process of its own, where annotations are not checked, as users have it."""
    done = subprocess.run([sys.executable, "-c", WRONG_KINDS], capture_output=True, text=True)
    assert not done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 13
    expected = (
        *["a Linen model was expected"] * 3,
        *["a model of Flax NNX was expected"] * 3,
        *["expected a positive whole number"] * 3,
        "rngs=Array((), dtype=key<fry>) overlaying: [0 0] was given; expected an nnx.Rngs",
        "a layer of Flax NNX was expected",
        *["expected a class of normlab.nnx"] * 2,
    )
    for line, words in zip(told, expected, strict=True):
        assert words in line


def test_variables_are_carried_into_boxes_of_sharded_ones():
    """A target whose variables say how they are sharded could not take plain ones."""
    initializer = nn.with_partitioning(nn.initializers.ones, ("model",))
    layer = normlab.LayerNorm(scale_init=initializer)
    plain = normlab.LayerNorm().init(jax.random.key(0), X)
    plain["params"]["scale"] = np.arange(4.0)
    converted = surgery.convert(normlab.LayerNorm(), plain, layer, X)
    scale = nn.meta.unbox(converted.variables)["params"]["scale"]
    np.testing.assert_array_equal(scale, np.arange(4.0))


class Noisy(nn.Module):
    """A layer of a user's own, with randomness and state."""

    @nn.compact
    def __call__(self, x, use_running_average=None):
        calls = self.variable("my_state", "calls", lambda: np.zeros(()))
        if not self.is_initializing():
            calls.value = calls.value + 1
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return x * scale[None] + jax.random.normal(self.make_rng("noise"), x.shape)


def test_a_frozen_layer_of_the_users_own_keeps_its_randomness_and_state(monkeypatch):
    """Freezing what it learns took both away."""
    monkeypatch.setitem(VARIANTS, "noisy", None)  # Taken out again after the test.
    del VARIANTS["noisy"]
    normlab.register("noisy", Noisy)
    model = Model(norm=Noisy)
    keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    variables = model.init(keys, X, train=True)
    options = {"rngs": {"noise": jax.random.key(2)}, "mutable": ["my_state"]}
    plain, moved = model.apply(variables, X, train=True, **options)
    frozen, frozen_moved = surgery.freeze(model).apply(variables, X, train=True, **options)
    np.testing.assert_array_equal(frozen, plain)
    assert moved["my_state"]["norm"]["calls"] == frozen_moved["my_state"]["norm"]["calls"] == 1


def test_tent_names_the_layers_that_it_cannot_adapt():
    model = Model(norm=normlab.Identity)
    variables = model.init(jax.random.key(0), X, train=True)
    with pytest.raises(ValueError, match="no normalization layer of the model learns"):
        surgery.tent(model, variables, X, optax.sgd(0.1))
