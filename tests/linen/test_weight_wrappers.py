"""The wrappers that normalize weights: beside their oracles, and where things go wrong."""

import pickle
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import weight_oracles
from scipy import integrate, special
from weight_training import LEARNING_RATE, assert_trees_close, descent, random_array, shaped

import normlab as nl
from normlab import functional

# Each wrapper with the parameter it adds and its oracle.
WRAPPERS = {
    "WeightStandardization": (
        nl.WeightStandardization,
        None,
        weight_oracles.weight_standardization,
    ),
    "ScaledWeightStandardization": (
        partial(nl.ScaledWeightStandardization, nonlinearity_gain=1.5),
        "gain",
        partial(weight_oracles.scaled_weight_standardization, nonlinearity_gain=1.5),
    ),
    "WeightNorm": (nl.WeightNorm, "scale", weight_oracles.weight_norm),
    "SpectralNorm": (nl.SpectralNorm, None, None),
}
every_wrapper = pytest.mark.parametrize("name", WRAPPERS)
both_standardizations = pytest.mark.parametrize(
    "name", ["WeightStandardization", "ScaledWeightStandardization"]
)

KERNEL = "layer_instance/kernel"
IDENTITY = np.eye(5, dtype=np.float32)


def mode_of(name, train=True):
    return {"update_stats": train} if name == "SpectralNorm" else {}


# Values.

LAYERS = {
    "Dense": (nn.Dense(4), (3, 5)),
    "Conv": (nn.Conv(4, (2, 3)), (2, 4, 4, 3)),
    "grouped Conv": (nn.Conv(4, (2,), feature_group_count=2), (2, 4, 6)),
    "ConvTranspose": (nn.ConvTranspose(4, (2, 2), transpose_kernel=True), (2, 3, 3, 5)),
    "DenseGeneral": (nn.DenseGeneral((2, 3)), (3, 5)),
    "Embed": (nn.Embed(6, 4), None),
}
FEATURE_AXES = {"ConvTranspose": -2, "DenseGeneral": (-2, -1)}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_see_the_weights_of_the_papers(name):
    layer, shape = LAYERS[name]
    feature_axes = FEATURE_AXES.get(name, -1)
    x = random_array(shape) if shape else np.arange(3)
    variable = "kernel" if shape else "embedding"
    cases = []
    for wrapper, added, oracle in list(WRAPPERS.values())[:3]:
        wrapped = wrapper(layer, feature_axes=feature_axes, variable_filter={variable})
        params = shaped(wrapped, x)["params"]
        own, factors = params["layer_instance"], {}
        weight = own[variable]
        if added:
            factor = params[f"layer_instance/{variable}/{added}"]
            axes = oracles.positive_axes(weight.ndim, feature_axes)
            assert factor.shape == tuple(weight.shape[axis] for axis in axes)
            factors[added] = np.expand_dims(factor, oracles.other_axes(weight.ndim, axes))
        assert len(params) == 1 + bool(added)
        expected = oracle(weight, **factors, feature_axes=feature_axes).astype(np.float32)
        cases.append((wrapped, params, {**own, variable: expected}))

    @jax.jit
    def outputs():
        return [
            (wrapped.apply({"params": params}, x), layer.apply({"params": expected}, x))
            for wrapped, params, expected in cases
        ]

    for ours, expected in outputs():
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@every_wrapper
def test_training_follows_the_oracle_step_by_step(name):
    """Outputs, gradients (the oracle's are numerical), parameters and state."""
    wrapper, added, oracle = WRAPPERS[name]
    layer, mode = wrapper(nn.Dense(3)), mode_of(name)
    batches, weights = random_array((4, 6, 4)), random_array((6, 3), seed=1)
    variables = shaped(layer, batches[0], seed=2, **mode)
    replay = None
    if name == "SpectralNorm":
        replay = weight_oracles.SpectralNormReplay(variables["batch_stats"][f"{KERNEL}/u"])

    def in_order(params):
        own = params["layer_instance"]
        factor = [params[f"{KERNEL}/{added}"]] if added else []
        return [oracles.as_double(leaf) for leaf in (own["kernel"], own["bias"], *factor)]

    def output(normalized, x, leaves):
        kernel, bias, *factor = leaves
        return x @ normalized(kernel, *factor) + bias

    def loss(normalized, x, leaves, index, leaf):
        leaves = [*leaves[:index], leaf, *leaves[index + 1 :]]
        return np.sum(weights * np.tanh(output(normalized, x, leaves)))

    step = jax.jit(descent(partial(layer.apply, **mode), lambda y: jnp.sum(weights * jnp.tanh(y))))
    leaves = in_order(variables["params"])
    for x in batches:
        variables, y = step(variables, x)
        x = oracles.as_double(x)
        if replay:
            u, v = replay.update(leaves[0])
            oracle = partial(weight_oracles.spectral_norm, u=u, v=v)
        np.testing.assert_allclose(y, output(oracle, x, leaves), rtol=1e-5, atol=1e-5)
        gradients = [
            oracles.numerical_gradient(partial(loss, oracle, x, leaves, index), leaf)
            for index, leaf in enumerate(leaves)
        ]
        leaves = [leaf - LEARNING_RATE * g for leaf, g in zip(leaves, gradients, strict=True)]
        for ours, expected in zip(in_order(variables["params"]), leaves, strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-5)
        if replay:
            state = variables["batch_stats"]
            np.testing.assert_allclose(state[f"{KERNEL}/u"], replay.u[None], atol=1e-5)
            np.testing.assert_allclose(state[f"{KERNEL}/sigma"], replay.sigma, rtol=1e-5)


def test_spectral_norm_reaches_the_largest_singular_value():
    x, wrapped = random_array((2, 4, 4, 3)), nl.SpectralNorm(nn.Conv(5, (3, 2)))
    variables = shaped(wrapped, x, update_stats=False)
    step = jax.jit(partial(wrapped.apply, update_stats=True, mutable=["batch_stats"]))
    for _ in range(50):
        _, state = step(variables, x)
        variables = {**variables, **state}
    kernel = variables["params"]["layer_instance"]["kernel"].reshape(-1, 5)
    sigma = variables["batch_stats"][f"{KERNEL}/sigma"]
    np.testing.assert_allclose(sigma, np.linalg.norm(kernel, 2), rtol=1e-5)


def test_complex_weights_follow_the_oracles():
    weight = random_array((3, 4)) + 1j * random_array((3, 4), seed=1)
    weight = jnp.asarray(weight, jnp.complex64)
    gain, u = jnp.ones((1, 1)), jnp.ones((1, 4), jnp.complex64)

    @jax.jit
    def normalized(weight):
        return (
            functional.standardize_weight(weight, (0,), epsilon=1e-6),
            functional.scaled_standardize_weight(weight, (0,), gain, epsilon=1e-4),
            functional.normalize_weight(weight, (0,), epsilon=1e-12),
            functional.spectral_normalize(weight, u, jnp.ones(()), steps=3, epsilon=1e-12)[0],
        )

    vectors = weight_oracles.SpectralNormReplay(u, steps=3).vectors(weight)
    expected = (
        weight_oracles.weight_standardization(weight),
        weight_oracles.scaled_weight_standardization(weight),
        weight_oracles.weight_norm(weight),
        weight_oracles.spectral_norm(weight, *vectors),
    )
    for ours, other in zip(normalized(weight), expected, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)


# What defines each.


@pytest.mark.parametrize(
    ("name", "shift"),
    [("WeightStandardization", 3), ("ScaledWeightStandardization", 3), ("WeightNorm", 0)],
)
def test_output_depends_on_neither_size_nor_mean_of_the_weights(name, shift):
    x, wrapped = random_array((3, 5)), WRAPPERS[name][0](nn.Dense(4))
    variables = shaped(wrapped, x)
    other = jax.tree.map_with_path(
        lambda path, leaf: 7 * leaf + shift if path[-1].key == "kernel" else leaf, variables
    )
    apply = jax.jit(wrapped.apply)
    np.testing.assert_allclose(apply(variables, x), apply(other, x), rtol=1e-4, atol=1e-4)


def test_scaled_weight_standardization_keeps_the_variance_from_layer_to_layer():
    gain = functional.NONLINEARITY_GAINS["relu"]
    layer = nl.ScaledWeightStandardization(nn.Dense(128), nonlinearity_gain=gain)

    @jax.jit
    def forward(key, x):
        return layer.init_with_output(key, nn.relu(x))[0]

    x = random_array((512, 128), mean=0)
    for seed in range(8):
        x = forward(jax.random.key(seed), x)
    np.testing.assert_allclose(np.mean(np.square(x)), 1, atol=0.2)


@pytest.mark.parametrize("name", functional.NONLINEARITY_GAINS)
def test_nonlinearity_gains_are_the_inverse_deviations_under_a_gaussian(name):
    activation = {
        "identity": lambda z: z,
        "relu": lambda z: max(z, 0),
        "leaky_relu": lambda z: max(z, 0.01 * z),
        "elu": lambda z: z if z > 0 else np.expm1(z),
        "gelu": lambda z: z * special.ndtr(z),
        "silu": lambda z: z * special.expit(z),
        "softplus": lambda z: np.logaddexp(z, 0),
        "tanh": np.tanh,
        "sigmoid": special.expit,
    }[name]

    def mean(function):
        def weighted(z):
            return function(z) * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)

        return integrate.quad(weighted, -10, 0)[0] + integrate.quad(weighted, 0, 10)[0]

    centre = mean(activation)
    variance = mean(lambda z: (activation(z) - centre) ** 2)
    gain = functional.NONLINEARITY_GAINS[name]
    assert gain == pytest.approx(variance**-0.5, abs=1e-7)
    row = rf"\b{name} +{gain:.7f}".rstrip("0").rstrip(".")
    assert re.search(row, nl.ScaledWeightStandardization.__doc__)


def test_epsilons_of_timm_and_big_vision_agree_at_a_deviation_of_a_twentieth():
    kernel = oracles.standardize(random_array((2000, 2)), 0, epsilon=0) / 20
    ours = functional.standardize_weight(jnp.asarray(kernel, jnp.float32), (0,), epsilon=1e-6)
    np.testing.assert_allclose(ours, kernel / (0.05 + 1e-5), rtol=1e-5, atol=1e-6)


# What is stored.


@both_standardizations
def test_standardized_weights_are_stored_as_the_layer_draws_them(name):
    drawn = random_array((5, 4))
    layer = WRAPPERS[name][0](nn.Dense(4, kernel_init=lambda *_: jnp.asarray(drawn)))
    y, variables = jax.jit(layer.init_with_output)(jax.random.key(0), IDENTITY)
    np.testing.assert_array_equal(variables["params"]["layer_instance"]["kernel"], drawn)
    np.testing.assert_allclose(y, WRAPPERS[name][2](drawn), rtol=1e-5, atol=1e-6)


class DenseAndNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nl.BatchNorm(use_running_average=False, momentum=0.5)(nn.Dense(4)(x))


@every_wrapper
def test_statistics_within_a_wrapped_block_are_its_own(name):
    """Flax's WeightNorm freezes them."""
    layer, x, mode = WRAPPERS[name][0](DenseAndNorm()), random_array((4, 5)), mode_of(name)
    variables = shaped(layer, x, **mode)
    own = variables["params"]["layer_instance"]["Dense_0"]
    apply = jax.jit(partial(layer.apply, mutable=["batch_stats"], **mode))
    _, state = apply(variables, x)
    before, after = (
        tree["batch_stats"]["layer_instance"]["BatchNorm_0"] for tree in (variables, state)
    )
    if name == "WeightStandardization":
        kernel = weight_oracles.weight_standardization(own["kernel"])
        mean = (x @ kernel + own["bias"]).mean(0)
        np.testing.assert_allclose(after["mean"], (before["mean"] + mean) / 2, atol=1e-5)
    assert not np.any(after["mean"] == before["mean"])


def test_sharding_metadata_is_in_the_names_and_may_go():
    """Flax names the scale after the box, and finds it no more once the variables are unboxed."""
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    scale_init = nn.with_partitioning(nn.initializers.ones, ("out",))
    x = random_array((3, 5))
    layer = nl.WeightNorm(
        nn.Dense(4, kernel_init=kernel_init), scale_init=scale_init, data_dependent_init=True
    )
    y, boxed = jax.jit(layer.init_with_output)(jax.random.key(0), x)
    scale = boxed["params"][f"{KERNEL}/value/scale"]
    assert isinstance(scale, nn.Partitioned)
    assert scale.names == ("out",)
    apply = jax.jit(layer.apply)
    for variables in (boxed, nn.unbox(boxed)):
        np.testing.assert_allclose(apply(variables, x), y, atol=1e-5)
    layer = nl.SpectralNorm(nn.Dense(4, kernel_init=kernel_init))
    boxed = layer.init(jax.random.key(0), x, update_stats=False)
    assert set(boxed["batch_stats"]) == {f"{KERNEL}/value/u", f"{KERNEL}/value/sigma"}
    y, moved = layer.apply(nn.unbox(boxed), x, update_stats=True, mutable=["batch_stats"])
    assert set(moved["batch_stats"]) == set(boxed["batch_stats"])


@every_wrapper
def test_modules_compare_hash_and_pickle(name):
    # An initializer of Flax that is a closure could not be pickled.
    wrapped = partial(WRAPPERS[name][0], nn.Dense(4, kernel_init=nn.initializers.ones))
    assert wrapped() == wrapped()
    assert hash(wrapped()) == hash(wrapped())
    assert wrapped() != wrapped(epsilon=0.1)
    assert pickle.loads(pickle.dumps(wrapped())) == wrapped()


# Which parameters.


@pytest.mark.parametrize("name", list(WRAPPERS)[:3])
def test_filter_that_matches_nothing_is_refused(name):
    with pytest.raises(ValueError, match=r"matches none of .*layer_instance/embedding"):
        WRAPPERS[name][0](nn.Embed(4, 3)).init(jax.random.key(0), np.arange(3))


@pytest.mark.parametrize("wrapper", ["WeightNorm", "SpectralNorm", "WeightStandardization"])
def test_a_layer_without_parameters_is_refused(wrapper):
    """A wrapped Dropout came back as it was: nothing was normalized, without a word."""
    layer = getattr(nl, wrapper)(nn.Dropout(0.5, deterministic=True))
    options = {"update_stats": False} if wrapper == "SpectralNorm" else {}
    with pytest.raises(ValueError, match=r"Dropout has no parameters.*such as Dense or Conv"):
        layer.init(jax.random.key(0), np.ones((2, 3), np.float32), **options)


@pytest.mark.parametrize("wrapper", ["WeightNorm", "WeightStandardization"])
def test_a_layer_of_the_surrounding_module_is_normalized(wrapper):
    class Model(nn.Module):
        def setup(self):
            self.dense = nn.Dense(4)
            self.norm = getattr(nl, wrapper)(self.dense)

        def __call__(self, x):
            return self.norm(x)

    x = np.ones((2, 3), np.float32)
    y, variables = Model().init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(Model().apply(variables, x), y, rtol=1e-6)


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="second")(nn.Dense(4, name="first")(x))


@pytest.mark.parametrize("chosen", ["second/kernel", {"second/kernel"}, ["second/kernel"]])
def test_filter_chooses_by_path(chosen):
    layer, x = nl.WeightStandardization(Two(), variable_filter=chosen), random_array((2, 5))
    variables = shaped(layer, x)
    first, second = (variables["params"]["layer_instance"][name] for name in ("first", "second"))
    kernel = weight_oracles.weight_standardization(second["kernel"])
    expected = (x @ first["kernel"] + first["bias"]) @ kernel + second["bias"]
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), expected, rtol=1e-5, atol=1e-5)


@both_standardizations
def test_weights_without_inputs_are_left_alone(name):
    """A bias that the filter matches: standardized, it would be zero."""
    layer, x = WRAPPERS[name][0](nn.Dense(4), variable_filter=None), np.zeros((2, 5), np.float32)
    variables = shaped(layer, x)
    bias = variables["params"]["layer_instance"]["bias"]
    np.testing.assert_allclose(layer.apply(variables, x), np.broadcast_to(bias, (2, 4)))


def test_spectral_norm_refuses_a_weight_that_is_no_matrix_if_asked_to():
    layer = nl.SpectralNorm(nn.Conv(3, (2,)), error_on_non_matrix=True)
    with pytest.raises(ValueError, match=r"kernel of shape \(2, 2, 3\) is no matrix"):
        layer.init(jax.random.key(0), random_array((1, 4, 2)), update_stats=False)


# Numerics.


@every_wrapper
def test_zero_and_constant_weights_give_finite_outputs_and_gradients(name):
    layer, mode = WRAPPERS[name][0](nn.Dense(4)), mode_of(name, train=False)
    x = random_array((2, 5))
    variables = shaped(layer, x, **mode)
    bias = variables["params"]["layer_instance"]["bias"]

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params):
        y = layer.apply({**variables, "params": params}, x, **mode)
        return jnp.sum(jnp.tanh(y)), y

    for value in (0, 0.3):
        variables["params"]["layer_instance"]["kernel"] = np.full((5, 4), value, np.float32)
        gradients, y = gradient(variables["params"])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, y)))
        if value == 0 or "Standardization" in name:
            np.testing.assert_allclose(y, np.broadcast_to(bias, y.shape), atol=1e-4)


@both_standardizations
def test_deviation_of_weights_around_a_large_mean_is_exact(name):
    wrapper, added, oracle = WRAPPERS[name]
    kernel = random_array((64, 3), mean=1e4, deviation=1e-2)
    params = {"layer_instance": {"kernel": kernel}}
    if added:
        params[f"{KERNEL}/{added}"] = np.ones(3, np.float32)
    apply = jax.jit(wrapper(nn.Dense(3, use_bias=False)).apply)
    y = apply({"params": params}, np.eye(64, dtype=np.float32))
    np.testing.assert_allclose(y, oracle(kernel), rtol=1e-4, atol=1e-3)


@every_wrapper
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_statistics_of_half_precision_weights_are_taken_in_float32(name, dtype):
    wrapper, added, oracle = WRAPPERS[name]
    # The square of 300 overflows float16, and a bfloat16 sum of 512 of them stands still.
    kernel = jnp.asarray(random_array((512, 3), mean=20, deviation=300), dtype)
    u = np.asarray([[1, 2, 3]], np.float32)
    variables = {"params": {"layer_instance": {"kernel": kernel}}}
    if added:
        variables["params"][f"{KERNEL}/{added}"] = jnp.ones(3)
    if name == "SpectralNorm":
        variables["batch_stats"] = {f"{KERNEL}/u": u, f"{KERNEL}/sigma": jnp.ones(())}
        vectors = weight_oracles.SpectralNormReplay(u).vectors(kernel)
        oracle = partial(weight_oracles.spectral_norm, u=vectors[0], v=vectors[1])
    module, identity = nn.Dense(3, use_bias=False, param_dtype=dtype), jnp.eye(512, dtype=dtype)
    mode = mode_of(name, train=False)

    @jax.jit
    def outputs(variables):
        exact = wrapper(module.clone(dtype=jnp.float32), dtype=jnp.float32)
        return (
            exact.apply(variables, identity, **mode),
            wrapper(module).apply(variables, identity, **mode),
        )

    exact, y = outputs(variables)
    np.testing.assert_allclose(exact, oracle(kernel), rtol=2e-5, atol=2e-5)
    assert y.dtype == (dtype if name == "WeightStandardization" else jnp.float32)


# The state of the spectral norm.


def spectral_state():
    return {f"{KERNEL}/u": random_array((1, 4), seed=3), f"{KERNEL}/sigma": np.float32(2)}


def spectral_steps(layer, update_stats=True):
    @jax.jit
    def step(kernel, state):
        variables = {"params": {"layer_instance": {"kernel": kernel}}, "batch_stats": state}
        y, updates = layer.apply(
            variables, IDENTITY, mutable=["batch_stats"], update_stats=update_stats
        )
        return y, updates["batch_stats"]

    return step


def equal(one, other):
    return [np.array_equal(one[name], other[name]) for name in one]


def test_degenerate_weights_leave_the_spectral_state_alone():
    """In Flax, one call with such weights leaves u at zero or NaN, and nothing is normalized."""
    kernel, state = random_array((5, 4), seed=4), spectral_state()
    dense = nn.Dense(4, use_bias=False)
    ours, flax = (spectral_steps(library.SpectralNorm(dense)) for library in (nl, nn))
    expected, _ = ours(kernel, state)
    not_a_number, infinite = kernel.copy(), kernel.copy()
    not_a_number[2, 1], infinite[2, 1] = np.nan, np.inf
    for degenerate in (0 * kernel, not_a_number, infinite):
        _, after = ours(degenerate, state)
        assert all(equal(after, state))
        np.testing.assert_array_equal(ours(kernel, after)[0], expected)
        y, _ = flax(kernel, flax(degenerate, state)[1])
        assert np.isnan(y).all() or np.array_equal(y, kernel)


def test_weights_of_any_size_are_normalized():
    """In Flax, the epsilon makes a spectral norm far above 1 out of one of 1e-9."""
    kernel, state = random_array((5, 4), deviation=0.5), spectral_state()
    dense = nn.Dense(4, use_bias=False)
    ours, flax = (spectral_steps(library.SpectralNorm(dense)) for library in (nl, nn))
    expected, after = ours(kernel, state)
    for size in (1e-30, 1e-9, 1e9, 1e30):
        y, scaled = ours(np.float32(size) * kernel, state)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        name = f"{KERNEL}/sigma"
        np.testing.assert_allclose(scaled[name], size * after[name], rtol=1e-4)
    assert np.linalg.norm(flax(np.float32(1e-9) * kernel, state)[0], 2) > 1e6


def test_spectral_state_moves_only_when_mutable_and_updated():
    layer, kernel = nl.SpectralNorm(nn.Dense(4, use_bias=False)), random_array((5, 4))
    state = spectral_state()
    _, kept = spectral_steps(layer, update_stats=False)(kernel, state)
    assert all(equal(kept, state))
    _, moved = spectral_steps(layer)(kernel, state)
    assert not any(equal(moved, state))
    variables = {"params": {"layer_instance": {"kernel": kernel}}, "batch_stats": state}
    jax.eval_shape(partial(layer.apply, update_stats=True), variables, IDENTITY)
    with pytest.raises(TypeError, match="update_stats"):
        layer.apply(variables, IDENTITY)


SEEN = {
    "more inputs": (nn.Dense(3), (2, 70), -1),
    "more outputs": (nn.Dense(70), (2, 3), -1),
    "a convolution": (nn.Conv(6, (3, 3)), (1, 5, 5, 4), -1),
    "complex": (nn.Dense(6, param_dtype=jnp.complex64), (2, 5), -1),
    "half precision": (nn.Dense(6, param_dtype=jnp.bfloat16), (2, 5), -1),
    "two axes of outputs": (nn.DenseGeneral((3, 4)), (2, 30), (-2, -1)),
    "transposed": (nn.ConvTranspose(6, (3,), transpose_kernel=True), (1, 8, 4), -2),
    "equal singular values": (
        nn.Dense(6, kernel_init=nn.initializers.orthogonal()),
        (2, 6),
        -1,
    ),
}


@pytest.mark.parametrize("case", SEEN)
def test_the_first_evaluation_has_spectral_norm_1(case):
    """One iteration from a random vector, as in Flax, leaves a norm of up to 1.5 here."""
    dense, shape, feature_axes = SEEN[case]
    layer = nl.SpectralNorm(
        dense, feature_axes=feature_axes, dtype=dense.param_dtype and jnp.float32
    )
    if case == "complex":
        layer = layer.clone(dtype=jnp.complex64)
    x = random_array(shape)
    variables = layer.init(jax.random.key(0), x, update_stats=True)
    seen = {}

    def interceptor(call, args, kwargs, context):
        if context.module.name == "layer_instance" and context.method_name == "__call__":
            seen.update(context.module.variables["params"])
        return call(*args, **kwargs)

    with nn.intercept_methods(interceptor):
        layer.apply(variables, x, update_stats=False)
    assert variables["batch_stats"][f"{KERNEL}/sigma"] == 1
    stored = oracles.as_double(variables["params"]["layer_instance"]["kernel"])
    for kernel, tolerance in ((oracles.as_double(seen["kernel"]), 3e-6), (stored, 1e-2)):
        axes = [feature_axes] if isinstance(feature_axes, int) else list(feature_axes)
        last = np.moveaxis(kernel, axes, range(-len(axes), 0))
        outputs = int(np.prod(last.shape[-len(axes) :]))
        largest = np.linalg.norm(last.reshape(-1, outputs), 2)
        np.testing.assert_allclose(largest, 1, rtol=tolerance)


def test_weights_that_start_at_zero_are_not_normalized_by_the_spectral_norm():
    """The first small values of a bias of rank 2 would be thrown to norm 1."""
    dense = nn.DenseGeneral((3, 4))
    layer, x = nl.SpectralNorm(dense), random_array((2, 5))
    variables = layer.init(jax.random.key(0), x, update_stats=False)
    bias = 1e-3 * random_array((3, 4))
    variables["params"]["layer_instance"]["bias"] = bias
    y, updates = layer.apply(variables, x, update_stats=True, mutable=["batch_stats"])
    kernel = dense.clone(use_bias=False)
    without = kernel.apply({"params": variables["params"]["layer_instance"]}, x)
    np.testing.assert_allclose(y - without, np.broadcast_to(bias, y.shape), atol=1e-6)
    state = updates["batch_stats"]
    assert state["layer_instance/bias/sigma"] == 1
    np.testing.assert_array_equal(state["layer_instance/bias/u"], np.zeros((1, 4)))


# Data-dependent initialization of the weight norm.

DATA_DEPENDENT = partial(nl.WeightNorm, data_dependent_init=True)


class Stack(nn.Module):
    wrap: object

    @nn.compact
    def __call__(self, x):
        before = self.wrap(nn.Conv(6, (2,)))(x)
        return before, self.wrap(nn.Dense(5))(nn.relu(before))


def test_data_dependent_initialization_standardizes_every_layer():
    model, x = Stack(DATA_DEPENDENT), random_array((8, 4, 3), mean=3)
    initial, variables = jax.jit(model.init_with_output)(jax.random.key(0), x)
    for ours, first in zip(jax.jit(model.apply)(variables, x), initial, strict=True):
        np.testing.assert_allclose(ours, first, atol=1e-5)
        values = oracles.as_double(ours).reshape(-1, ours.shape[-1])
        np.testing.assert_allclose(values.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(values.std(0), 1, atol=1e-5)
    plain = jax.eval_shape(Stack(nl.WeightNorm).init, jax.random.key(0), x)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, plain)


def test_data_dependent_initialization_follows_the_paper():
    x, kernel = random_array((7, 5), mean=2), random_array((5, 3), seed=1)
    four = nn.initializers.constant(4.0)
    layer = nn.Dense(3, kernel_init=lambda *_: jnp.asarray(kernel), bias_init=four)
    params = jax.jit(DATA_DEPENDENT(layer).init)(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(
        params["layer_instance"]["kernel"], weight_oracles.weight_norm(kernel), rtol=1e-5
    )
    t = oracles.as_double(x) @ weight_oracles.weight_norm(kernel)
    np.testing.assert_allclose(params[f"{KERNEL}/scale"], 1 / t.std(0), rtol=1e-5)
    bias = params["layer_instance"]["bias"]
    np.testing.assert_allclose(bias, -t.mean(0) / t.std(0), rtol=1e-4, atol=1e-5)


def test_data_dependent_initialization_without_a_bias_sets_the_deviation():
    layer, x = DATA_DEPENDENT(nn.Dense(3, use_bias=False)), random_array((64, 5), mean=2)
    y, _ = jax.jit(layer.init_with_output)(jax.random.key(0), x)
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-5)
    assert np.all(np.abs(y.mean(0)) > 0.1)


def test_data_dependent_initialization_on_a_constant_batch_keeps_the_scale():
    layer, x = DATA_DEPENDENT(nn.Dense(3)), np.ones((4, 5), np.float32)
    y, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["params"][f"{KERNEL}/scale"], 1)
    np.testing.assert_allclose(y, 0, atol=1e-6)


class Twice(nn.Module):
    def setup(self):
        self.layer = DATA_DEPENDENT(nn.Dense(5))

    def __call__(self, x):
        return self.layer(x), self.layer(3 * x)


def test_data_dependent_initialization_goes_by_the_first_call():
    x = random_array((16, 5))
    (first, second), _ = jax.jit(Twice().init_with_output)(jax.random.key(0), x)
    np.testing.assert_allclose(first.std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(second.std(0), 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape", "fields", "message"),
    [
        (nn.Dense(3), (1, 5), {}, "at least 2 outputs"),
        (nn.Dense(3), (4, 5), {"use_scale": False}, "needs use_scale"),
        (nn.Dense(3), (4, 5), {"variable_filter": None}, "wrap each layer by itself"),
        (nn.Dense(3), (4, 5), {"feature_axes": 0}, "features last"),
        (nn.Sequential([nn.Dense(3)]), (4, 5), {}, "wrap each layer by itself"),
    ],
)
def test_data_dependent_initialization_is_refused_where_it_is_undefined(
    layer, shape, fields, message
):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(DATA_DEPENDENT(layer, **fields).init, jax.random.key(0), random_array(shape))


# Transformations.


@pytest.mark.parametrize("name", ["ScaledWeightStandardization", "SpectralNorm"])
def test_vmap_of_scan_of_grad_of_remat_is_a_loop_of_plain_steps(name):
    """Two models with variables of their own; the spectral state is carried."""
    layer, mode = WRAPPERS[name][0](nn.Dense(3)), mode_of(name)
    batches = random_array((2, 3, 5, 4))
    models = [shaped(layer, batches[0, 0], seed=seed, **mode) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *models)
    apply = partial(layer.apply, **mode)

    def remat(variables, x, **mutable):
        return jax.checkpoint(partial(apply, **mutable))(variables, x)

    result, _ = jax.jit(jax.vmap(partial(jax.lax.scan, descent(remat))))(stacked, batches)
    plain = jax.jit(descent(apply))
    for index, variables in enumerate(models):
        for x in batches[index]:
            variables, _ = plain(variables, x)
        assert_trees_close(jax.tree.map(lambda leaf, i=index: leaf[i], result), variables)


class Residual(nn.Module):
    wrap: object
    train: bool

    @nn.compact
    def __call__(self, x, _):
        mode = {"update_stats": self.train} if self.wrap is nl.SpectralNorm else {}
        return x + self.wrap(nn.Dense(x.shape[-1]))(x, **mode), None


@pytest.mark.parametrize(
    "wrap",
    [nl.WeightStandardization, nl.SpectralNorm, DATA_DEPENDENT],
    ids=["WeightStandardization", "SpectralNorm", "data-dependent WeightNorm"],
)
def test_scan_over_layers_is_a_loop_from_initialization_on(wrap):
    scanned = nn.scan(
        nn.remat(Residual),
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=3,
    )(wrap, train=False)
    x = random_array((8, 4))
    (initial, _), variables = jax.jit(scanned.init_with_output)(jax.random.key(0), x, None)
    y, _ = jax.jit(scanned.apply)(variables, x, None)
    np.testing.assert_allclose(initial, y, rtol=1e-4, atol=1e-4)
    apply, expected = jax.jit(Residual(wrap, train=False).apply), x
    for index in range(3):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], variables)
        before, (expected, _) = expected, apply(layer, expected, None)
        if wrap is DATA_DEPENDENT:
            np.testing.assert_allclose((expected - before).std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
