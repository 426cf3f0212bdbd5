"""Models that are not called in the plain way: surgery reaches them by the same functions."""

import functools
import threading
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from leaks import checking_leaks
from surgery.models import DIGITS, HALVES, initial, mlp, moments

import normlab
from normlab import surgery

X = DIGITS[:16].reshape(16, -1)


class Net(nn.Module):
    """Draws in evaluation, has another method than its call, and state of its own."""

    def setup(self):
        self.dense = nn.Dense(4)
        self.norm = normlab.BatchNorm()
        self.head = nn.Dense(3)

    def __call__(self, x, train):
        return self.head(self.encode(x, train))

    def encode(self, x, train):
        x = self.norm(self.dense(x), use_running_average=not train)
        return nn.relu(x)

    def noisy(self, x, *, train):
        return self.encode(x + jax.random.normal(self.make_rng("noise"), x.shape), train)


KEYS = {"noise": jax.random.key(3)}
WAYS = {
    "plain": {},
    "method": {"method": "encode"},
    "method of the class": {"method": Net.encode},
    "drawing method": {"method": "noisy", "rngs": KEYS},
    "drawing call": {
        "call": lambda model, x: model.noisy(x, train=False),
        "rngs": KEYS,
    },
}


@pytest.fixture(scope="module")
def trained():
    model = Net()
    return model, initial(model, X, train=True, trained=True)


def outputs(model, variables, how):
    rngs = how.get("rngs")
    if "call" in how:
        return nn.apply(how["call"], model)(variables, X, rngs=rngs)
    return model.apply(variables, X, train=False, method=how.get("method"), rngs=rngs)


def assert_same(given, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), given, expected)


@pytest.mark.parametrize("way", WAYS)
def test_every_function_calls_the_model_in_every_way(trained, way):
    """Models that draw in evaluation or are called by another method could not be reached."""
    model, variables = trained
    how = WAYS[way]
    (layer,) = surgery.find_layers(model, variables, X, **how)
    assert layer.path == ("norm",)
    assert len(surgery.summary(model, variables, X, **how).layers) == 1
    folded, folded_variables = surgery.fold(model, variables, X, **how)
    assert_same(outputs(folded, folded_variables, how), outputs(model, variables, how))
    assert "batch_stats" not in folded_variables
    frozen = surgery.freeze(model)
    assert_same(outputs(frozen, variables, how), outputs(model, variables, how))
    if "noise" not in how.get("rngs", {}):
        mean, _ = moments(nn.Dense(4).apply({"params": variables["params"]["dense"]}, X))
        adapted = surgery.adapt(model, variables, X, prior_strength=0, **how)
        np.testing.assert_allclose(adapted["batch_stats"]["norm"]["mean"], mean, rtol=1e-4)
        result = surgery.recalibrate(model, variables, [X], **how)
        np.testing.assert_allclose(result["batch_stats"]["norm"]["mean"], mean, rtol=1e-4)
    else:
        surgery.adapt(model, variables, X, prior_strength=0, **how)
        surgery.recalibrate(model, variables, [X], **how)
    surgery.tent(model, variables, X, optax.sgd(0.1), **how)


def test_batches_of_recalibrate_draw_anew(trained):
    """With one draw for all batches the noise would not enter the variance."""
    model, variables = trained
    many = [jnp.zeros_like(X[:4])] * 50
    result = surgery.recalibrate(model, variables, many, method="noisy", rngs=KEYS)
    kernel = np.asarray(variables["params"]["dense"]["kernel"], np.float64)
    expected = np.square(kernel).sum(0)
    np.testing.assert_allclose(result["batch_stats"]["norm"]["var"], expected, rtol=0.3)


def test_a_frozen_model_has_the_methods_and_the_draws_of_the_model(trained):
    model, variables = trained
    frozen = surgery.freeze(model, statistics=False)
    for method in ("noisy", Net.noisy, model.noisy):
        given = {"rngs": KEYS, "method": method, "train": False}
        assert_same(frozen.apply(variables, X, **given), model.apply(variables, X, **given))
    bound = surgery.freeze(model).bind(variables)
    assert_same(bound.encode(X, True), model.apply(variables, X, False, method="encode"))
    keys = {"params": jax.random.key(0)}
    given = frozen.init(keys, X, train=True, method="encode")
    jax.tree.map(
        np.testing.assert_array_equal, given, model.init(keys, X, train=True, method="encode")
    )
    with pytest.raises(AttributeError):
        frozen.apply(variables, X, method="decode")


@pytest.mark.parametrize("frozen_part", ["all", "params", "batch_stats"])
def test_what_goes_in_frozen_comes_out_frozen(trained, frozen_part):
    """FrozenDicts came out as plain dictionaries, whose tree structure is another."""
    model, variables = trained
    given = {
        name: FrozenDict(value) if frozen_part in ("all", name) else value
        for name, value in variables.items()
    }
    given = FrozenDict(given) if frozen_part == "all" else given
    structure = jax.tree.structure(given)
    results = [
        surgery.recalibrate(model, given, [X]),
        surgery.adapt(model, given, X, prior_strength=1),
        surgery.tent(model, given, X, optax.sgd(0.1)).variables,
        surgery.convert(model, given, model, X).variables,
    ]
    for result in results:
        assert jax.tree.structure(result) == structure
    _, folded = surgery.fold(model, given, X)
    assert type(folded) is type(given)
    assert type(folded["params"]) is type(given["params"])
    layers = surgery.find_layers(model, given, X)
    mask = surgery.trainable_mask(given["params"], layers)
    assert jax.tree.structure(mask) == jax.tree.structure(given["params"])
    assert len(surgery.summary(model, given, X).layers) == 1


def test_of_a_pair_the_first_part_is_the_input(trained):
    """Batches of images and labels, as a training loop has them, went into the model whole."""
    model, variables = trained
    labels = jnp.zeros(16, jnp.int32)
    result = surgery.recalibrate(model, variables, [(X, labels), [X, labels]])
    assert_same(result, surgery.recalibrate(model, variables, [X, X]))
    adapted = surgery.adapt(model, variables, (X, labels), prior_strength=1)
    assert_same(adapted, surgery.adapt(model, variables, X, prior_strength=1))
    assert len(surgery.summary(model, variables, (X, labels)).layers) == 1
    surgery.fold(model, variables, (X, labels))


class Two(nn.Module):
    @nn.compact
    def __call__(self, image, age, train=False):
        x = nn.Dense(4)(jnp.concatenate([image, age], -1))
        return {"logits": normlab.BatchNorm()(x, use_running_average=not train)}


def test_a_batch_that_does_not_say_what_the_inputs_are_is_refused(trained):
    model, variables = trained
    with pytest.raises(ValueError, match=r"tuple of 3 does not say.*call="):
        surgery.recalibrate(model, variables, [(X, X, X)])
    with pytest.raises(ValueError, match=r"the inputs image, age.*call="):
        surgery.find_layers(Two(), {}, (X, X))
    with pytest.raises(ValueError, match="call and method"):
        surgery.find_layers(model, variables, X, call=lambda m, x: m(x), method="encode")
    with pytest.raises(ValueError, match="no such method; did you mean 'encode'"):
        surgery.find_layers(model, variables, X, method="encod")
    with pytest.raises(TypeError, match="unexpected keyword 'metod'; did you mean 'method'"):
        surgery.find_layers(model, variables, X, metod="encode")
    batch = {"image": X, "age": X[:, :1]}

    def call(model, batch):
        return model(batch["image"], age=batch["age"])["logits"]

    variables = Two().init(jax.random.key(0), X, X[:, :1], train=True)
    assert len(surgery.summary(Two(), variables, batch, call=call).layers) == 1
    surgery.recalibrate(Two(), variables, [batch], call=call, layer_by_layer=True)
    surgery.tent(Two(), variables, batch, optax.sgd(0.1), call=call)
    folded, folded_variables = surgery.fold(Two(), variables, batch, call=call)
    assert_same(folded.apply(folded_variables, X, X[:, :1]), Two().apply(variables, X, X[:, :1]))


@pytest.mark.parametrize("alter", ["freeze", "fold"])
def test_intermediates_of_an_altered_model_are_those_of_the_model(trained, alter):
    """Those inside of it were lost, as it called the model in an apply of its own."""
    model, variables = trained
    options = {"train": False, "capture_intermediates": True, "mutable": ["intermediates"]}
    y, expected = model.apply(variables, X, **options)
    altered = surgery.freeze(model)
    if alter == "fold":
        altered, variables = surgery.fold(model, variables, X)
        expected["intermediates"].pop("dense")
    given, captured = altered.apply(variables, X, **options)
    if alter == "fold":
        captured["intermediates"].pop("dense")
    assert_same(given, y)
    assert_same(captured, expected)


class Within(nn.Module):
    """A model that holds an altered one."""

    backbone: nn.Module

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(2)(self.backbone(x, train)) + jnp.sum(self.backbone(x, train))


@pytest.mark.parametrize("within", [None, "norm"])
def test_an_altered_model_may_be_part_of_another(trained, within):
    """Its paths were those of the whole then, and nothing was frozen or folded."""
    model, _ = trained
    whole = Within(model)
    whole_variables = initial(whole, X, train=True, trained=True)
    expected = whole.apply(whole_variables, X, False)
    frozen = Within(surgery.freeze(model, within=within))
    y, moved = frozen.apply(whole_variables, X, True, mutable=["batch_stats"])
    assert_same(y, expected)
    assert_same(moved["batch_stats"], whole_variables["batch_stats"])
    inner = {name: value["backbone"] for name, value in whole_variables.items()}
    folded, folded_variables = surgery.fold(model, inner, X)
    params = {**whole_variables["params"], "backbone": folded_variables["params"]}
    assert_same(Within(folded).apply({"params": params}, X, False), expected)


def test_freezing_a_part_that_the_model_lacks_is_refused(trained):
    model, variables = trained
    frozen = surgery.freeze(model, within="nrom")
    with pytest.raises(ValueError, match="did you mean 'norm'"):
        frozen.apply(variables, X, train=True)


class Keeping(nn.Module):
    """A model that writes to a collection of its own in evaluation too."""

    @nn.compact
    def __call__(self, x, train):
        calls = self.variable("memory", "calls", jnp.zeros, ())
        calls.value = calls.value + 1
        self.sow("intermediates", "x", x)
        return normlab.BatchNorm()(nn.Dense(4)(x), use_running_average=not train)


def test_a_model_may_write_to_collections_of_its_own():
    """Only batch_stats could be written to, so that such a model could not be called."""
    model = Keeping()
    variables = initial(model, X, train=True, trained=True)
    for result in (
        surgery.recalibrate(model, variables, [X, X], layer_by_layer=True),
        surgery.adapt(model, variables, X, prior_strength=1),
    ):
        assert jax.tree.structure(result) == jax.tree.structure(variables)
        assert result["memory"]["calls"] == variables["memory"]["calls"]
    surgery.fold(model, variables, X)
    frozen = surgery.freeze(model)
    _, moved = frozen.apply(variables, X, train=True, mutable=["memory"])
    assert moved["memory"]["calls"] == variables["memory"]["calls"] + 1


class Drawing(nn.Module):
    """A normalization layer that draws."""

    @nn.compact
    def __call__(self, x, use_running_average=None):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return x * scale[None] + jax.random.normal(self.make_rng("noise"), x.shape)


def test_a_shared_layer_of_a_frozen_model_draws_anew_at_each_call(monkeypatch):
    """Each call of a layer whose parameters are frozen drew the same numbers."""
    monkeypatch.setitem(normlab.variants.VARIANTS, "drawing", None)
    del normlab.variants.VARIANTS["drawing"]
    normlab.register("drawing", Drawing)

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = Drawing()
            return norm(norm(x))

    model = Twice()
    variables = model.init({"params": jax.random.key(0), **KEYS}, X)
    expected = model.apply(variables, X, rngs=KEYS)
    given = surgery.freeze(model, statistics=False).apply(variables, X, rngs=KEYS)
    np.testing.assert_array_equal(given, expected)


class Lifted(nn.Module):
    lift: str

    @nn.compact
    def __call__(self, x, train):
        block = {
            "jit": nn.jit(Net, static_argnums=(2,)),
            "remat": nn.remat(Net, static_argnums=(2,)),
            "vmap": nn.vmap(
                Net,
                in_axes=(None, None),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                axis_size=2,
            ),
        }[self.lift]
        return block(name="block")(x, train)


@pytest.mark.parametrize("mutable", [["batch_stats"], True])
@pytest.mark.parametrize("lift", ["jit", "remat", "vmap"])
def test_freezing_reaches_into_lifted_parts(lift, mutable):
    """With everything mutable, nn.jit used again what it had compiled for the unfrozen model."""
    model = Lifted(lift)
    variables = initial(model, X, train=True, trained=True)
    model.apply(variables, X, True, mutable=mutable)
    y, moved = surgery.freeze(model).apply(variables, X, True, mutable=mutable)
    assert_same(y, model.apply(variables, X, False))
    assert_same(moved["batch_stats"], variables["batch_stats"])


def test_two_threads_at_once_do_not_disturb_each_other():
    model = mlp()
    given = [initial(model, train=True, trained=True, seed=seed) for seed in range(2)]

    def work(variables):
        recalibrated = surgery.recalibrate(model, variables, HALVES)
        frozen = surgery.freeze(model).apply(variables, DIGITS, train=True)
        folded, inner = surgery.fold(model, variables, DIGITS[:4])
        adapted = surgery.adapt(model, variables, DIGITS, prior_strength=3)
        return recalibrated, frozen, folded.apply(inner, DIGITS, train=False), adapted

    expected = [work(variables) for variables in given]
    results, barrier = [None] * 4, threading.Barrier(4)

    def thread(index):
        barrier.wait()
        results[index] = work(given[index % 2])

    threads = [threading.Thread(target=thread, args=(index,)) for index in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for index, result in enumerate(results):
        assert_same(result, expected[index % 2])


def test_no_tracer_is_leaked(trained):
    """fold kept the calls that it had traced, and with them their values."""
    model, variables = trained
    with checking_leaks():
        surgery.summary(model, variables, X)
        surgery.fold(model, variables, X)
        surgery.convert(model, variables, model, X)
        surgery.recalibrate(model, variables, [X])
        jax.jit(partial(surgery.adapt, model, prior_strength=2))(variables, X)
        jax.jit(functools.partial(surgery.tent, model, optimizer=optax.sgd(0.1)))(variables, X)
        jax.jit(partial(surgery.freeze(model).apply, train=True))(variables, X)
        folded, inner = surgery.fold(model, variables, X)
        jax.jit(partial(folded.apply, train=False))(inner, X)


BROADCAST = {
    "a shape that broadcasts": (
        {"mean": np.zeros(1, np.float32)},
        r"shape \(1,\).*(needs|asks for) \(4,\)",
    ),
    "not finite": ({"mean": np.full(4, np.nan, np.float32)}, "mean.*is not finite.*recalibrate"),
    "negative": ({"var": np.full(4, -1, np.float32)}, "var.*is negative.*-1.*recalibrate"),
    "half precision": (
        {"var": np.ones(4, np.float16)},
        "dtype float16.*(float32 at least|at least float32)",
    ),
    "whole numbers": (
        {"var": np.ones(4, np.int32)},
        "dtype int32.*(float32 at least|at least float32)",
    ),
}


@pytest.mark.parametrize("wrong", BROADCAST)
@pytest.mark.parametrize("function", ["adapt", "fold", "freeze"])
def test_running_statistics_that_are_none_of_the_layer_are_refused(trained, wrong, function):
    """They were broadcast, or normalized by, silently."""
    model, variables = trained
    statistics, message = BROADCAST[wrong]
    norm = {**variables["batch_stats"]["norm"], **statistics}
    given = {**variables, "batch_stats": {"norm": norm}}
    functions = {
        "adapt": partial(surgery.adapt, prior_strength=1),
        "fold": surgery.fold,
        "freeze": lambda model, given, x: surgery.freeze(model).apply(given, x, train=True),
    }
    # The layer itself refuses some, by the name of its class.
    with pytest.raises(ValueError, match=f"[nN]orm: .*{message}"):
        functions[function](model, given, X)


def test_what_is_no_model_no_variables_or_no_batch_is_refused(trained):
    model, variables = trained
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=r"Net is a class. Give an instance, as in Net\("):
            surgery.summary(Net, variables, X)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    with pytest.raises(ValueError, match="bias, kernel hold arrays"):
        surgery.adapt(model, variables["params"]["dense"], X, prior_strength=1)
    with pytest.raises(ValueError, match="a list was given"):
        surgery.recalibrate(model, [variables], [X])
    for empty in (X[:0], {}, ()):
        with pytest.raises(ValueError, match=r"the batch .*Give (at least one|a batch)"):
            surgery.adapt(model, variables, empty, prior_strength=1)


def test_variables_that_are_not_those_of_the_model_are_told_with_what_was_given(trained):
    """Flax's own errors did not say what to give."""
    model, variables = trained
    wrong = [
        {"batch_stats": variables["batch_stats"]},
        variables["params"],
        {},
        {"params": variables},
        {**variables, "params": {"dense": variables["params"]["dense"]}},
    ]
    for given in wrong:
        for function in (
            surgery.summary,
            surgery.fold,
            partial(surgery.adapt, prior_strength=1),
            lambda model, given, x: surgery.recalibrate(model, given, [x]),
            lambda model, given, x: surgery.convert(model, given, model, x),
        ):
            with pytest.raises(ValueError, match=r"not those of the model.*model\.init makes"):
                function(model, given, X)
    with pytest.raises(ValueError, match=r"a batch of shape \(16, 3\) were given"):
        surgery.fold(model, variables, X[:, :3])
    with pytest.raises(ValueError, match=r"keys for that are missing.*noise.*rngs="):
        surgery.adapt(model, variables, X, prior_strength=1, method="noisy")


BATCHES_OF_NO_KIND = {
    "text": ("abc", "str of dtype <U3"),
    "objects": ({"name": np.array(["a"])}, r"\['name'\] is a ndarray of dtype <U1"),
    "a number": (np.float32(1), "no axis of examples"),
    "one example": (X[0], "holds only features along axis=-1"),
}


@pytest.mark.parametrize("kind", BATCHES_OF_NO_KIND)
def test_what_is_no_batch_is_refused(trained, kind):
    model, variables = trained
    batch, message = BATCHES_OF_NO_KIND[kind]
    for function in (
        lambda: surgery.adapt(model, variables, batch, prior_strength=1),
        lambda: surgery.recalibrate(model, variables, [batch]),
    ):
        with pytest.raises(ValueError, match=message):
            function()
