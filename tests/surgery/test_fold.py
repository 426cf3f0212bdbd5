"""Folded networks against the networks they came from, and what must not be folded."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from surgery.models import DIGITS, cnn, initial, mlp

import normlab
from normlab import surgery
from normlab.models import ResNet

X = DIGITS[:4]


def resnet(norm=normlab.BatchNorm):
    return ResNet(depth=8, classes=3, norm=norm)


def assert_same(y, expected, tolerance=1e-5):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance * scale)


def operations(function, *arguments):
    """The names of all operations of a program, also those inside of others."""

    def names(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for value in jax.tree.leaves(equation.params):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from names(inner)

    return list(names(jax.make_jaxpr(function)(*arguments).jaxpr))


MODELS = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet": resnet,
    "with bias": partial(mlp, partial(normlab.BatchNorm, use_bias=False)),
    "without scale": partial(mlp, partial(normlab.BatchNorm, use_scale=False)),
    "renorm": partial(mlp, normlab.BatchRenorm),
    "cumulative": partial(mlp, partial(normlab.BatchNorm, momentum=None)),
    "flax": partial(mlp, nn.BatchNorm),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_folded_network_is_the_same_without_its_norms(kind):
    model = MODELS[kind]()
    variables = initial(model, train=True, trained=True)
    folded, folded_variables = surgery.fold(model, variables, X)
    expected = jax.jit(partial(model.apply, train=False))(variables, X)
    apply = jax.jit(partial(folded.apply, train=False))
    assert_same(apply(folded_variables, X), expected)
    assert list(folded_variables) == ["params"]
    assert not [name for name in folded_variables["params"] if "norm" in name]
    before = operations(partial(model.apply, train=False), variables, X)
    after = operations(partial(folded.apply, train=False), folded_variables, X)
    for gone in ("sub", "rsqrt"):
        assert gone not in after
    assert len(after) < len(before)


class Pair(nn.Module):
    """A linear layer and a normalization, in one of many ways."""

    linear: nn.Module
    norm: nn.Module = normlab.BatchNorm(use_running_average=True)
    way: str = "straight"
    second: nn.Module = normlab.BatchNorm(use_running_average=True)

    @nn.compact
    def __call__(self, x):
        y = self.linear(x)
        if self.way == "activation":
            y = nn.relu(y)
        if self.way == "shortcut":
            return self.norm(y) + y
        if self.way == "returned":
            return self.norm(y), y
        if self.way == "norm twice":
            return self.norm(y) + self.norm(x)
        if self.way == "two norms":
            return self.second(self.norm(y))
        if self.way == "two readers":
            return self.norm(y), self.second(y)
        if self.way == "linear twice":
            return self.norm(self.linear(x + 1)) + y
        if self.way == "tied":
            return self.norm(y) @ self.linear.variables["params"]["kernel"].T
        if self.way == "conditional":
            return self.norm(y, scale=jnp.ones(3))
        if self.way == "training":
            return self.norm(y, use_running_average=False)
        return self.norm(y)


def pair(linear, x, *, norm=None, way="straight"):
    norm = norm or normlab.BatchNorm(use_running_average=True)
    model = Pair(linear, norm, way)
    return model, initial(model, x, trained=True), x


ARRAY = jnp.asarray(np.random.default_rng(0).normal(1, 2, (4, 5, 6)), jnp.float32)
LINEAR = {
    "dense": nn.Dense(3),
    "dense general": nn.DenseGeneral((2, 3), axis=(1, 2)),
    "grouped convolution": nn.Conv(4, (3,), feature_group_count=2, use_bias=False),
    "transposed convolution": nn.ConvTranspose(3, (2,), strides=(2,)),
    "transposed kernel": nn.ConvTranspose(3, (2,), transpose_kernel=True, use_bias=False),
    "partitioned": nn.Dense(
        3, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, None))
    ),
}


@pytest.mark.parametrize("kind", LINEAR)
def test_every_linear_layer(kind):
    model, variables, x = pair(LINEAR[kind], ARRAY)
    folded, folded_variables = surgery.fold(model, variables, x)
    assert_same(folded.apply(folded_variables, x), model.apply(variables, x))


def test_several_feature_axes():
    norm = normlab.BatchNorm(axis=(-2, -1), use_running_average=True)
    model, variables, x = pair(nn.DenseGeneral((2, 3)), ARRAY, norm=norm)
    folded, folded_variables = surgery.fold(model, variables, x)
    assert_same(folded.apply(folded_variables, x), model.apply(variables, x))


def test_the_output_keeps_the_dtype_of_the_norm():
    x = ARRAY.astype(jnp.bfloat16)
    model, variables, x = pair(nn.Dense(3, dtype=jnp.bfloat16), x)
    folded, folded_variables = surgery.fold(model, variables, x)
    y, expected = folded.apply(folded_variables, x), model.apply(variables, x)
    assert y.dtype == expected.dtype == jnp.float32
    assert_same(y, expected, tolerance=0.02)


class Standardized(nn.Conv):
    """Uses its kernel in a way of its own."""

    def param(self, name, *arguments, **options):
        value = super().param(name, *arguments, **options)
        return value - jnp.mean(value) if name == "kernel" else value


class Blocks(nn.Module):
    lift: str

    @nn.compact
    def __call__(self, x):
        if self.lift == "remat":
            return nn.remat(Pair)(nn.Dense(3, parent=None))(x)
        body = nn.scan(
            lambda module, x, _: (module(x), None),
            {"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=2,
        )
        return body(Pair(nn.Dense(6, parent=None)), x, None)[0]


def wrapped(lift):
    model = Blocks(lift)
    return model, initial(model, ARRAY, trained=True), ARRAY


DENSE = nn.Dense(3)
REFUSED = {
    "an activation between": (partial(pair, DENSE, ARRAY, way="activation"), "comes from relu"),
    "a shortcut": (
        partial(pair, DENSE, ARRAY, way="shortcut"),
        "output of linear is used for some",
    ),
    "an output too": (partial(pair, DENSE, ARRAY, way="returned"), "output of linear is used for"),
    "two readers": (partial(pair, DENSE, ARRAY, way="two readers"), "output of linear is used for"),
    "norm called twice": (
        partial(pair, nn.Dense(6), ARRAY, way="norm twice"),
        "it is called more than",
    ),
    "linear called twice": (
        partial(pair, DENSE, ARRAY, way="linear twice"),
        "linear is called more than once",
    ),
    "a kernel used again": (
        partial(pair, DENSE, ARRAY, way="tied"),
        "kernel or bias of linear are used for something else",
    ),
    "norm after norm": (
        partial(pair, DENSE, ARRAY, way="two norms"),
        "second: its input comes from",
    ),
    "a scale at the call": (partial(pair, DENSE, ARRAY, way="conditional"), "given its scale"),
    "training": (
        partial(pair, DENSE, ARRAY, norm=normlab.BatchNorm(), way="training"),
        "it is called in training",
    ),
    "statistics of the input": (
        partial(pair, DENSE, ARRAY, norm=normlab.LayerNorm()),
        "LayerNorm is not one scale and one shift",
    ),
    "statistics of both": (
        partial(pair, DENSE, ARRAY, norm=normlab.SwitchableNorm(use_running_average=True)),
        "SwitchableNorm is not one scale",
    ),
    "weighed examples": (
        partial(
            pair, DENSE, ARRAY, norm=normlab.BatchNorm(use_running_average=True, example_weight=0.1)
        ),
        "example_weight=0.1",
    ),
    "another axis": (
        partial(pair, DENSE, ARRAY, norm=normlab.BatchNorm(axis=1, use_running_average=True)),
        "axis=1, which does not hold the features of linear",
    ),
    "batch dimensions": (
        partial(pair, nn.DenseGeneral(3, axis=2, batch_dims=(0,)), ARRAY),
        "linear has batch dimensions",
    ),
    "a kernel used in another way": (
        partial(pair, Standardized(3, (3,)), ARRAY),
        "its input comes from",
    ),
    "wrapped weights": (
        partial(pair, nn.WeightNorm(nn.Dense(3, parent=None)), ARRAY),
        "wrapper of its weights",
    ),
    "rematerialized": (partial(wrapped, "remat"), "inside a transformation.*without jit and remat"),
    "scanned": (partial(wrapped, "scan"), "inside a transformation"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_would_not_be_the_same_network_is_refused(why):
    make, message = REFUSED[why]
    with pytest.raises(ValueError, match=f"(?s)^fold: .*{message}"):
        surgery.fold(*make())


def test_the_norm_of_the_input_is_refused():
    model = nn.Sequential([normlab.BatchNorm(use_running_average=True), nn.Dense(3)])
    with pytest.raises(ValueError, match="layers_0: its input comes from the model's input"):
        surgery.fold(model, initial(model, ARRAY), ARRAY)


def test_without_strict_other_norms_stay_where_they_are():
    model = nn.Sequential(
        [
            nn.Dense(4),
            normlab.BatchNorm(use_running_average=True),
            nn.relu,
            normlab.BatchNorm(use_running_average=True),
        ]
    )
    variables = initial(model, ARRAY, trained=True)
    with pytest.raises(ValueError, match="strict=False"):
        surgery.fold(model, variables, ARRAY)
    folded, folded_variables = surgery.fold(model, variables, ARRAY, strict=False)
    assert list(folded_variables["batch_stats"]) == ["layers_3"]
    assert_same(folded.apply(folded_variables, ARRAY), model.apply(variables, ARRAY))


def test_a_model_without_norms_and_a_folded_one_in_training_are_refused():
    with pytest.raises(ValueError, match="calls no normalization layer"):
        surgery.fold(DENSE, initial(DENSE, ARRAY), ARRAY)
    model = mlp()
    folded, variables = surgery.fold(model, initial(model, train=True), X)
    with pytest.raises(ValueError, match="norm_0 is folded into the layer before it"):
        folded.apply(variables, X, train=True)
    with pytest.raises(ValueError, match="the model is folded already"):
        surgery.fold(folded, variables, X)
