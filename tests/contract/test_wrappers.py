"""What the layers around other layers promise: no retrace, sharding, lowering everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import normlab as nl
from normlab.catalog import WRAPPERS

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
CONDITION = X[:, :3] * 2


class Wrapped(nn.Module):
    """Calls a wrapper with what it needs."""

    kind: type

    @nn.compact
    def __call__(self, x, condition):
        if self.kind is nl.ConditionalNorm:
            normal = nn.initializers.normal(0.5)
            return self.kind(nl.BatchNorm, kernel_init=normal)(x, condition, False)
        options = {"update_stats": True} if self.kind is nl.SpectralNorm else {}
        return self.kind(nn.Dense(5))(x, **options)


def training_step(wrapper, traces):
    """A function to output, gradients and updated state."""

    def loss(params, state, x, condition):
        traces.append(wrapper)
        y, moved = Wrapped(wrapper.layer).apply(
            {"params": params, **state}, x, condition, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(y)), (y, moved)

    return jax.jit(jax.grad(loss, (0, 2), has_aux=True))


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_compiles_once_and_alike_when_sharded_and_lowers_everywhere(wrapper):
    variables = Wrapped(wrapper.layer).init(jax.random.key(0), X, CONDITION)
    params = variables["params"]
    state = {key: value for key, value in variables.items() if key != "params"}
    traces = []
    step = training_step(wrapper, traces)
    whole = step(params, state, X, CONDITION)
    step(params, state, X + 1, CONDITION)
    assert len(traces) == 1

    mesh = jax.make_mesh((8,), ("examples",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("examples"))
    shards = step(params, state, *jax.device_put((X, CONDITION), spread))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), shards, whole)

    exported = jax.export.export(step, platforms=["tpu", "cuda"])(params, state, X, CONDITION)
    assert exported.platforms == ("tpu", "cuda")
