"""The weight wrappers and conditional normalization for NNX: as in Linen, and as in flax.nnx."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import normlab

WRAPPERS = ["WeightNorm", "WeightStandardization", "ScaledWeightStandardization", "SpectralNorm"]
INPUTS, OUTPUTS = 3, 4


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(1, 2, (5, INPUTS)).astype("float32")


def linear(seed=0):
    return nnx.Linear(INPUTS, OUTPUTS, rngs=nnx.Rngs(seed))


@nnx.jit
def call(layer, *args):
    return layer(*args)


@nnx.jit
def train_step(layer, x):
    def loss(layer):
        y = layer(x)
        return jnp.mean((y - 1) ** 2), y

    (_, y), gradients = nnx.value_and_grad(loss, has_aux=True)(layer)
    state = nnx.state(layer, nnx.Param)
    nnx.update(layer, jax.tree.map(lambda p, g: p - 0.1 * g, state, gradients))
    return y


def linen_params(layer):
    """Returns the parameters of a wrapper and its layer as Linen holds them."""
    own = {name: getattr(layer.layer_instance, name)[...] for name in ("kernel", "bias")}
    learned = {
        f"layer_instance/{'/'.join(path)}/{kind}": variable[...]
        for kind in ("scale", "gain")
        for path, variable in (getattr(layer, f"{kind}s", None) or {}).items()
    }
    return {"layer_instance": own} | learned


def linen_stats(layer):
    return {f"layer_instance/{'/'.join(k)}": v[...] for k, v in layer.batch_stats.items()}


def assert_close(actual, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, expected)


@pytest.mark.parametrize("name", WRAPPERS)
def test_training_and_evaluation_are_those_of_linen(name, x):
    layer = getattr(normlab.nnx, name)(linear(), rngs=nnx.Rngs(1))
    linen = getattr(normlab, name)(nn.Dense(OUTPUTS))
    spectral = name == "SpectralNorm"
    params, stats = linen_params(layer), linen_stats(layer)
    initial = jax.eval_shape(
        lambda: linen.init(jax.random.key(0), x, **{"update_stats": False} if spectral else {})
    )
    shapes = partial(jax.tree.map, jnp.shape)
    assert shapes(params) == shapes(initial["params"])
    assert shapes(stats) == shapes(initial.get("batch_stats", {}))

    @jax.jit
    def linen_step(params, stats):
        def loss(params):
            y, updated = linen.apply(
                {"params": params, "batch_stats": stats},
                x,
                **{"update_stats": True} if spectral else {},
                mutable=["batch_stats"],
            )
            return jnp.mean((y - 1) ** 2), (y, updated.get("batch_stats", {}))

        (_, (y, stats)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return y, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), stats

    for _ in range(3):
        expected, params, stats = linen_step(params, stats)
        np.testing.assert_allclose(train_step(layer, x), expected, rtol=1e-5, atol=1e-6)
    assert_close(linen_params(layer), params)
    assert_close(linen_stats(layer), stats)


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_a_call_gives_what_flax_gives_but_keeps_the_parameters(name, x):
    theirs = getattr(nnx, name)(linear(), rngs=nnx.Rngs(1))
    ours = getattr(normlab.nnx, name)(linear(), rngs=nnx.Rngs(1))
    for path, variable in ours.batch_stats.items():
        variable[...] = theirs.batch_stats[path][...]
    raw = linear().kernel[...]
    for _ in range(2):
        np.testing.assert_allclose(call(ours, x), call(theirs, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours.layer_instance.kernel[...], raw)
    # Flax stores what it has normalized, in evaluation too.
    assert not np.allclose(theirs.layer_instance.kernel[...], raw)
    for path, variable in ours.batch_stats.items():
        assert type(variable) is type(theirs.batch_stats[path])


def test_scales_are_parameters_and_trained(x):
    """In Flax 0.12.8 they are not; in 0.12.12 they are."""
    theirs = nnx.WeightNorm(linear(), rngs=nnx.Rngs(1))
    ours = normlab.nnx.WeightNorm(linear(), rngs=nnx.Rngs(1))
    assert ours.scales.keys() == theirs.scales.keys() == {("kernel",)}
    assert "scales" in nnx.state(ours, nnx.Param)
    train_step(ours, x)
    assert not np.allclose(ours.scales["kernel",][...], 1)
    assert normlab.nnx.WeightNorm(linear(), use_scale=False).scales is None


def test_spectral_norm_updates_in_training_only(x):
    layer = normlab.nnx.SpectralNorm(linear(), update_stats=False, rngs=nnx.Rngs(1))
    assert layer.use_running_average is True
    u = layer.batch_stats["kernel", "u"]
    before = u[...]
    call(layer, x)
    jax.jit(lambda x: layer(x))(x)  # Nothing is written: a closure may use it.
    np.testing.assert_array_equal(u[...], before)
    kernel = layer.layer_instance.kernel
    kernel.set_value(jnp.cumsum(kernel[...], 0))  # That from initialization is there already.
    layer.train()
    call(layer, x)
    assert not np.allclose(u[...], before)
    before = u[...]
    evaluation = nnx.view(layer, use_running_average=True)
    call(evaluation, x)
    np.testing.assert_array_equal(u[...], before)
    nnx.jit(lambda layer: layer(x, True))(evaluation)  # as in Flax, the second argument
    assert not np.allclose(evaluation.batch_stats["kernel", "u"][...], before)


def test_data_dependent_initialization_of_a_model_in_one_call(x):
    def create(seed, **fields):
        rngs = nnx.Rngs(seed)
        return nnx.Sequential(
            normlab.nnx.WeightNorm(nnx.Linear(INPUTS, 8, rngs=rngs), **fields, rngs=rngs),
            normlab.nnx.WeightNorm(nnx.Linear(8, OUTPUTS, rngs=rngs), **fields, rngs=rngs),
        )

    model = create(0, data_dependent_init=True)
    y = call(model, x)
    np.testing.assert_allclose(np.mean(y, 0), np.zeros(OUTPUTS), atol=1e-5)
    np.testing.assert_allclose(np.std(y, 0), np.ones(OUTPUTS), rtol=1e-5)
    assert not any(layer.data_dependent_init for layer in model.layers)
    np.testing.assert_allclose(call(model, x), y, rtol=1e-4, atol=1e-5)
    # As Linen initializes with the same kernels.
    first, plain = model.layers[0], create(0).layers[0].layer_instance
    linen = normlab.WeightNorm(
        nn.Dense(8, kernel_init=lambda *_: plain.kernel[...]), data_dependent_init=True
    )
    params = jax.jit(linen.init)(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(
        first.scales["kernel",][...], params["layer_instance/kernel/scale"], rtol=1e-5
    )
    np.testing.assert_allclose(
        first.layer_instance.bias[...], params["layer_instance"]["bias"], rtol=1e-5, atol=1e-6
    )


def test_data_dependent_initialization_needs_a_scale(x):
    layer = normlab.nnx.WeightNorm(linear(), use_scale=False, data_dependent_init=True)
    with pytest.raises(ValueError, match="needs use_scale"):
        layer(x)


def test_layer_keeps_its_other_variables(x):
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(INPUTS, OUTPUTS, rngs=rngs)
            self.norm = normlab.nnx.BatchNorm(OUTPUTS, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(self.norm(self.linear(x)))

    layer = normlab.nnx.WeightStandardization(Noisy(nnx.Rngs(0)))
    first, second = call(layer, x), call(layer, x)
    assert not np.array_equal(first == 0, second == 0)
    assert not np.allclose(layer.layer_instance.norm.mean[...], 0)


def test_filter_chooses_parameters():
    block = nnx.Sequential(linear(), nnx.relu, nnx.Linear(OUTPUTS, 2, rngs=nnx.Rngs(0)))
    layer = normlab.nnx.WeightNorm(
        block,
        variable_filter=nnx.All(nnx.PathContains(0), nnx.PathContains("kernel")),
        rngs=nnx.Rngs(0),
    )
    assert layer.scales.keys() == {("layers", 0, "kernel")}
    with pytest.raises(ValueError, match=r"no parameter of Linear.*parameters are bias, kernel"):
        normlab.nnx.WeightNorm(linear(), variable_filter=nnx.PathContains("weight"))


def test_missing_rngs_and_matrices_of_higher_rank_are_refused():
    with pytest.raises(TypeError, match="rngs is missing"):
        normlab.nnx.WeightNorm(linear())
    with pytest.raises(TypeError, match="rngs is missing"):
        normlab.nnx.SpectralNorm(linear())
    convolution = nnx.Conv(2, 3, (3, 3), rngs=nnx.Rngs(0))
    for module in (nnx, normlab.nnx):
        with pytest.raises(ValueError, match="error_on_non_matrix"):
            module.SpectralNorm(convolution, error_on_non_matrix=True, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_wrapper_under_split_vmap_and_abstract_construction(name, x):
    def create(rngs):
        return getattr(normlab.nnx, name)(nnx.Linear(INPUTS, OUTPUTS, rngs=rngs), rngs=rngs)

    assert jax.tree.leaves(nnx.eval_shape(lambda: create(nnx.Rngs(0))))
    layers = nnx.split_rngs(splits=2)(nnx.vmap(create))(nnx.Rngs(0))
    graph, state = nnx.split(layers)
    one = nnx.merge(graph, jax.tree.map(lambda a: a[1], state))
    y = nnx.jit(nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None)))(layers, x)
    np.testing.assert_allclose(call(one, x), y[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm", "ScaleNorm"])
@pytest.mark.parametrize("gate", [False, True])
def test_conditional_norm_is_that_of_linen(name, gate):
    generator = np.random.default_rng(0)
    x = generator.normal(1, 2, (4, 3, 2)).astype("float32")
    condition = generator.normal(size=(4, 5)).astype("float32")
    layer = normlab.nnx.ConditionalNorm(
        2,
        5,
        getattr(normlab.nnx, name),
        gate=gate,
        kernel_init=nnx.initializers.normal(),
        rngs=nnx.Rngs(0),
    )
    assert (layer.norm.scale, layer.norm.bias) == (None, None)
    linen = normlab.ConditionalNorm(getattr(normlab, name), gate=gate)
    modulation = {"kernel": layer.modulation.kernel[...], "bias": layer.modulation.bias[...]}
    stats = {n: v[...] for n, v in vars(layer.norm).items() if isinstance(v, nnx.BatchStat)}

    @jax.jit
    def expected(stats):
        variables = {"params": {"modulation": modulation}, "batch_stats": {"norm": stats}}
        return linen.apply(variables, x, condition, False, mutable=["batch_stats"])

    y, updated = expected(stats)
    assert_close(call(layer, x, condition), y)
    for variable, value in updated.get("batch_stats", {}).get("norm", {}).items():
        np.testing.assert_allclose(getattr(layer.norm, variable)[...], value, rtol=1e-6)
    layer.eval()
    assert layer.norm.use_running_average is True
