"""Models in Linen, in NNX and as pairs of functions: one study, the same numbers."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from small_runs import programs_of, run

import normlab
from normlab.compare.study import study_type
from normlab.cost.step import study_cost
from normlab.cost.targets import find_target
from normlab.data.sources import LOADERS, Dataset
from normlab.models import MODELS, network_of
from normlab.models.as_functions import norm_for_functions
from normlab.train import SGDSpec, TrainSpec

FEATURES, WIDTH, CLASSES = 4, 6, 3


@pytest.fixture(autouse=True)
def _forget_what_a_test_registers():
    before = dict(MODELS)
    yield
    MODELS.clear()
    MODELS.update(before)


def start(key, shape, dtype=jnp.float32, param_dtype=None):
    """Initial weights that are the same whatever draws them."""
    del key, param_dtype
    return jnp.cos(jnp.arange(np.prod(shape), dtype=dtype)).reshape(shape) / 2


class InLinen(nn.Module):
    norm: Callable
    classes: int
    width: int = WIDTH

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(self.width, kernel_init=start)(x.reshape(len(x), -1))
        x = nn.relu(self.norm(name="norm")(x, use_running_average=not train))
        return nn.Dense(self.classes, kernel_init=start)(x)


class InNNX(nnx.Module):
    def __init__(self, *, norm, classes: int, width: int = WIDTH, rngs: nnx.Rngs):
        self.zeroth = nnx.Linear(FEATURES, width, kernel_init=start, rngs=rngs)
        self.norm = norm(width, rngs=rngs)
        # The last one that is set is not the last one by name.
        self.head = nnx.Linear(width, classes, kernel_init=start, rngs=rngs)

    def __call__(self, x):
        x = self.zeroth(x.reshape(len(x), -1))
        return self.head(nnx.relu(self.norm(x)))


def as_pair(*, norm, classes: int, width: int = WIDTH):
    init_norm, apply_norm = norm()

    def init(key, inputs):
        x = jnp.zeros((len(inputs), width))
        params, state = init_norm(key, x)
        first = {"kernel": start(key, (FEATURES, width)), "bias": jnp.zeros(width)}
        head = {"kernel": start(key, (width, classes)), "bias": jnp.zeros(classes)}
        return {"first": first, "norm": params, "head": head}, state

    def apply(params, state, inputs, *, train, key):
        assert (key is not None) == train
        x = inputs.reshape(len(inputs), -1)
        x = x @ params["first"]["kernel"] + params["first"]["bias"][None]
        x, state = apply_norm(params["norm"], state, x, train=train)
        return jax.nn.relu(x) @ params["head"]["kernel"] + params["head"]["bias"][None], state

    def parameter_roles(params):
        def told(holds):
            return jax.tree_util.tree_map_with_path(
                lambda path, _: holds([entry.key for entry in path]), params
            )

        return normlab.Roles(
            weights=told(lambda path: path[-1] == "kernel"),
            norms=told(lambda path: path[0] == "norm"),
            head=told(lambda path: path[0] == "head"),
        )

    return init, apply, parameter_roles


KINDS = {"linen": InLinen, "nnx": InNNX, "pair": as_pair}


def built(maker, norm=normlab.BatchNorm, classes=CLASSES, **fields):
    normlab.register_model(maker.__name__, maker)
    return MODELS[maker.__name__](name=maker.__name__, **fields).build(norm, classes, "float32")


def dataset(examples=40):
    draws = np.random.RandomState(0)
    labels = np.arange(examples, dtype=np.int32) % CLASSES
    images = draws.normal(size=(examples, 1, 1, FEATURES)).astype(np.float32)
    images[..., 0] += labels[:, None, None]
    train, validation, test = np.split(np.arange(examples, dtype=np.int32), [24, 32])
    return Dataset("made", images, labels, train, validation, test, None, None, CLASSES)


@pytest.mark.parametrize(
    "norm", [partial(normlab.BatchNorm, momentum=0.5), normlab.LayerNorm, normlab.Identity]
)
def test_the_same_network_has_the_same_curve_in_linen_in_nnx_and_as_a_pair(norm):
    # Decay and clipping ask for the roles of the parameters as well.
    optimizer = SGDSpec(learning_rate=0.1, weight_decay=0.1, adaptive_gradient_clip=0.1)
    train = TrainSpec(epochs=2, initialization_scale=0.8)
    curves = {}
    for kind, maker in KINDS.items():
        programs = programs_of(built(maker, norm), dataset(), optimizer=optimizer, train=train)
        curves[kind] = [
            [*point.train.values(), *point.validation.values()] for point in run(programs, 0).curve
        ]
    assert len(curves["linen"]) == 2
    assert curves["linen"][0] != curves["linen"][1]
    np.testing.assert_allclose(curves["nnx"], curves["linen"], rtol=1e-5)
    np.testing.assert_allclose(curves["pair"], curves["linen"], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_of_each_kind_runs(kind, tmp_path):
    normlab.register_model("mine", KINDS[kind])
    normlab.register_data("made", _as_loaded)
    try:
        results = normlab.compare(
            {
                "study": "kinds",
                "data": {"name": "made", "batch_size": 8},
                "model": {"name": "mine", "width": 5},
                "variants": {"batch": {"layer": "batch_norm"}, "none": {"layer": "identity"}},
                "train": {"epochs": 1},
                "seeds": 2,
            },
            out=tmp_path,
        )
    finally:
        LOADERS.pop("made")
    assert set(results.runs["status"]) == {"finished"}
    assert len(results.runs) == 4


def _as_loaded():
    made = dataset()
    return made.images[:32], made.labels[:32], made.images[32:], made.labels[32:]


@pytest.mark.parametrize("kind", KINDS)
def test_roles_of_the_same_network_are_the_same(kind):
    network = network_of(built(KINDS[kind]))
    params, _ = network.init(jax.random.key(0), jnp.zeros((2, 1, 1, FEATURES)))
    told = {}
    for role, marks in network.roles(params)._asdict().items():
        leaves = zip(jax.tree.leaves(params), jax.tree.leaves(marks), strict=True)
        told[role] = sorted(leaf.shape for leaf, holds in leaves if holds)
    assert told == {
        "weights": [(FEATURES, WIDTH), (WIDTH, CLASSES)],
        "norms": [(WIDTH,), (WIDTH,)],
        "head": [(CLASSES,), (WIDTH, CLASSES)],
    }


def test_without_roles_arrays_of_a_pair_with_two_axes_are_weights_and_there_is_no_head():
    network = network_of(as_pair(norm=norm_for_functions(normlab.LayerNorm), classes=2)[:2])
    params, _ = network.init(jax.random.key(0), jnp.zeros((2, 1, 1, FEATURES)))
    roles = network.roles(params)
    assert jax.tree.map(lambda leaf: leaf.ndim == 2, params) == roles.weights
    assert not any(jax.tree.leaves((roles.norms, roles.head)))


class Drawing(nnx.Module):
    """Has every kind of state: statistics, a variable of its own, lists, streams, what is sown."""

    def __init__(self, *, norm, classes: int, first: bool = False, rngs: nnx.Rngs):
        if first:
            self.first = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(FEATURES, FEATURES, rngs=rngs) for _ in range(11)])
        self.norms = nnx.List([norm(FEATURES, rngs=rngs) for _ in range(11)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.head = nnx.Linear(FEATURES, classes, rngs=rngs)
        self.rngs = rngs

    def __call__(self, x):
        x = x.reshape(len(x), -1)
        self.calls[...] += 1
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x))
        return self.head(self.dropout(x)), self.rngs.default()


def test_nnx_draws_from_the_key_of_the_step_alone_and_keeps_its_state():
    network = network_of(built(Drawing))
    inputs = jnp.ones((2, 1, 1, FEATURES)).at[0].set(3.0)
    params, state = network.init(jax.random.key(0), inputs)
    assert set(state) == {"norms", "calls"}
    train = jax.jit(network.train)
    (one, drawn), after = train(params, state, inputs, jax.random.key(1))
    (again, drawn_again), _ = train(params, state, inputs, jax.random.key(1))
    (_, other), _ = train(params, after, inputs, jax.random.key(2))
    np.testing.assert_array_equal(one, again)
    assert drawn == drawn_again
    assert drawn != other
    assert after["calls"] == 1
    assert (after["norms"]["0"]["mean"] != state["norms"]["0"]["mean"]).any()
    evaluated, _ = network.evaluate(params, after, inputs)
    again, _ = network.evaluate(params, after, inputs)
    np.testing.assert_array_equal(evaluated, again)


@pytest.mark.parametrize("norm", [normlab.Identity, normlab.SwitchableNorm])
def test_nnx_arms_of_a_seed_start_from_the_same_weights_and_draw_the_same(norm):
    """Streams of NNX count: a norm with more parameters moved the weights of all that follows."""
    inputs = jnp.ones((2, 1, 1, FEATURES))
    networks = [network_of(built(Drawing, it)) for it in (normlab.BatchNorm, norm)]
    networks.append(network_of(built(Drawing, norm, first=True)))
    starts = [network.init(jax.random.key(0), inputs) for network in networks]
    for params, _ in starts[1:]:
        assert jax.tree.all(jax.tree.map(np.array_equal, params["layers"], starts[0][0]["layers"]))
        assert np.array_equal(params["head"]["kernel"], starts[0][0]["head"]["kernel"])
    drawn = {
        str(network.train(*start, inputs, jax.random.key(1))[0][1])
        for network, start in zip(networks, starts, strict=True)
    }
    assert len(drawn) == 1


class MakesState(InNNX):
    def __call__(self, x):
        self.seen = nnx.Variable(x)
        return super().__call__(x)


class SetsWeights(InNNX):
    def __call__(self, x):
        self.head.bias[...] *= 2
        return super().__call__(x)


class WithoutParameters(nnx.Module):
    def __init__(self, *, norm, classes: int, rngs: nnx.Rngs):
        self.classes = classes

    def __call__(self, x):
        return x


def changing(**parts):
    def factory(*, norm, classes: int):
        made = as_pair(norm=norm, classes=classes)
        init, apply = parts.get("init", made[0]), parts.get("apply", made[1])
        return init, apply

    return factory


def other_state(params, state, inputs, *, train, key):
    return inputs, {"more": inputs}


def one_thing(params, state, inputs, *, train, key):
    return inputs


def half(params, state, inputs, *, train, key):
    return inputs, jax.tree.map(lambda it: it.astype(jnp.float16), state)


class CountsInHalves(InNNX):
    def __init__(self, *, norm, classes: int, rngs: nnx.Rngs):
        super().__init__(norm=norm, classes=classes, rngs=rngs)
        self.count = nnx.Variable(jnp.int32(0))

    def __call__(self, x):
        self.count.set_value(self.count[...] + 0.5)
        return super().__call__(x)


class GrowsInLinen(InLinen):
    @nn.compact
    def __call__(self, x, *, train):
        seen = self.variable("batch_stats", "seen", jnp.zeros, ())
        if not self.is_initializing():
            seen.value = x
        return nn.Dense(self.classes)(x)


def with_a_count(key, inputs):
    return {"weights": jnp.ones(2), "count": jnp.int32(0)}, {}


def of_a_word(key, inputs):
    return {"weights": jnp.ones(2), "kind": "word"}, {}


@pytest.mark.parametrize(
    ("maker", "told"),
    [
        # What follows was told as the first line of an error of JAX's loop or gradient.
        (changing(apply=half), r"factory: .* of its state is float32.* and float16.* after it"),
        (CountsInHalves, r"CountsInHalves: count of its state is int32\[\] before .* float32\[\]"),
        (
            GrowsInLinen,
            r"GrowsInLinen: seen of its state is float32\[\] before a step and float32\[2, 1",
        ),
        (changing(init=with_a_count), "the parameter count is int32; expected floating numbers"),
        (changing(init=of_a_word), "the parameter kind is str; expected floating numbers"),
        (MakesState, r"MakesState makes or drops seen in its call.*in the constructor"),
        (SetsWeights, r"SetsWeights sets head/bias in its call.*nnx.BatchStat or nnx.Variable"),
        (WithoutParameters, "WithoutParameters has no parameters"),
        (changing(init=lambda key, inputs: ({}, {})), "factory has no parameters"),
        (changing(init=lambda key, inputs: {}), "init returned a dict; expected two things"),
        (changing(apply=one_thing), "apply returned a .*; expected two things, the outputs"),
        (changing(apply=other_state), "returned PyTreeDef.*; expected the same structure"),
    ],
)
def test_what_training_cannot_keep_is_refused_with_the_remedy(maker, told):
    network = network_of(built(maker))
    inputs = jnp.ones((2, 1, 1, FEATURES))
    with pytest.raises(ValueError, match=told):
        network.train(*network.init(jax.random.key(0), inputs), inputs, jax.random.key(0))


@pytest.mark.parametrize(
    ("roles", "told"),
    [
        (lambda params: None, "parameter_roles returned a NoneType; expected normlab.Roles"),
        (lambda params: normlab.Roles(True, True, True), "parameter_roles returned other trees"),
    ],
)
def test_roles_of_another_structure_are_refused(roles, told):
    """What followed was an error of JAX's about trees that named no function of the user's."""
    network = network_of((*built(as_pair)[:2], roles))
    params, _ = network.init(jax.random.key(0), jnp.ones((2, 1, 1, FEATURES)))
    with pytest.raises(ValueError, match=told):
        network.roles(params)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"is no model; expected a flax.linen.Module, a functools"):
        network_of(InNNX(norm=normlab.nnx.LayerNorm, classes=2, rngs=nnx.Rngs(0)))


def test_a_users_own_layer_reaches_an_nnx_model():
    class Doubling(nn.Module):
        factor: float = 2.0

        @nn.compact
        def __call__(self, x, use_running_average=None, *, mask=None):
            scale = self.param("scale", nn.initializers.constant(self.factor), x.shape[-1:])
            return x * jnp.broadcast_to(scale, x.shape)

    network = network_of(built(InNNX, partial(Doubling, factor=3.0)))
    params, _ = network.init(jax.random.key(0), jnp.zeros((1, FEATURES)))
    assert params["norm"]["scale"].tolist() == [3.0] * WIDTH


def test_a_step_of_each_kind_costs_the_same():
    normlab.register_data("made", _as_loaded)
    told = {}
    try:
        for kind, maker in KINDS.items():
            normlab.register_model(kind, maker)
            study = study_type().model_validate(
                {
                    "study": "kinds",
                    "data": {"name": "made", "batch_size": 8},
                    "model": {"name": kind},
                    "variants": {"batch": {"layer": "batch_norm"}},
                }
            )
            (cost,) = study_cost(study, [find_target("cpu")])
            told[kind] = cost.normalized, cost.program.traffic
    finally:
        LOADERS.pop("made")
    assert told["linen"] == told["nnx"] == told["pair"]
