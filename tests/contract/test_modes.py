"""Every variant in JAX's modes: 64-bit, strict promotion, explicit and automatic meshes.

None of them changes a number, and states keep the dtype and the devices that they came with.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.cases import (
    FIRST_CASES,
    apply,
    assert_close,
    every_case,
    every_rule,
    every_variant,
    loss_of,
    normal,
    train,
    variables,
)
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import normlab.functional
import normlab.nnx

keeping_state = pytest.mark.parametrize(
    "case", [case for case in FIRST_CASES if case.keeps_state], ids=str
)


def step(case, given, x, weights, **options):
    """Output, new statistics and gradients."""
    loss = partial(loss_of, case.layer(use_running_average=False))
    gradient = jax.grad(loss, (0, 2), has_aux=True)
    gradients, (y, statistics) = gradient(given["params"], given, x, weights, **options)
    return y, statistics, gradients


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def nnx_layer(case, **fields):
    linen = type(case.layer())
    return getattr(normlab.nnx, linen.__name__)(4, rngs=nnx.Rngs(0), **case.fields | fields)


# 64-bit.


@every_case
def test_in_64_bit_a_float32_model_stays_in_float32(case):
    """Its statistics became float64, which no scan carries."""
    layer, x = case.layer(use_running_average=False), jax.ShapeDtypeStruct((8, 3, 4), "float32")
    with jax.enable_x64(True):
        initial = jax.eval_shape(layer.init, jax.random.key(0), x)
        initial = {"params": {}} | initial
        y, statistics, gradients = jax.eval_shape(partial(step, case), initial, x, x)
        evaluated = jax.eval_shape(case.layer(use_running_average=True).apply, initial, x)
    assert types(statistics) == types(initial.get("batch_stats", {}))
    assert types((gradients, y, evaluated)) == types(((initial["params"], x), x, x))
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} <= {jnp.dtype("float32")}


@every_variant
def test_in_64_bit_float64_statistics_are_kept_and_used_with_all_their_digits(case):
    if not case.keeps_state:
        pytest.skip("a layer without statistics")
    x = normal(mean=1e8, deviation=1e-2)
    with jax.enable_x64(True):
        given = variables(case)
        given["batch_stats"] = jax.tree.map(np.float64, given["batch_stats"])
        _, statistics = jax.eval_shape(
            partial(apply, case.layer(use_running_average=False)), given, normal()
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(statistics)} == {jnp.dtype("float64")}
        if "mean" not in given["batch_stats"] or case.variant == "switchable_norm":
            return
        given["batch_stats"]["mean"] += 1e8 + 1e-3
        layer = case.layer(use_running_average=True)
        y = jax.jit(layer.apply)(given, x)
        exact = jax.jit(layer.apply)(given, x.astype(np.float64))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)


@keeping_state
def test_in_64_bit_states_are_carried_through_loops_of_linen_and_nnx(case):
    layer, x = case.layer(use_running_average=False), normal()
    with jax.enable_x64(True):

        @jax.jit
        def scanned(given):
            def update(statistics, _):
                _, statistics = apply(layer, {**given, "batch_stats": statistics}, x)
                return statistics, None

            return jax.lax.scan(update, given["batch_stats"], length=2)[0]

        statistics = scanned(variables(case))
        model = nnx_layer(case)

        @jax.jit
        def looped(state):
            def update(_, state):
                model = nnx.merge(graph, state)
                model(x)
                return nnx.state(model)

            return jax.lax.fori_loop(0, 2, update, state)

        graph, state = nnx.split(model)
        state = looped(state)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    given = variables(case)
    for _ in range(2):
        _, new, *_ = train(case, x, given=given)
        given = {**given, "batch_stats": new}
    jax.tree.map(assert_close, statistics, given["batch_stats"])


@keeping_state
@pytest.mark.parametrize("field", ["momentum", "epsilon"])
def test_in_64_bit_a_field_from_numpy_decides_no_dtype(case, field):
    """A momentum of np.float64, which is a float to Python, made the statistics float64."""
    x = jax.ShapeDtypeStruct((8, 3, 4), "float32")
    with jax.enable_x64(True):
        layer = case.layer(use_running_average=False, **{field: np.float64(0.5)})
        given = jax.eval_shape(layer.init, jax.random.key(0), x)
        y, statistics = jax.eval_shape(partial(apply, layer), given, x)
    assert types((y, statistics)) == types((x, given["batch_stats"]))


def test_in_64_bit_an_update_by_a_momentum_from_numpy_stays_in_float32():
    zeros = jnp.zeros(4)
    with jax.enable_x64(True):
        mean, var, _ = normlab.functional.update_running(
            *(zeros, zeros, jnp.zeros(()), zeros[None], zeros[None], zeros[None] + 1),
            momentum=np.float64(0.5),
            debias=True,
        )
    assert mean.dtype == var.dtype == jnp.float32


# Strict promotion.


@every_case
def test_under_strict_promotion_float32_is_all_there_is(case):
    """Half precision is refused there by JAX, with the layers of Flax as with these."""
    x = jax.ShapeDtypeStruct((8, 3, 4), "float32")
    mask = jax.ShapeDtypeStruct((8, 1, 1), bool)
    layer = case.layer(use_running_average=False)
    with jax.numpy_dtype_promotion("strict"):
        given = {"params": {}} | jax.eval_shape(layer.init, jax.random.key(0), x)

        def run(given, x, mask):
            def loss(params, x):
                y, statistics = apply(layer, {**given, "params": params}, x, mask=mask)
                return jnp.sum(y), (y, statistics)

            return jax.grad(loss, (0, 1), has_aux=True)(given["params"], x)

        gradients, (y, statistics) = jax.eval_shape(run, given, x, mask)
        evaluate = case.layer(use_running_average=True).apply
        evaluated = jax.eval_shape(evaluate, given, x, mask=mask)
        jax.eval_shape(partial(apply, layer, scale=np.ones(case.features, np.float32)), given, x)
    assert types(statistics) == types(given.get("batch_stats", {}))
    assert types((gradients, y, evaluated)) == types(((given["params"], x), x, x))


@every_variant
def test_under_strict_promotion_nnx_is_as_linen(case):
    with jax.numpy_dtype_promotion("strict"):
        graph, state = nnx.split(nnx_layer(case))

        def run(state, x):
            model = nnx.merge(graph, state)
            return model(x), nnx.state(model)

        y, new = jax.eval_shape(run, state, jax.ShapeDtypeStruct((8, 3, 4), "float32"))
    assert y.dtype == jnp.float32
    assert types(new) == types(abstract(state))


# Meshes.

SPECS = {
    "batch": P("a", None, None),
    "batch over two axes": P(("a", "b"), None, None),
    "features": P(None, None, "a"),
    "both": P("a", None, "b"),
    "positions": P(None, "c", None),
}


def mesh_of(kind):
    return jax.make_mesh((4, 2, 1), ("a", "b", "c"), axis_types=(kind,) * 3)


def spread(tree, mesh, spec=()):
    return jax.device_put(tree, NamedSharding(mesh, P(*spec)))


@every_rule
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_an_explicit_mesh_keeps_the_place_of_inputs_and_states(case, spec):
    """What lies on all devices stays there; so do states that are spread as the features."""
    mesh = mesh_of(AxisType.Explicit)
    x = spread(normal(), mesh, spec)
    with jax.set_mesh(mesh):
        everywhere = spread(variables(case), mesh)
        of_features = jax.tree.map(
            lambda leaf: spread(leaf, mesh, spec[-1:] if leaf.shape == (4,) else ()), everywhere
        )
        for given in (everywhere, of_features):
            y, statistics, gradients = jax.eval_shape(partial(step, case), given, x, x)
            for ours, before in [
                (y, x),
                (gradients, (given["params"], x)),
                (statistics, given.get("batch_stats", {})),
            ]:
                assert places(ours) == places(before)
            evaluate = case.layer(use_running_average=True).apply
            assert places(jax.eval_shape(evaluate, given, x)) == places(x)


def places(tree):
    def place(leaf):
        spec = [] if leaf.sharding is None else [*leaf.sharding.spec]
        return tuple(spec + [None] * (leaf.ndim - len(spec)))

    return [place(leaf) for leaf in jax.tree.leaves(tree)]


@every_rule
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
def test_a_mesh_changes_no_number(case, kind):
    """Batch and features spread at once, with a mask; ghost batches lie on several devices."""
    mesh, x, weights = mesh_of(kind), normal(), normal(seed=1)
    mask = np.arange(8).reshape(8, 1, 1) != 1
    spec = SPECS["both"]
    with jax.set_mesh(mesh):
        given = spread(variables(case), mesh)
        arrays = spread(x, mesh, spec), spread(weights, mesh, spec)
        found = jax.jit(partial(step, case))(given, *arrays, mask=spread(mask, mesh))
    y, statistics, gradients, _ = train(case, x, mask)
    jax.tree.map(assert_close, found, (y, statistics, gradients))


@every_variant
def test_an_explicit_mesh_keeps_the_place_of_the_states_of_nnx(case):
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        graph, state = nnx.split(nnx_layer(case))
        state, x = spread(state, mesh), spread(normal(), mesh, SPECS["both"])

        def run(state, x):
            model = nnx.merge(graph, state)
            return model(x), nnx.state(model)

        y, new = jax.eval_shape(run, state, x)
    assert (places(y), places(new)) == (places(x), places(state))
