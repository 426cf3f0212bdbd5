"""BatchNorm's running statistics, replayed in float64, and what it refuses."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from compiled import AS_USERS
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import normlab as nl

AFFINE = {"scale": np.ones(6, np.float32), "bias": np.zeros(6, np.float32)}


def random_array(shape=(4, 3, 6), seed=0, mean=0.5, deviation=1.5):
    return np.random.default_rng(seed).normal(mean, deviation, shape).astype(np.float32)


def train(layer, batches, masks=None):
    """Outputs and running statistics of every step, from one compilation."""

    @jax.jit
    def run(batches, masks):
        variables = jax.jit(layer.init)(jax.random.key(0), batches[0])

        def step(statistics, batch):
            x, mask = batch
            y, updates = layer.apply(
                {**variables, "batch_stats": statistics}, x, mask=mask, mutable=["batch_stats"]
            )
            return updates["batch_stats"], (y, updates["batch_stats"])

        return jax.lax.scan(step, variables["batch_stats"], (batches, masks))[1]

    return run(batches, masks)


RULES = {
    "exponential": {"momentum": 0.9},
    "unbiased": {"momentum": 0.9, "running_variance": "unbiased"},
    "cumulative": {"momentum": None},
    "cumulative unbiased": {"momentum": None, "running_variance": "unbiased"},
    "debiased": {"momentum": 0.9, "debias": True},
    "debiased, slow, unbiased": {
        "momentum": 0.999,
        "debias": True,
        "running_variance": "unbiased",
    },
    "momentum 0": {"momentum": 0.0},
    "momentum 1": {"momentum": 1.0},
}


def replay(rule, **options):
    return oracles.RunningStatistics(
        (6,),
        momentum=rule["momentum"],
        unbiased=rule.get("running_variance") == "unbiased",
        debias=rule.get("debias", False),
        **options,
    )


@pytest.mark.parametrize(
    ("rule", "masked"),
    [(rule, False) for rule in RULES] + [("unbiased", True), ("cumulative unbiased", True)],
)
def test_running_statistics_over_a_hundred_steps(rule, masked):
    """Every step is compared, so also those at which the correction of the bias is large."""
    rule, batches = RULES[rule], random_array((100, 4, 3, 6), mean=3)
    masks = np.random.default_rng(1).random(batches.shape) < 0.7
    masks[:, 0] = True
    layer = nl.BatchNorm(use_running_average=False, **rule)
    _, statistics = train(layer, batches, masks if masked else None)
    oracle = replay(rule)
    for step, (x, mask) in enumerate(zip(batches, masks, strict=True)):
        oracle.update_from_batch(x, mask=mask if masked else None)
        np.testing.assert_allclose(statistics["mean"][step], oracle.mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(statistics["var"][step], oracle.variance, rtol=1e-5)
    counted = rule["momentum"] is None or rule.get("debias", False)
    assert set(statistics) == {"mean", "var"} | ({"count"} if counted else set())
    if counted:
        np.testing.assert_array_equal(statistics["count"], np.arange(1, 101))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_variables_at_initialization(rule):
    layer = nl.BatchNorm(use_running_average=False, **rule)
    for dtype in ("float32", "bfloat16"):
        x = jnp.ones((4, 6), dtype)
        statistics = jax.jit(layer.init)(jax.random.key(0), x)["batch_stats"]
        np.testing.assert_array_equal(statistics["mean"], np.zeros(6))
        np.testing.assert_array_equal(statistics["var"], np.ones(6))
        assert {leaf.dtype for leaf in jax.tree.leaves(statistics)} == {jnp.dtype("float32")}
        if "count" in statistics:
            assert statistics["count"].shape == ()
            assert statistics["count"] == 0


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_evaluation_reads_mean_and_variance_as_they_stand(rule):
    """Whatever is masked; scale and bias may come from the call."""
    x, trained = random_array((1, 6)), random_array((6,), seed=1)
    statistics = {"mean": trained, "var": trained**2, "count": np.float32(3)}
    layer = nl.BatchNorm(use_running_average=True, **rule)
    expected = (x - trained) / np.sqrt(trained**2 + 1e-5)
    y = layer.apply({"params": AFFINE, "batch_stats": statistics}, x, mask=np.zeros((1, 1), bool))
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    y = layer.apply({"batch_stats": statistics}, x, scale=trained, bias=x)
    np.testing.assert_allclose(y, trained * expected + x, rtol=1e-5)


def test_evaluation_and_initialization_leave_statistics_alone():
    x = random_array()
    layer = nl.BatchNorm(momentum=None)
    variables = layer.init(jax.random.key(0), x, use_running_average=False)
    assert variables["batch_stats"]["count"] == 0
    _, updates = layer.apply(variables, x, use_running_average=True, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_normalization_uses_the_biased_variance_whatever_the_running_one():
    x = random_array()
    variables = nl.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
    for rule in RULES.values():
        y = nl.BatchNorm(use_running_average=False, **rule).apply(variables, x)
        np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", ["bias", "Unbiased", None])
def test_unknown_running_variance_is_an_error(value, without_type_checks):
    with pytest.raises(ValueError, match="unbiased"):
        nl.BatchNorm(use_running_average=False, running_variance=value).init(
            jax.random.key(0), random_array()
        )


# Batches that must not enter.


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_batches_that_would_poison_the_statistics_leave_them_alone_to_the_bit(rule):
    """Values that are not finite or whose square is not; no value at all; of one value, no harm."""
    batches, masks = random_array((8, 4, 3, 6)), np.ones((8, 4, 3, 6), bool)
    batches[[1, 2, 3, 4], 2, 1, 3] = np.nan, np.inf, -np.inf, 3e38
    masks[5] = False
    masks[7] = np.arange(12).reshape(4, 3, 1) == 0
    y, statistics = train(nl.BatchNorm(use_running_average=False, **rule), batches, masks)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[1:6], leaf[:5]), statistics)
    oracle = replay(rule)
    for x in batches[[0, 6]]:
        oracle.update_from_batch(x)
    np.testing.assert_allclose(statistics["mean"][6], oracle.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics["var"][6], oracle.variance, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y[5:], statistics)))
    expected = np.stack([oracles.batch_norm(x) for x in batches[:5]])
    clean = np.arange(6) != 3
    np.testing.assert_allclose(y[:5, ..., clean], expected[..., clean], rtol=1e-5, atol=1e-5)


def test_a_channel_without_values_keeps_its_statistics():
    """The mask may leave out one channel alone."""
    batches, masks = random_array((2, 4, 3, 6)), np.ones((2, 4, 3, 6), bool)
    masks[1, ..., 2] = False
    y, statistics = train(nl.BatchNorm(use_running_average=False), batches, masks)
    np.testing.assert_array_equal(statistics["mean"][1, 2], statistics["mean"][0, 2])
    np.testing.assert_array_equal(statistics["var"][1, 2], statistics["var"][0, 2])
    np.testing.assert_allclose(y[1], oracles.batch_norm(batches[1], mask=masks[1]), atol=1e-5)


# Precision.


def test_statistics_of_many_values_far_from_zero():
    """More than 1e5 values a channel, of mean 1e4 and deviation 1e-2, in float32."""
    x = random_array((1025, 128, 2), mean=1e4, deviation=1e-2)
    mask = np.ones((1025, 128, 1), bool)
    mask[:3] = False
    x[:3] = 0
    layer = nl.BatchNorm(use_running_average=False, momentum=0.0, use_scale=False, use_bias=False)
    # As users compile, not as these tests do: the compiler's optimizations touch the last bits.
    apply = jax.jit(partial(layer.apply, mutable=["batch_stats"]), compiler_options=AS_USERS)
    for values, mask_or_none in [(x, mask), (x[3:], None), (x, None)]:
        y, updates = apply({}, values, mask=mask_or_none)
        mean, variance, _ = oracles.moments(values, (0, 1), mask_or_none)
        statistics = updates["batch_stats"]
        np.testing.assert_allclose(statistics["mean"], mean.ravel(), rtol=1e-6)
        np.testing.assert_allclose(statistics["var"], variance.ravel(), rtol=1e-4)
        np.testing.assert_allclose(
            y[3:], oracles.batch_norm(values, mask=mask_or_none)[3:], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("fields", [{}, {"force_float32_reductions": False}], ids=str)
def test_bfloat16_input_has_float32_statistics(fields):
    """To float32's precision, of the very values that bfloat16 holds."""
    batches = jnp.asarray(random_array((3, 64, 3, 6), mean=100), jnp.bfloat16)
    layer = nl.BatchNorm(use_running_average=False, param_dtype=jnp.bfloat16, **fields)
    _, statistics = train(layer, batches)
    assert {leaf.dtype for leaf in jax.tree.leaves(statistics)} == {jnp.dtype("float32")}
    if not fields:
        oracle = oracles.RunningStatistics((6,))
        for x in batches:
            oracle.update_from_batch(x)
        np.testing.assert_allclose(statistics["mean"][-1], oracle.mean, rtol=1e-5)
        np.testing.assert_allclose(statistics["var"][-1], oracle.variance, rtol=1e-5)


def test_complex_statistics():
    """The variance is that of the distance to the mean in the plane."""
    batches = random_array((3, 4, 3, 6)) + 1j * random_array((3, 4, 3, 6), seed=1)
    layer = nl.BatchNorm(use_running_average=False, momentum=0.9)
    y, statistics = train(layer, batches.astype(np.complex64))
    oracle = oracles.RunningStatistics((6,), 0.9)
    for x in batches:
        oracle.update_from_batch(x)
    assert statistics["mean"].dtype == jnp.complex64
    assert statistics["var"].dtype == jnp.float32
    np.testing.assert_allclose(statistics["mean"][-1], oracle.mean, rtol=1e-5)
    np.testing.assert_allclose(statistics["var"][-1], oracle.variance, rtol=1e-5)
    np.testing.assert_allclose(y[-1], oracles.batch_norm(batches[-1]), rtol=1e-5, atol=1e-5)


# Calls without the collection, and refusals.

SINGLE_VALUE = r"one value|single value"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_batch_statistics_need_no_mutable_collection(rule):
    """Neither mutable nor even there: the batch is normalized, and nothing is kept."""
    x = random_array()
    layer = nl.BatchNorm(use_running_average=False, **rule)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    for given in (variables, {"params": variables["params"]}):
        np.testing.assert_allclose(
            layer.apply(given, x), oracles.batch_norm(x), rtol=1e-5, atol=1e-5
        )
        _, updates = layer.apply(given, x, mutable=["intermediates"])
        assert not updates


@pytest.mark.parametrize(
    ("shape", "axis"), [((1, 6), -1), ((1, 1, 6), -1), ((6,), 0), ((4, 3, 6), (0, 1, 2))]
)
def test_one_value_per_channel_is_an_error_in_training(shape, axis):
    x = random_array(shape)
    layer = nl.BatchNorm(axis=axis)
    variables = layer.init(jax.random.key(0), x, use_running_average=False)
    with pytest.raises(ValueError, match=SINGLE_VALUE) as error:
        layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    assert str(shape) in str(error.value)
    assert "use_running_average" in str(error.value) or "batch" in str(error.value)
    with pytest.raises(ValueError, match=SINGLE_VALUE):
        layer.apply(variables, x, use_running_average=False)
    y = layer.apply(variables, x, use_running_average=True)
    np.testing.assert_allclose(y, x, rtol=1e-4)


def test_one_value_per_channel_and_device_is_none():
    """Pooled over the named axis there are several, and still an error if that axis has size 1."""
    x = random_array((4, 1, 6))
    layer = nl.BatchNorm(use_running_average=False, axis_name="devices")
    variables = jax.jit(layer.init)(jax.random.key(0), x[0])
    apply = jax.vmap(partial(layer.apply, variables), axis_name="devices")
    np.testing.assert_allclose(apply(x), oracles.batch_norm(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=SINGLE_VALUE):
        apply(x[:1])


# Over devices.


@pytest.mark.parametrize(
    "rule", [RULES[name] for name in ("exponential", "unbiased", "cumulative")], ids=str
)
def test_unequal_shards_pool_their_statistics(rule):
    """Counts 12, 5 and 0; one set for all devices; one that is poisoned keeps all from updating."""
    batches = random_array((3, 3, 4, 3, 6), mean=4)
    batches[1, 1, 0, 0, 0] = np.nan
    mask = np.zeros((3, 4, 3, 1), bool)
    mask[0], mask[1, :2, :2], mask[1, 2, 0] = True, True, True
    layer = nl.BatchNorm(use_running_average=False, axis_name="devices", **rule)
    variables = jax.jit(layer.init)(jax.random.key(0), batches[0, 0])
    mesh = jax.make_mesh((3,), ("devices",), axis_types=(AxisType.Auto,))

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P("devices"), P("devices")),
        out_specs=(P("devices"), P()),
    )
    def step(variables, x, mask):
        return layer.apply(variables, x, mask=mask, mutable=["batch_stats"])

    oracle = replay(rule)
    for x in batches:
        y, updates = step(variables, x.reshape(12, 3, 6), mask.reshape(12, 3, 1))
        np.testing.assert_allclose(
            y.reshape(x.shape), oracles.batch_norm(x, mask=mask), rtol=1e-5, atol=1e-5
        )
        variables = {**variables, **updates}
        oracle.update_from_batch(x, mask=mask)
        np.testing.assert_allclose(updates["batch_stats"]["mean"], oracle.mean, rtol=1e-5)
        np.testing.assert_allclose(updates["batch_stats"]["var"], oracle.variance, rtol=1e-5)
    assert updates["batch_stats"].get("count", 2) == 2


def test_a_debiased_average_that_takes_in_nothing_is_refused():
    with pytest.raises(ValueError, match="momentum below 1"):
        nl.BatchNorm(momentum=1.0, debias=True)


def test_training_that_collects_nothing_is_told_once_with_the_line_to_write():
    """Flax raises here; a model that was trained so had the statistics of its initialization."""

    class OnlyHere(nl.BatchNorm):
        pass

    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    layer = OnlyHere()
    variables = layer.init(jax.random.key(0), x, use_running_average=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.apply(variables, x, use_running_average=True)
        layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        layer.apply({"params": variables["params"]}, x, use_running_average=False)
    with pytest.warns(UserWarning, match=r'OnlyHere .*mutable=\["batch_stats"\]'):
        layer.apply(variables, x, use_running_average=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.apply(variables, x, use_running_average=False)
