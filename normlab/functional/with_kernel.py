"""Primitives that a kernel computes on NVIDIA's GPUs, and a formula everywhere else."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array


def with_kernel(
    name: str,
    formula: Callable[..., Any],
    types: Callable[..., Any],
    *,
    kernel: Callable[..., Any] | None = None,
    several: bool = True,
) -> Primitive:
    """Makes a primitive of arrays and of one hashable parameter, `form`, without derivatives.

    Args:
        name: Of the primitive.
        formula: What it computes, on every platform. `vmap` makes several of this, not of the
            kernel.
        types: The type of its result by the types of its arguments.
        kernel: What computes the same on a GPU of NVIDIA, if not the formula.
        several: Whether all three return lists.
    """
    made = Primitive(name)
    made.multiple_results = several
    made.def_abstract_eval(types)
    compiled = jax.jit(made.bind, static_argnames="form")

    @made.def_impl
    def _(*arrays: Array, form: Any) -> Any:
        with jax.disable_jit(False):  # Else this function would be called again.
            return compiled(*arrays, form=form)

    def batch(arrays: Sequence[Array], axes: Sequence[int | None], *, form: Any) -> Any:
        results = jax.vmap(partial(formula, form=form), tuple(axes))(*arrays)
        return results, jax.tree.map(lambda _: 0, results)

    batching.primitive_batchers[made] = batch
    by_formula = mlir.lower_fun(formula, multiple_results=several)
    mlir.register_lowering(made, by_formula)
    if kernel is None:
        return made
    by_kernel = mlir.lower_fun(kernel, multiple_results=several)

    def lower(context: Any, *arrays: Any, form: Any) -> Any:
        # A kernel is code of one compiler's version, with which `jax.export` would have none do.
        exported = context.module_context.lowering_parameters.for_export
        return (by_formula if exported else by_kernel)(context, *arrays, form=form)

    mlir.register_lowering(made, lower, platform="cuda")
    return made
