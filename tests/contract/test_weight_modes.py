"""The weight wrappers and conditional normalization in JAX's modes, as test_modes.py has layers."""

import jax
import jax.numpy as jnp
import pytest
from contract.cases import assert_close, normal
from contract.test_modes import mesh_of, places, spread, types
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType

import normlab as nl

X = normal((8, 4))
# The axes along which outputs lie, by the Linen and the NNX layer that is wrapped.
DENSE = -1, lambda: nn.Dense(8), lambda rngs: nnx.Linear(4, 8, rngs=rngs)
SEVERAL = (
    (-2, -1),
    lambda: nn.DenseGeneral((2, 8)),
    lambda rngs: nnx.LinearGeneral(4, (2, 8), rngs=rngs),
)


class Conditional(nn.Module):
    """Given its input as the condition."""

    @nn.compact
    def __call__(self, x):
        return nl.ConditionalNorm(nl.BatchNorm)(x, x, use_running_average=False)


class Model:
    """A wrapper around a layer, or conditional normalization; called alike."""

    def __init__(self, name, wrapped=None):
        self.name, self.wrapped = name, wrapped
        self.told = {"update_stats": True} if name == "SpectralNorm" else {}

    def __str__(self):
        return f"{self.name} of {type(self.wrapped[1]()).__name__}" if self.wrapped else self.name

    def linen(self):
        if not self.wrapped:
            return Conditional()
        axes, layer, _ = self.wrapped
        return getattr(nl, self.name)(layer(), feature_axes=axes)

    def nnx(self):
        rngs = nnx.Rngs(0)
        if not self.wrapped:
            return nl.nnx.ConditionalNorm(4, 4, norm=nl.nnx.BatchNorm, rngs=rngs)
        axes, _, layer = self.wrapped
        return getattr(nl.nnx, self.name)(layer(rngs), feature_axes=axes, rngs=rngs)

    def variables(self):
        return {"batch_stats": {}} | self.linen().init(jax.random.key(0), X, **self.told)

    def step(self, given, x):
        """Gradients, output and new state in Linen."""

        def loss(params, x):
            y, new = self.linen().apply(
                {**given, "params": params}, x, **self.told, mutable=["batch_stats"]
            )
            return jnp.sum(y**3), (y, new.get("batch_stats", {}))

        gradients, (y, state) = jax.grad(loss, (0, 1), has_aux=True)(given["params"], x)
        return gradients, y, state

    def nnx_step(self, graph, state, x):
        """Output and new state in NNX."""
        model = nnx.merge(graph, state)
        y = model(x, **self.told) if self.wrapped else model(x, x)
        return y, nnx.state(model)


WRAPPERS = ["WeightNorm", "WeightStandardization", "ScaledWeightStandardization", "SpectralNorm"]
MODELS = [Model(name, wrapped) for name in WRAPPERS for wrapped in (DENSE, SEVERAL)]
every_model = pytest.mark.parametrize("model", [*MODELS, Model("ConditionalNorm")], ids=str)


@every_model
@pytest.mark.parametrize(
    "mode",
    [lambda: jax.enable_x64(True), lambda: jax.numpy_dtype_promotion("strict")],
    ids=["64 bit", "strict promotion"],
)
def test_float32_stays_and_states_go_through_loops(model, mode):
    with mode():
        given, x = jax.eval_shape(model.variables), jax.ShapeDtypeStruct(X.shape, X.dtype)
        gradients, y, state = jax.eval_shape(model.step, given, x)
        assert types((gradients, state)) == types(((given["params"], x), given["batch_stats"]))
        graph, state = nnx.split(model.nnx())

        def looped(state, x):
            def update(_, state):
                return model.nnx_step(graph, state, x)[1]

            return jax.lax.fori_loop(0, 2, update, state), model.nnx_step(graph, state, x)[0]

        _, y_nnx = jax.eval_shape(looped, state, x)
    leaves = jax.tree.leaves((given, y, state, y_nnx))
    numbers = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in numbers} == {jnp.dtype("float32")}


def places_for(tree, kind):
    """Weights spread along an axis of inputs; or all along the outputs."""

    def spec(path, leaf):
        if not leaf.ndim or leaf.dtype != jnp.float32:
            return ()
        if kind == "inputs":
            is_weight = "kernel" in jax.tree_util.keystr(path) and leaf.shape[0] == 4
            return ("b",) if is_weight else ()
        return (*(None,) * (leaf.ndim - 1), "b")

    return jax.tree_util.tree_map_with_path(spec, tree)


def spread_by(tree, mesh, specs):
    return jax.tree.map(lambda leaf, spec: spread(leaf, mesh, spec), tree, specs)


@every_model
@pytest.mark.parametrize("along", ["inputs", "outputs"])
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
def test_a_mesh_changes_no_number_and_states_keep_their_place(model, along, kind):
    """The spectral norm of weights that are spread was ambiguous to JAX on an explicit mesh."""
    mesh, given = mesh_of(kind), model.variables()
    expected = jax.jit(model.step)(given, X)
    graph, state = nnx.split(model.nnx())
    expected_in_nnx = model.nnx_step(graph, state, X)[0]
    with jax.set_mesh(mesh):
        given = spread_by(given, mesh, places_for(given, along))
        state = spread_by(state, mesh, places_for(state, along))
        x = spread(X, mesh, ("a", None))
        found = jax.jit(model.step)(given, x)
        found_in_nnx = jax.jit(model.nnx_step, static_argnums=0)(graph, state, x)
        if kind == AxisType.Explicit:
            (params, _), _, new = jax.eval_shape(model.step, given, x)
            assert places((params, new)) == places((given["params"], given["batch_stats"]))
            assert places(found_in_nnx[1]) == places(state)
    jax.tree.map(assert_close, found, expected)
    assert_close(found_in_nnx[0], expected_in_nnx)


@every_model
def test_a_model_is_initialized_on_an_explicit_mesh(model):
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        x = spread(X, mesh, ("a", None))
        made = jax.jit(lambda x: model.linen().init(jax.random.key(0), x, **model.told))(x)
        model.nnx()
    jax.tree.map(assert_close, {"batch_stats": {}} | made, model.variables())
