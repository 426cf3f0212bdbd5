"""Every variant for NNX gives the numbers of its Linen layer, step by step."""

import dataclasses
import inspect
import pydoc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import AS_USERS
from flax import linen as nn
from flax import nnx

import normlab
from normlab.variants import VARIANTS

FEATURES = 4
LEARNING_RATE = 0.1
# Other tests register layers of their own.
OURS = {
    name: variant.layer
    for name, variant in VARIANTS.items()
    if variant.layer.__module__.startswith("normlab.")
}
# Values that small inputs and few steps need.
VALUES = {
    "num_groups": 2,
    "ghost_batch_size": 2,
    "momentum": 0.5,
    "start_steps": 0,
    "r_steps": 2,
    "d_steps": 2,
    "samples": 8,
    "size": 3,
}
# Fields that add variables or state.
SPECIAL = {
    "batch_norm": {"debias": True, "example_weight": 0.3, "running_variance": "unbiased"},
    "rms_norm": {"zero_centred": True, "fraction": 0.5},
    "filter_response_norm": {"learn_epsilon": True},
    "position_norm": {"use_scale": True, "use_bias": True},
}
CASES = [(name, {}) for name in OURS] + list(SPECIAL.items())


def values_for(layer):
    fields = {field.name for field in dataclasses.fields(layer)}
    return {name: value for name, value in VALUES.items() if name in fields}


def form_of(name):
    return getattr(normlab.nnx, OURS[name].__name__)


@pytest.mark.parametrize("name", OURS)
def test_every_variant_has_an_nnx_form(name):
    form = getattr(normlab.nnx, OURS[name].__name__, None)
    assert form is not None, f"normlab.nnx lacks {OURS[name].__name__}; it is one line in layers.py"
    assert form.linen_module is OURS[name]
    assert form.__module__ == "normlab.nnx.layers"
    assert (form.__name__, form.__qualname__) == (OURS[name].__name__,) * 2


@pytest.mark.parametrize("name", OURS)
def test_help_shows_arguments_and_description(name):
    form, linen = form_of(name), OURS[name]
    parameters = inspect.signature(form).parameters
    assert next(iter(parameters)) == "num_features"
    assert {"rngs"} | {f.name for f in dataclasses.fields(linen)} - {"parent", "name"} <= set(
        parameters
    )
    text = pydoc.plain(pydoc.render_doc(form))
    assert linen.__doc__.splitlines()[0] in text
    assert "num_features:" in text


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_training_and_evaluation_are_those_of_linen(name, fields):
    generator = np.random.default_rng(0)
    fields = values_for(OURS[name]) | fields
    linen = OURS[name](**fields)
    ours = form_of(name)(FEATURES, **fields, rngs=nnx.Rngs(0))
    assert ours.includes_activation == getattr(linen, "includes_activation", False)
    batches = generator.normal(1, 2, (3, 4, 3, FEATURES)).astype("float32")
    targets = generator.normal(size=batches.shape).astype("float32")

    initial = jax.jit(lambda x: linen.init(jax.random.key(0), x, use_running_average=False))
    variables = initial(batches[0])
    stats = variables.get("batch_stats", {})
    params = variables.get("params", {})
    assert variables_of(ours).keys() == {**params, **stats}.keys()
    for variable, value in {**params, **stats}.items():
        np.testing.assert_array_equal(variables_of(ours)[variable][...], value)
        assert variables_of(ours)[variable].dtype == value.dtype
    # From here on, parameters of no particular value, the same for both.
    params = {
        name: np.asarray(generator.uniform(0.5, 1.5, value.shape), np.float32)
        for name, value in params.items()
    }
    for variable, value in params.items():
        variables_of(ours)[variable].set_value(jnp.asarray(value))

    def linen_step(params, stats, x, target):
        def loss(params):
            y, updated = linen.apply(
                {"params": params, "batch_stats": stats}, x, False, mutable=["batch_stats"]
            )
            return jnp.mean((y - target) ** 2), (y, updated.get("batch_stats", {}))

        (_, (y, stats)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradients)
        return y, params, stats

    def nnx_step(layer, x, target):
        def loss(layer):
            y = layer(x)
            return jnp.mean((y - target) ** 2), y

        (_, y), gradients = nnx.value_and_grad(loss, has_aux=True)(layer)
        updated = jax.tree.map(
            lambda p, g: p - LEARNING_RATE * g, nnx.state(layer, nnx.Param), gradients
        )
        nnx.update(layer, updated)
        return y

    graph = nnx.graphdef(ours)

    # One program for both, compiled as users do, so that the compiler does not make different
    # numbers of one formula.
    @partial(jax.jit, compiler_options=AS_USERS)
    def both(state, params, stats, x, target):
        layer = nnx.merge(graph, state)
        expected, params, stats = linen_step(params, stats, x, target)
        return nnx_step(layer, x, target), nnx.state(layer), expected, params, stats

    for x, target in zip(batches, targets, strict=True):
        y, state, expected, params, stats = both(nnx.state(ours), params, stats, x, target)
        nnx.update(ours, state)
        np.testing.assert_array_equal(y, expected)
        for variable, value in {**params, **stats}.items():
            np.testing.assert_array_equal(variables_of(ours)[variable][...], value)

    ours.eval()
    assert ours.use_running_average is True
    graph = nnx.graphdef(ours)

    @partial(jax.jit, compiler_options=AS_USERS)
    def evaluate(state, variables, x):
        y = nnx.merge(graph, state)(x)
        return y, linen.apply(variables, x, use_running_average=True)

    given = {"params": params, "batch_stats": stats}
    y, expected = evaluate(nnx.state(ours), given, batches[0])
    np.testing.assert_array_equal(y, expected)


def variables_of(layer):
    """Returns the variables of an NNX layer by their Linen names."""
    return {
        name.removeprefix("learned_"): variable
        for name, variable in vars(layer).items()
        if isinstance(variable, nnx.Variable)
    }


@nnx.jit
def call(layer, x, **given):
    return layer(x, **given)


def test_a_step_moves_the_statistics_by_hand():
    # Guards the comparison above: what it compares must move.
    layer = normlab.nnx.BatchNorm(2, momentum=0.5, rngs=nnx.Rngs(0))
    call(layer, np.asarray([[1, 10], [3, 30]], np.float32))
    np.testing.assert_allclose(layer.mean[...], [0.5 * 2, 0.5 * 20])
    np.testing.assert_allclose(layer.var[...], [0.5 + 0.5 * 1, 0.5 + 0.5 * 100])


@pytest.mark.parametrize("name", ["batch_norm", "dynamic_tanh"])
def test_mask_scale_and_bias_reach_the_layer(name):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)), jnp.float32)
    given = {
        "mask": jnp.asarray([[True], [True], [True], [False]]),
        "scale": jnp.asarray([2.0, 3.0]),
        "bias": jnp.asarray([5.0, 7.0]),
    }
    linen = OURS[name]()
    layer = form_of(name)(2, rngs=nnx.Rngs(0))

    @jax.jit
    def expected(x, given):
        variables = linen.init(jax.random.key(0), x, False)
        return linen.apply(variables, x, False, **given, mutable=["batch_stats"])[0]

    y = call(layer, x, **given)
    np.testing.assert_array_equal(y, expected(x, given))
    assert not np.allclose(y, expected(x, {}))


@pytest.mark.parametrize(
    ("fields", "num_features", "shape", "features"),
    [
        ({"axis": [-1, 1]}, (3, 4), (2, 3, 5, 4), (3, 4)),
        ({"axis": 5}, 3, (2, 2, 2, 2, 2, 3), (3,)),
        ({"axis": 0}, 3, (3, 8), (3,)),
    ],
)
def test_features_on_any_axes(fields, num_features, shape, features):
    x = np.random.default_rng(1).normal(size=shape).astype("float32")
    layer = normlab.nnx.BatchNorm(num_features, **fields, rngs=nnx.Rngs(0))
    assert layer.scale.shape == layer.mean.shape == features
    linen = normlab.BatchNorm(**fields)
    variables = nnx.to_pure_dict(nnx.state(layer))
    variables = {
        "params": {name: variables[name] for name in ("scale", "bias")},
        "batch_stats": {name: variables[name] for name in ("mean", "var")},
    }
    train = jax.jit(lambda v, x: linen.apply(v, x, False, mutable=["batch_stats"]))
    expected, updated = train(variables, x)
    np.testing.assert_array_equal(call(layer, x), expected)
    np.testing.assert_array_equal(layer.mean[...], updated["batch_stats"]["mean"])


@pytest.mark.parametrize(
    ("name", "num_features", "fields", "shape"),
    [
        ("LayerNorm", (3, 4), {"reduction_axes": (1, 2), "feature_axes": (1, 2)}, (2, 3, 4)),
        ("LayerNorm", 4, {"reduction_axes": (1, 2, 3)}, (2, 3, 3, 4)),
        ("GroupNorm", 4, {"num_groups": 2, "reduction_axes": (1, 2)}, (2, 3, 4)),
        ("GroupNorm", 4, {"num_groups": 2, "reduction_axes": (-2, -1)}, (2, 3, 4)),
        ("InstanceNorm", 3, {"feature_axes": 1}, (2, 3, 4)),
    ],
)
def test_reduced_axes_of_any_number(name, num_features, fields, shape):
    x = np.random.default_rng(1).normal(size=shape).astype("float32")
    layer = getattr(normlab.nnx, name)(num_features, **fields, rngs=nnx.Rngs(0))
    linen = getattr(normlab, name)(**fields)
    expected, _ = jax.jit(linen.init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(call(layer, x), expected)


def test_fields_that_are_set_take_effect():
    x = np.asarray([[0], [2]], np.float32)
    layer = normlab.nnx.BatchNorm(1, rngs=nnx.Rngs(0))
    layer.momentum, layer.epsilon = 0.0, 3.0
    np.testing.assert_allclose(call(layer, x), [[-0.5], [0.5]], rtol=1e-6)
    np.testing.assert_allclose(layer.mean[...], [1.0])
    layer.momentum = None  # the plain average of batches, which needs their number from now on
    call(layer, x + 4)
    call(layer, x + 6)
    np.testing.assert_allclose(layer.mean[...], [6.0])
    assert isinstance(layer.count, nnx.BatchStat)
    layer.momentum = 2.0
    with pytest.raises(ValueError, match=r"momentum=2\.0"):
        call(layer, x)


def test_call_goes_before_the_attribute():
    layer = normlab.nnx.BatchNorm(2, use_running_average=True, rngs=nnx.Rngs(0))
    x = np.asarray([[1, 2], [3, 4]], np.float32)
    call(layer, x)
    np.testing.assert_array_equal(layer.mean[...], [0, 0])
    nnx.jit(lambda layer: layer(x, use_running_average=False))(layer)
    np.testing.assert_allclose(layer.mean[...], [0.02, 0.03], rtol=1e-5)


def test_any_linen_layer_gets_an_nnx_form():
    class Centred(nn.Module):
        offset: float = 0.0

        @nn.compact
        def __call__(self, x, use_running_average=None):
            # A parameter that no field initializes, and no field that says which statistics.
            shift = self.param("shift", nn.initializers.normal(), x.shape[-1:])
            mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
            if not use_running_average and not self.is_initializing():
                mean.value = jnp.mean(x, range(x.ndim - 1))
            return x + jnp.expand_dims(shift + self.offset - mean.value, range(x.ndim - 1))

    class CentredNNX(normlab.nnx.Layer, of=Centred): ...

    layer = CentredNNX(2, offset=3.0, rngs=nnx.Rngs(0))
    layer.shift[...] = jnp.asarray([1.0, 2.0])
    y = call(layer, np.asarray([[0, 0], [2, 2]], np.float32))
    np.testing.assert_allclose(y, [[3, 4], [5, 6]])
    np.testing.assert_allclose(layer.mean[...], [1, 1])


def test_subclass_with_its_own_constructor():
    class Default(normlab.nnx.GroupNorm):
        def __init__(self, channels, rngs):
            super().__init__(channels, 2, epsilon=1e-3, rngs=rngs)

    layer = Default(4, nnx.Rngs(0))
    assert (layer.num_groups, layer.epsilon) == (2, 1e-3)
    assert list(inspect.signature(Default).parameters) == ["channels", "rngs"]
