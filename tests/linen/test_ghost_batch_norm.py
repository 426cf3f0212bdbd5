"""GhostBatchNorm: its groups, and how their statistics enter the running ones."""

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

RUNNING = ["pooled", "average", "sequential"]
every_running = pytest.mark.parametrize("running", RUNNING)

# Batch, ghost batch, grouping, remainder.
LAYOUTS = {
    "contiguous": (8, 2, "contiguous", "error"),
    "strided": (8, 2, "strided", "error"),
    "contiguous, tail": (9, 4, "contiguous", "smaller_group"),
    "strided, tail": (9, 2, "strided", "smaller_group"),
    "contiguous, longer last": (9, 2, "contiguous", "merge_last"),
    "strided, longer last": (11, 3, "strided", "merge_last"),
    "one and a rest": (5, 3, "strided", "merge_last"),
    "smaller than a ghost": (3, 4, "contiguous", "smaller_group"),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def random_array(shape, seed=0, mean=0.5, deviation=1.5):
    return np.random.default_rng(seed).normal(mean, deviation, shape).astype(np.float32)


def ghost(layout, **fields):
    _, size, grouping, remainder = layout
    return nl.GhostBatchNorm(
        ghost_batch_size=size, grouping=grouping, remainder=remainder, **fields
    )


def groups_of(layout):
    return oracles.ghost_groups(*layout)


def oracle_of(layout):
    _, size, grouping, remainder = layout
    return partial(
        oracles.ghost_batch_norm, ghost_batch_size=size, grouping=grouping, remainder=remainder
    )


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


@pytest.mark.parametrize(
    ("layout", "running"),
    # All layouts, and all kinds of average for contiguous and strided groups with a remainder.
    [*zip(LAYOUTS, RUNNING * 3, strict=False)]
    + [(layout, running) for layout in list(LAYOUTS)[3:5] for running in RUNNING[:2]],
)
def test_outputs_and_running_statistics(layout, running):
    """Four steps: all values; a mask that empties a group; a group that is no number; all."""
    layout = LAYOUTS[layout]
    batches = random_array((4, layout[0], 2, 3), mean=2)
    masks = np.random.default_rng(1).random(batches.shape) < 0.8
    masks[[0, 3]], masks[:, :, 0] = True, True
    masks[1, groups_of(layout)[-1]] = False
    batches[2, groups_of(layout)[0][0], 0, 0] = np.nan
    layer = ghost(layout, use_running_average=False, momentum=0.9, running=running)
    y, statistics = train(layer, batches, masks)
    running_statistics = oracles.RunningStatistics((3,), 0.9)
    for step, (x, mask) in enumerate(zip(batches, masks, strict=True)):
        np.testing.assert_allclose(
            y[step], oracle_of(layout)(x, mask=mask), rtol=1e-5, atol=1e-5, err_msg=f"{step}"
        )
        running_statistics.update_from_ghosts(x, groups_of(layout), running=running, mask=mask)
        np.testing.assert_allclose(statistics["mean"][step], running_statistics.mean, rtol=1e-5)
        np.testing.assert_allclose(statistics["var"][step], running_statistics.variance, rtol=1e-5)


RULES = {
    "unbiased": {"momentum": 0.9, "running_variance": "unbiased"},
    "cumulative": {"momentum": None},
    "debiased": {"momentum": 0.9, "debias": True},
    "debiased, unbiased": {"momentum": 0.5, "debias": True, "running_variance": "unbiased"},
    "momentum 0": {"momentum": 0.0},
}


@pytest.mark.parametrize(
    ("rule", "running"),
    [
        ("unbiased", "pooled"),
        ("unbiased", "average"),
        ("unbiased", "sequential"),
        ("cumulative", "average"),
        ("cumulative", "sequential"),
        ("debiased", "pooled"),
        ("debiased, unbiased", "sequential"),
        ("momentum 0", "sequential"),
    ],
)
def test_running_rules_take_every_kind_of_average(rule, running):
    """Also the number of updates, of which sequential makes one a group."""
    rule, layout = RULES[rule], LAYOUTS["contiguous, tail"]
    batches = random_array((3, layout[0], 2, 3), mean=2)
    batches[1, 0, 0, 0] = np.inf
    masks = np.ones(batches.shape, bool)
    masks[2, groups_of(layout)[1]] = False
    layer = ghost(layout, use_running_average=False, running=running, **rule)
    _, statistics = train(layer, batches, masks)
    oracle = oracles.RunningStatistics(
        (3,),
        rule["momentum"],
        unbiased="running_variance" in rule,
        debias=rule.get("debias", False),
    )
    for step, (x, mask) in enumerate(zip(batches, masks, strict=True)):
        oracle.update_from_ghosts(x, groups_of(layout), running=running, mask=mask)
        np.testing.assert_allclose(statistics["mean"][step], oracle.mean, rtol=1e-5)
        np.testing.assert_allclose(statistics["var"][step], oracle.variance, rtol=1e-5)
    if "count" in statistics:
        assert statistics["count"][-1] == len(oracle.seen)


@pytest.mark.parametrize("layout", [LAYOUTS["contiguous, tail"], LAYOUTS["strided, longer last"]])
def test_gradients(layout):
    x, weights = random_array((layout[0], 2, 3)), random_array((layout[0], 2, 3), seed=1)
    mask = np.random.default_rng(2).random(x.shape) < 0.8
    scale = random_array((3,), seed=3)
    layer = ghost(layout, use_running_average=False)

    def loss(x):
        return (weights * layer.apply({}, x, mask=mask, scale=scale, bias=scale)).sum()

    numerical = oracles.numerical_gradient(
        lambda x: (weights * oracle_of(layout)(x, mask=mask, scale=scale)).sum(), x
    )
    np.testing.assert_allclose(
        jax.jit(jax.grad(loss))(x), numerical, rtol=1e-4, atol=1e-5 * np.abs(numerical).max()
    )


@pytest.mark.parametrize("grouping", ["contiguous", "strided"])
def test_groups_are_batches_of_their_own(grouping):
    layout = (11, 3, grouping, "smaller_group")
    x = random_array((layout[0], 2, 3))
    layer = ghost(layout, use_running_average=False)
    variables = {"params": {"scale": random_array((3,), 1), "bias": random_array((3,), 2)}}
    y = jax.jit(layer.apply)(variables, x)
    alone = jax.jit(nl.BatchNorm(use_running_average=False).apply)
    for group in groups_of(layout):
        np.testing.assert_allclose(y[group], alone(variables, x[group]), rtol=1e-6, atol=1e-6)


def test_a_group_that_is_no_number_does_not_touch_the_others():
    x, others = random_array((6, 2, 3)), np.array([0, 1, 4, 5])
    x[3] = np.nan
    layer = nl.GhostBatchNorm(False, ghost_batch_size=2, use_scale=False, use_bias=False)
    y = jax.jit(layer.apply)({}, x)
    np.testing.assert_allclose(
        y[others], oracles.ghost_batch_norm(x, ghost_batch_size=2)[others], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("axis", "features"), [(1, (3,)), (0, (6,)), ((0, 2), (6, 2)), ([-1, 1], (3, 2))]
)
def test_the_first_axis_without_features_holds_the_examples(axis, features):
    x = random_array((6, 3, 2))
    scale = random_array(features, seed=1)
    layer = nl.GhostBatchNorm(
        False, axis, ghost_batch_size=2, remainder="merge_last", running="average", momentum=0.5
    )
    apply = jax.jit(partial(layer.apply, mutable=["batch_stats"]))
    y, updates = apply({}, x, scale=scale, bias=0 * scale)
    axis = tuple(np.atleast_1d(axis))
    oracle = oracles.RunningStatistics(updates["batch_stats"]["mean"].shape, 0.5)
    examples = x.shape[oracles.other_axes(3, axis)[0]]
    groups = oracles.ghost_groups(examples, 2, remainder="merge_last")
    oracle.update_from_ghosts(x, groups, running="average", axis=axis)
    features_in_order = tuple(x.shape[a] for a in oracles.positive_axes(3, axis))
    assert updates["batch_stats"]["mean"].shape == features_in_order
    np.testing.assert_allclose(updates["batch_stats"]["mean"], oracle.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["var"], oracle.variance, rtol=1e-5)
    if features == features_in_order:
        expected = oracles.ghost_batch_norm(
            x, ghost_batch_size=2, remainder="merge_last", axis=axis, scale=scale
        )
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


# Beside BatchNorm.


@pytest.mark.parametrize(
    ("running", "fields"), [*zip(RUNNING * 2, [{}, *RULES.values()], strict=True)], ids=str
)
def test_one_group_is_batch_norm_to_the_bit(running, fields):
    """Outputs, gradients and running statistics of three steps."""
    batches, weights = random_array((3, 6, 2, 3)), random_array((6, 2, 3), seed=1)
    mask = np.random.default_rng(2).random((6, 2, 1)) < 0.8

    @partial(jax.jit, static_argnums=0, compiler_options=AS_USERS)
    def step(layer, variables, x):
        def loss(params, x):
            y, updates = layer.apply(
                {**variables, "params": params}, x, mask=mask, mutable=["batch_stats"]
            )
            return (weights * y).sum(), (y, updates)

        gradients, (y, updates) = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients[0])
        return {"params": params, **updates}, y, gradients

    results = []
    for layer in (
        nl.BatchNorm(False, **fields),
        nl.GhostBatchNorm(False, ghost_batch_size=6, running=running, **fields),
    ):
        variables = jax.jit(layer.init)(jax.random.key(0), batches[0])
        results.append([variables])
        for x in batches:
            variables, *rest = step(layer, variables, x)
            results[-1].append((variables, rest))
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("remainder", ["smaller_group", "merge_last"])
def test_a_batch_smaller_than_a_ghost_is_batch_norm_to_the_bit(remainder):
    x = random_array((5, 2, 3))
    results = [
        jax.jit(partial(layer.apply, mutable=["batch_stats"]), compiler_options=AS_USERS)(
            {"params": {"scale": x[0, 0], "bias": x[0, 1]}}, x
        )
        for layer in (
            nl.BatchNorm(False),
            nl.GhostBatchNorm(False, ghost_batch_size=32, remainder=remainder),
        )
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("examples", [1, 3, 7])
def test_evaluation_is_batch_norm_at_any_batch_size(examples):
    x, statistics = random_array((examples, 6)), random_array((2, 6), seed=1)
    variables = {
        "params": {"scale": statistics[0], "bias": statistics[1]},
        "batch_stats": {"mean": statistics[1], "var": statistics[0] ** 2},
    }
    ghost, batch = (
        jax.jit(layer.apply)(variables, x)
        for layer in (nl.GhostBatchNorm(True, ghost_batch_size=4), nl.BatchNorm(True))
    )
    np.testing.assert_array_equal(ghost, batch)


def test_variables_are_those_of_batch_norm():
    x = random_array((4, 6))
    for fields in ({}, {"momentum": None}):
        theirs, ours = (
            jax.jit(layer.init)(jax.random.key(0), x)
            for layer in (
                nl.BatchNorm(False, **fields),
                nl.GhostBatchNorm(False, ghost_batch_size=2, **fields),
            )
        )
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# The rules of others, replayed.


def test_average_over_strided_groups_is_the_virtual_batch_of_tensorflow_1():
    """It splits the batch axis into (virtual batch, groups), normalizes over the first of the two,
    and lets the mean over groups of means and variances into the moving ones.
    """
    batches = random_array((3, 8, 2, 3))
    layer = nl.GhostBatchNorm(
        False,
        momentum=0.99,
        epsilon=1e-3,
        ghost_batch_size=4,
        grouping="strided",
        running="average",
    )
    y, statistics = train(layer, batches)
    moving_mean, moving_variance = np.zeros(3), np.ones(3)
    for step, x in enumerate(batches.astype(np.float64)):
        virtual = x.reshape(4, 2, 2, 3)
        mean, variance = virtual.mean((0, 2)), virtual.var((0, 2))
        expected = (virtual - mean[:, None]) / np.sqrt(variance[:, None] + 1e-3)
        np.testing.assert_allclose(y[step], expected.reshape(x.shape), rtol=1e-5, atol=1e-5)
        moving_mean = 0.99 * moving_mean + 0.01 * mean.mean(0)
        moving_variance = 0.99 * moving_variance + 0.01 * variance.mean(0)
        np.testing.assert_allclose(statistics["mean"][step], moving_mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(statistics["var"][step], moving_variance, rtol=1e-5)


@pytest.mark.parametrize("running_variance", ["biased", "unbiased"])
def test_sequential_is_batch_norm_called_on_chunk_after_chunk(running_variance):
    """As Hoffer et al. wrote it; in the language of their time, with the unbiased variance."""
    batches = random_array((3, 8, 2, 3))
    fields = {"momentum": 0.9, "running_variance": running_variance}
    y, statistics = train(
        nl.GhostBatchNorm(False, ghost_batch_size=2, running="sequential", **fields), batches
    )
    one = nl.BatchNorm(False, **fields)
    apply = jax.jit(partial(one.apply, mutable=["batch_stats"]))
    variables = jax.jit(one.init)(jax.random.key(0), batches[0])
    for step, x in enumerate(batches):
        chunks = []
        for chunk in np.split(x, 4):
            normalized, updates = apply(variables, chunk)
            variables = {**variables, **updates}
            chunks.append(normalized)
        np.testing.assert_allclose(y[step], np.concatenate(chunks), rtol=1e-5, atol=1e-5)
        for name, expected in variables["batch_stats"].items():
            np.testing.assert_allclose(statistics[name][step], expected, rtol=1e-5, atol=1e-6)


# The shape of the computation.


def count_equations(jaxpr):
    inner = [
        count_equations(value.jaxpr if hasattr(value, "jaxpr") else value)
        for equation in jaxpr.eqns
        for value in equation.params.values()
        if hasattr(value, "eqns") or hasattr(value, "jaxpr")
    ]
    return len(jaxpr.eqns) + sum(inner)


@every_running
@pytest.mark.parametrize("remainder", ["error", "smaller_group", "merge_last"])
def test_the_computation_does_not_grow_with_the_number_of_groups(remainder, running):
    def size(examples):
        x = jax.ShapeDtypeStruct((examples, 2, 3), jnp.float32)
        layer = nl.GhostBatchNorm(
            False, momentum=0.9, ghost_batch_size=4, remainder=remainder, running=running
        )
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)
        apply = partial(layer.apply, mutable=["batch_stats"])
        return count_equations(jax.make_jaxpr(apply)(variables, x).jaxpr)

    rest = 0 if remainder == "error" else 3
    assert size(12 + rest) == size(256 + rest)


# What it refuses.


@pytest.mark.parametrize("examples", [3, 10])
def test_a_batch_that_does_not_divide_is_an_error(examples):
    x = random_array((examples, 6))
    layer = nl.GhostBatchNorm(False, ghost_batch_size=4)
    variables = jax.jit(layer.init)(jax.random.key(0), x)  # It sees shapes only.
    with pytest.raises(ValueError, match="smaller_group") as error:
        layer.apply(variables, x, mutable=["batch_stats"])
    for part in ("ghost_batch_size=4", str(examples), "merge_last"):
        assert part in str(error.value)


def test_initialization_groups_a_batch_that_divides_and_takes_another_whole():
    x = random_array((9, 6))
    layer = nl.GhostBatchNorm(False, ghost_batch_size=4)
    initialize = jax.jit(lambda x: layer.init_with_output(jax.random.key(0), x)[0])
    np.testing.assert_allclose(initialize(x), oracles.batch_norm(x), rtol=1e-5, atol=1e-5)
    expected = oracles.ghost_batch_norm(x[:8], ghost_batch_size=4)
    np.testing.assert_allclose(initialize(x[:8]), expected, rtol=1e-5, atol=1e-5)


def test_one_value_per_channel_and_ghost_is_an_error():
    x = random_array((4, 6))
    layer = nl.GhostBatchNorm(False, ghost_batch_size=1)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"one value|single value"):
        layer.apply(variables, x)
    spread_out = random_array((4, 5, 6))
    y = jax.jit(layer.apply)(variables, spread_out)
    np.testing.assert_allclose(
        y, oracles.instance_norm(spread_out, epsilon=1e-5), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"ghost_batch_size": 0},
        {"ghost_batch_size": -4},
        {"grouping": "random"},
        {"remainder": "drop"},
        {"running": "mean"},
    ],
    ids=str,
)
def test_values_that_fields_cannot_take(fields, without_type_checks):
    ((name, value),) = fields.items()
    with pytest.raises(ValueError, match=name) as error:
        nl.GhostBatchNorm(False, **fields).init(jax.random.key(0), random_array((4, 6)))
    assert str(value) in str(error.value)


# Over devices.


@every_running
def test_groups_stay_on_their_device_and_statistics_are_pooled(running):
    """Four devices of unequal, masked shards; one of them empty, and in a later batch poisoned."""
    batches = random_array((3, 4, 5, 2, 3), mean=2)
    masks = np.random.default_rng(1).random(batches.shape) < 0.7
    masks[..., 0, :] = True
    masks[:, 2], batches[1, 1, 4, 0] = False, np.nan
    layout = (5, 2, "contiguous", "smaller_group")
    layer = ghost(layout, use_running_average=False, momentum=0.9, running=running)
    variables = layer.init(jax.random.key(0), batches[0, 0])
    layer = layer.clone(axis_name="devices")
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Auto,))

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P("devices"), P("devices")),
        out_specs=(P("devices"), P()),
    )
    def step(variables, x, mask):
        y, updates = layer.apply(variables, x[0], mask=mask[0], mutable=["batch_stats"])
        return y[None], updates

    oracle = oracles.RunningStatistics((3,), 0.9)
    all_groups = [group + 5 * device for device in range(4) for group in groups_of(layout)]
    for x, mask in zip(batches, masks, strict=True):
        y, updates = step(variables, x, mask)
        variables = {**variables, **updates}
        for device in range(4):
            expected = oracle_of(layout)(x[device], mask=mask[device])
            np.testing.assert_allclose(y[device], expected, rtol=1e-5, atol=1e-5)
        oracle.update_from_ghosts(
            x.reshape(20, 2, 3), all_groups, running=running, mask=mask.reshape(20, 2, 3)
        )
        np.testing.assert_allclose(updates["batch_stats"]["mean"], oracle.mean, rtol=1e-5)
        np.testing.assert_allclose(updates["batch_stats"]["var"], oracle.variance, rtol=1e-5)


@every_running
def test_statistics_are_pooled_within_groups_of_devices(running):
    x, halves = random_array((4, 4, 2, 3)), ((0, 2), (1, 3))
    layer = nl.GhostBatchNorm(False, momentum=0.9, ghost_batch_size=2, running=running)
    variables = jax.jit(layer.init)(jax.random.key(0), x[0])
    layer = layer.clone(axis_name="devices", axis_index_groups=halves)
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Auto,))

    @jax.jit
    @partial(
        jax.shard_map, mesh=mesh, in_specs=P("devices"), out_specs=P("devices"), check_vma=False
    )
    def step(x):
        y, updates = layer.apply(variables, x[0], mutable=["batch_stats"])
        return jax.tree.map(lambda leaf: leaf[None], (y, updates["batch_stats"]))

    y, statistics = step(x)
    for half in halves:
        oracle = oracles.RunningStatistics((3,), 0.9)
        joined = np.concatenate([x[device] for device in half])
        oracle.update_from_ghosts(joined, oracles.ghost_groups(8, 2), running=running)
        for device in half:
            expected = oracles.ghost_batch_norm(x[device], ghost_batch_size=2)
            np.testing.assert_allclose(y[device], expected, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(
                statistics["mean"][device], oracle.mean, rtol=1e-5, atol=1e-6
            )
            np.testing.assert_allclose(statistics["var"][device], oracle.variance, rtol=1e-5)


@every_running
def test_devices_under_vmap(running):
    x = random_array((3, 4, 2, 3))
    layer = nl.GhostBatchNorm(False, momentum=0.9, ghost_batch_size=2, running=running)
    variables = jax.jit(layer.init)(jax.random.key(0), x[0])
    apply = partial(layer.clone(axis_name="devices").apply, variables, mutable=["batch_stats"])
    y, updates = jax.jit(jax.vmap(apply, axis_name="devices"))(x)
    oracle = oracles.RunningStatistics((3,), 0.9)
    joined = x.reshape(12, 2, 3)
    oracle.update_from_ghosts(joined, oracles.ghost_groups(12, 2), running=running)
    expected = oracles.ghost_batch_norm(joined, ghost_batch_size=2)
    np.testing.assert_allclose(y.reshape(joined.shape), expected, rtol=1e-5, atol=1e-5)
    for device in range(3):
        statistics = jax.tree.map(lambda leaf, d=device: leaf[d], updates["batch_stats"])
        np.testing.assert_allclose(statistics["mean"], oracle.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(statistics["var"], oracle.variance, rtol=1e-5)


def test_an_empty_batch_has_no_remainder():
    """No examples were refused as a number that the size does not divide."""
    layer, x = nl.GhostBatchNorm(ghost_batch_size=2), np.zeros((0, 3), np.float32)
    y, variables = layer.init_with_output(jax.random.key(0), x, use_running_average=False)
    assert y.shape == (0, 3)
    y, moved = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    assert y.shape == (0, 3)
    jax.tree.map(np.testing.assert_array_equal, moved["batch_stats"], variables["batch_stats"])
