"""JAX's transformations on every variant: none changes a number, traces twice or fails to lower."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.cases import (
    FIRST_CASES,
    SHAPE,
    TRACES,
    after_two_steps,
    apply,
    assert_close,
    every_rule,
    every_variant,
    loss_of,
    normal,
    parameters,
    shapes,
    train,
    two_of_three,
    variables,
)
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def assert_trees_close(ours, expected, tolerance=1e-5):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == other.dtype
        np.testing.assert_allclose(leaf, other, rtol=tolerance, atol=tolerance)


def step_of(case, transformation=lambda f: f):
    """Takes variables and input; returns new variables, and output with gradients."""
    loss = partial(loss_of, case.layer(use_running_average=False))

    def step(variables, x):
        gradient = jax.grad(transformation(loss), (0, 2), has_aux=True)
        gradients, (y, statistics) = gradient(variables["params"], variables, x, normal(seed=1))
        if statistics:
            variables = {**variables, "batch_stats": statistics}
        return variables, (y, gradients)

    return step


def stacked(trees):
    # NumPy has nothing to compile.
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def loop(step, carry, batches):
    """What scan does, as the loop that it is."""
    results = []
    for x in batches:
        carry, result = step(carry, x)
        results.append(result)
    return carry, stacked(results)


def plain_step(case):
    """The same as `step_of`, by the step that all other tests take."""

    def step(variables, x):
        y, statistics, gradients, _ = train(case, x, given=variables)
        if statistics:
            variables = {**variables, "batch_stats": statistics}
        return variables, (y, gradients)

    return step


@every_rule
def test_vmap_of_scan_of_grad_of_remat_is_a_loop_of_plain_steps(case):
    """Two models with variables of their own; the running statistics are carried."""
    batches = normal((2, 3, *SHAPE))
    models = [variables(case, seed) for seed in range(2)]
    pairs = zip(models, batches, strict=True)
    expected = stacked([loop(plain_step(case), *pair) for pair in pairs])
    step = step_of(case, jax.checkpoint)
    result = jax.jit(jax.vmap(partial(jax.lax.scan, step)))(stacked(models), batches)
    assert_trees_close(result, expected)


@every_rule
def test_a_batch_sharded_over_eight_devices_gives_the_numbers_of_one(case):
    """Under jit, the layer is told nothing of the devices."""
    batches = normal((2, *SHAPE))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    over_batch, everywhere = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
    sharded = [jax.device_put(x, over_batch) for x in batches]
    step = jax.jit(step_of(case))
    result = loop(step, jax.device_put(variables(case), everywhere), sharded)
    assert_trees_close(result, loop(plain_step(case), variables(case), batches))


@every_variant
def test_training_is_traced_once(case):
    """With equal modules as static arguments, and with the statistics of the step before."""
    given = variables(case)
    loop(plain_step(case), given, normal((2, *SHAPE)))
    traces = TRACES[str(case)]
    loop(plain_step(case), given, normal((2, *SHAPE)))
    assert TRACES[str(case)] == traces == 1
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), given.get("batch_stats")) == (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes(case).get("batch_stats"))
    )


@every_variant
def test_derivatives_of_first_and_second_order(case):
    """grad, jvp and jvp of grad in float64 against differences of the oracle, in random directions
    of parameters and input together.
    """
    params, replay = parameters(case), after_two_steps(case)
    point = jax.tree.map(np.float64, (params, normal()))
    generator = np.random.default_rng(5)
    u, v = (jax.tree.map(lambda a: generator.normal(size=a.shape), point) for _ in range(2))

    def expected(s, t):
        moved, x = jax.tree.map(lambda p, u, v: p + s * u + t * v, point, u, v)
        return np.sin(replay.normalize(x, constant_of=point[1], **moved)).sum()

    h = 1e-4
    first = (expected(h, 0) - expected(-h, 0)) / (2 * h)
    first_along = (expected(0, h) - expected(0, -h)) / (2 * h)
    second = (expected(h, h) - expected(h, -h) - expected(-h, h) + expected(-h, -h)) / (4 * h * h)
    layer = case.layer(use_running_average=False)
    with jax.enable_x64(True):
        statistics = {"batch_stats": jax.tree.map(jnp.asarray, replay.state)}

        @jax.jit
        def derivatives(point, v):
            def loss(point):
                y, new = apply(layer, {**statistics, "params": point[0]}, point[1])
                return jnp.sum(jnp.sin(y)), (y, new)

            values, tangents = jax.jvp(jax.value_and_grad(loss, has_aux=True), (point,), (v,))
            ((_, results), gradient), ((forward, _), along) = values, tangents
            return results, gradient, forward, along

        (y, new), gradient, forward, along = derivatives(point, v)
    assert {leaf.dtype for leaf in jax.tree.leaves((y, new))} == {jnp.dtype("float64")}
    assert_close(y, replay.normalize(point[1], **params), 1e-9)
    products = [
        sum(np.vdot(a, b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(u), strict=True))
        for tree in (gradient, along)
    ]
    firsts = [products[0], forward], [first, first_along]
    np.testing.assert_allclose(*firsts, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(products[1], second, rtol=1e-5, atol=1e-5)


@every_variant
def test_training_and_evaluation_lower_for_tpu_and_cuda(case):
    layer, given = case.layer(), variables(case)
    x = jax.ShapeDtypeStruct(SHAPE, "float32")

    def both(variables, x):
        evaluated = layer.apply(variables, x, use_running_average=True)
        return step_of(case)(variables, x), evaluated

    exported = jax.export.export(jax.jit(both), platforms=["tpu", "cuda"])(given, x)
    assert exported.platforms == ("tpu", "cuda")


@pytest.mark.parametrize("case", [case for case in FIRST_CASES if case.keeps_state], ids=str)
def test_unequal_shards_give_the_pooled_answer(case):
    """Shards that count fully and in part, over a named axis; one set of statistics for all."""
    shards, mask = normal((2, *SHAPE)), np.ones((2, *SHAPE), bool)
    mask[1] = two_of_three()
    mask[1, 2:4] = False
    layer = case.layer(use_running_average=False, axis_name="shards")
    weights, given = normal(shards.shape, seed=1), variables(case)

    @jax.jit
    def gradient(x):
        def loss(x):
            y, statistics = jax.vmap(
                lambda x, mask: apply(layer, given, x, mask=mask), axis_name="shards"
            )(x, mask)
            return (weights * y).sum(), (y, statistics)

        return jax.grad(loss, has_aux=True)(x)

    found, (y, statistics) = gradient(shards)
    replay, params = after_two_steps(case), parameters(case)
    joined, joined_mask = shards.reshape(16, 3, 4), mask.reshape(16, 3, 4)
    assert_close(y.reshape(joined.shape), replay.normalize(joined, joined_mask, **params))
    direction = normal(joined.shape, seed=2).astype(np.float64)

    def expected(step):
        x = joined + step * direction
        y = replay.normalize(x, joined_mask, constant_of=joined, **params)
        return (weights.reshape(joined.shape) * y).sum()

    difference = (expected(1e-5) - expected(-1e-5)) / 2e-5
    product = np.vdot(found, direction)
    limit = 1e-5 * np.linalg.norm(found) * np.linalg.norm(direction)
    np.testing.assert_allclose(product, difference, rtol=1e-4, atol=limit)
    replay.update(joined, joined_mask)
    assert set(statistics) == set(shapes(case)["batch_stats"])
    for name, value in replay.state.items():
        for shard in range(2):
            assert_close(statistics[name][shard], value, message=name)
