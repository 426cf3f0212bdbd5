"""What one layer costs, forward and backward."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from .program import ProgramCost, read
from .targets import AXIS, Target


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs each device.

    Attributes:
        passes: Memory traffic, in readings of the device's part of the input.
        program: All the rest.
    """

    passes: float
    program: ProgramCost


def layer_cost(
    layer: nn.Module,
    shape: tuple[int, ...],
    target: Target,
    *,
    dtype: DTypeLike = jnp.bfloat16,
    backward: bool = True,
    statistics: bool = False,
    sharding: Literal["jit", "shard_map"] = "jit",
) -> LayerCost:
    """Compiles a layer in training, forward and backward, and reads what it costs.

    Everything that differs between steps is an argument of the program, the gradient of the result
    too. That one waits for the result, as it would if a network stood between the two: a compiler
    that may merge both directions reads the input once less.

    The floor is 8 passes: forward reads the input twice, once for the statistics, and writes the
    result; backward reads input and gradient twice, and writes the gradient of the input.

    Args:
        layer: A Flax layer whose call takes the input alone.
        shape: Of one device's part of the input. Its first axis is that of the examples.
        target: The devices.
        dtype: Of input and result.
        backward: Whether the gradients of input and parameters are computed as well.
        statistics: Whether the running statistics move.
        sharding: How the devices share the batch: a program for all of them that the compiler
            splits, "jit", or a program for each, "shard_map", in which the layer's `axis_name`,
            "data", says where they meet.
    """
    x = jax.ShapeDtypeStruct(shape, dtype)
    variables: Any = jax.eval_shape(
        lambda x: (
            layer.clone(axis_name=None).init(jax.random.key(0), x)
            if getattr(layer, "axis_name", None)
            else layer.init(jax.random.key(0), x)
        ),
        x,
    )
    params = variables.get("params", {})
    state = {name: tree for name, tree in variables.items() if name != "params"}

    def run(params: Any, state: Any, x: Any, gradient: Any) -> Any:
        def forward(params: Any, x: Any):
            y, updated = layer.apply({"params": params, **state}, x, mutable=list(state))
            return y.astype(x.dtype), updated if statistics else {}

        if not backward:
            return forward(params, x)
        y, pull_back, updated = jax.vjp(forward, params, x, has_aux=True)
        y, gradient = jax.lax.optimization_barrier((y, gradient))
        return y, updated, *pull_back(gradient)

    if sharding == "shard_map":
        split, whole = PartitionSpec(AXIS), PartitionSpec()
        results = (split, whole, whole, split) if backward else (split, whole)
        run = jax.shard_map(
            run, mesh=target.mesh, in_specs=(whole, whole, split, split), out_specs=results
        )
    examples = shape[0] * len(target.devices)
    x = jax.ShapeDtypeStruct((examples, *shape[1:]), dtype, sharding=target.split)
    params, state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=target.whole),
        (params, state),
    )
    results = (target.split, target.whole, target.whole, target.split)
    if not backward:
        results = results[:2]
    lowered = jax.jit(run, out_shardings=results).lower(params, state, x, x)
    compiled = lowered.compile(target.compiler_options)
    program = read(compiled)
    return LayerCost(program.traffic / (math.prod(shape) * jnp.dtype(dtype).itemsize), program)
