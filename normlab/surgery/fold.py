"""Batch normalization folded into the linear layer before it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jaxtyping import Array

from ..errors import UserError
from ..linen import BatchGroupNorm, BatchNorm, BatchRenorm, GhostBatchNorm
from ..linen.shared import resolve_axes
from .given import (
    Path,
    as_given,
    check_batch,
    flattened,
    is_state,
    name_of,
    variables_of,
    with_training,
)
from .layers import (
    Altered,
    Calling,
    How,
    LayerCall,
    Unbound,
    check_linen,
    intercepted,
    run,
)
from .optimizers import Origin, carry, optimization_of
from .statistics import check_running

# Subclasses may use their kernel, or their statistics, in another way.
_LINEAR = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.ConvTranspose)
# What is read of the two layers, and must be read for nothing else.
_FOLDED_VARIABLES = ("kernel", "scale", "bias")
_FOLDABLE = (BatchNorm, GhostBatchNorm, BatchRenorm, BatchGroupNorm, nn.BatchNorm)


class Folded(Altered):
    """A model without its batch normalization, which its linear layers do along; see `fold`.

    Attributes:
        linear: Paths of the linear layers.
        norms: Path of each normalization layer that is passed by, and the dtype of its output.
    """

    linear: tuple[Path, ...]
    norms: tuple[tuple[Path, str], ...]

    @nn.nowrap
    @contextmanager
    def _interception(self) -> Iterator[None]:
        dtypes = dict(self.norms)

        def pass_by(given: LayerCall) -> Any:
            path = self._path_of(given.module)
            if path not in dtypes:
                return given.proceed()
            if not given.uses_running_average:
                raise UserError(
                    f"{name_of(path)} is folded into the layer before it and cannot be trained. "
                    "Call the folded model as in evaluation, or train the model as it was."
                )
            return given.x.astype(dtypes[path])

        def with_bias(proceed: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            called = context.method_name == "__call__" and type(module) in _LINEAR
            if not called or module.use_bias or self._path_of(module) not in self.linear:
                return proceed(*args, **kwargs)
            layer = module.clone(parent=None, name=None, use_bias=True)
            return layer.apply({"params": module.variables["params"]}, *args, **kwargs)

        with nn.intercept_methods(with_bias), intercepted(pass_by):
            yield


@dataclass
class FoldCall:
    """One call of a linear or normalization layer, as the trace of a model shows it.

    Attributes:
        path: Path of the layer.
        module: The layer with its fields.
        owns_variables: Whether it computes with the model's variables just as they are.
        shape: Shape of the output.
        dtype: Dtype of the output.
        shares_variables: Whether kernel or bias are used elsewhere too.
        is_norm: Whether it is a normalization layer.
        in_training: Whether a normalization layer was called in training.
        is_told_affine: Whether a normalization layer was given its scale or bias.
        uses: How often the output of a linear layer is used.
        source: What the input of a normalization layer comes from: the label of a call, or the name
            of an operation.
    """

    path: Path
    module: Any
    owns_variables: bool
    shape: tuple[int, ...]
    dtype: str
    is_norm: bool = False
    in_training: bool = False
    is_told_affine: bool = False
    shares_variables: bool = False
    uses: int = 0
    source: str = ""


def fold(
    model: nn.Module,
    variables: Any,
    x: Any,
    *,
    strict: bool = True,
    optimizer: optax.GradientTransformation | None = None,
    optimizer_state: Any = None,
    **how: Unpack[How],
) -> Any:
    r"""Folds batch normalization into the dense or convolutional layer whose output it normalizes.

    .. math:: W' = W \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}, \qquad
        b' = (b - \mu) \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} + \beta

    The result evaluates to the same numbers, up to the rounding of the kernel's dtype, with one
    layer where there were two. It is for evaluation only: to export or quantize a simpler program.
    XLA fuses such normalization into what surrounds it anyhow, so that little time is saved.

    Usage::

        folded, folded_variables = surgery.fold(model, variables, x)
        logits = folded.apply(folded_variables, x, train=False)

    Only what surely gives the same network is folded: the model is traced, and the output of a
    linear layer must be the input of the normalization and be used for nothing else. The linear
    layers are those of Flax: `Dense`, `DenseGeneral`, `Conv` and `ConvTranspose`.

    Args:
        model: A Linen model.
        variables: Its variables, or a state of training with them.
        x: A batch, or its shape and dtype.
        strict: Whether to refuse a model of which a normalization layer would be left over. If
            false, such layers stay as they are.
        optimizer: The optimizer that is to go on with the folded weights; that of a state of
            training goes on anyhow.
        optimizer_state: Its state, for `variables["params"]`.
        how: How the model is called: `call`, `method`, `rngs`; see `How`.

    Returns:
        The model with the same call, and its variables in the form in which they were given: new
        kernels and biases in the places of the old ones, and none of the folded layers. Third, if
        one was given, the state of the optimizer: that of a kernel which was multiplied by s is
        divided by s, as its gradient is, and squares by s squared; a bias has the state of the bias
        of its normalization layer.

    Raises:
        ValueError: If a layer cannot be folded, with the path and the reason of each; if `strict`
            is false, only if none can. If the state of the optimizer is none of the power of the
            gradient alone, as with weight decay before momentum.

    Source: Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 3.2; PyTorch's `fuse_conv_bn_eval`.
    """
    check_linen(model)
    if isinstance(model, Folded):
        raise UserError("fold: the model is folded already; give it as it was before.")
    check_batch(x)
    given = variables_of(variables)
    optimization = optimization_of(variables, optimizer, optimizer_state, "fold")
    folds = folds_of(_calls(model, given, x, Calling.of(how)), strict=strict)
    flat = flattened(given)
    origins = fold_into(flat, folds)
    passed_by = tuple((norm.path, norm.dtype) for _, norm in folds)
    linear_paths = tuple(linear.path for linear, _ in folds)
    folded = Folded(Unbound(model), linear_paths, passed_by)
    result = as_given(variables, unflatten_dict(flat))
    if optimization is None:
        return folded, result
    if is_state(variables):
        carried = carry(optimization, variables.params, result.params, origins)
        return folded, with_training(result, folded, carried.state)
    carried = carry(optimization, variables["params"], result["params"], origins)
    return folded, result, carried.state


def folds_of(calls: dict[str, FoldCall], *, strict: bool) -> list[tuple[FoldCall, FoldCall]]:
    """Returns which linear layer each normalization layer can be folded into.

    Args:
        calls: The calls of a model in evaluation, from its trace, by label.
        strict: Whether to refuse a model of which a normalization layer would be left over.

    Raises:
        ValueError: If there is none, or one would be left over.
    """
    norms = [it for it in calls.values() if it.is_norm]
    if not norms:
        raise UserError("fold: the model calls no normalization layer, so nothing can be folded.")
    obstacles = {it.path: reason for it in norms if (reason := _obstacle(it, calls))}
    folds = [(calls[it.source], it) for it in norms if it.path not in obstacles]
    if not folds or (strict and obstacles):
        listed = "".join(f"\n  {name_of(path)}: {reason}." for path, reason in obstacles.items())
        remedy = "\nWith strict=False these stay as they are." if folds else ""
        raise UserError(
            "fold: of the normalization layers, these cannot be folded into a linear layer:"
            f"{listed}{remedy}"
        )
    return folds


def fold_into(
    variables: dict[Path, Any], folds: list[tuple[FoldCall, FoldCall]]
) -> dict[Path, Origin]:
    """Folds layers in flattened variables.

    Returns:
        What each parameter is made of.

    Raises:
        ValueError: If running statistics are missing or none of their layer.
    """
    lacking = [it.path for _, it in folds if ("batch_stats", *it.path, "var") not in variables]
    if lacking:
        raise UserError(
            f"fold: {', '.join(map(name_of, lacking))} has no running statistics in batch_stats. "
            "Give all variables of the trained model."
        )
    for _, norm in folds:
        kept = {name: variables.get(("batch_stats", *norm.path, name)) for name in ("mean", "var")}
        check_running(norm.module, kept, norm.shape, name_of(norm.path))
    origins = {path[1:]: Origin(path[1:]) for path in variables if path[0] == "params"}
    for linear, norm in folds:
        origins.update(_fold_one(variables, linear, norm))
    return origins


def _calls(
    model: nn.Module, variables: dict[str, Any], x: Any, calling: Calling
) -> dict[str, FoldCall]:
    """Finds the calls of linear and normalization layers, and how data flows between them.

    Outputs of linear layers and inputs of normalization layers are given a label in the program
    that the model is traced into. There it shows what they are made of and what they are used for.
    """
    calls: dict[str, FoldCall] = {}

    def labelled(value: Array, module: nn.Module, owner: Any) -> Array:
        layers = flattened(module.variables)
        owns = all(
            owner.get((collection, *module.path, *path)) is leaf
            for (collection, *path), leaf in layers.items()
        )
        label = f"normlab.fold.{len(calls)}"
        copy = module.clone(parent=None, name=None)
        calls[label] = FoldCall(module.path, copy, owns, value.shape, str(value.dtype))
        return checkpoint_name(value, label)

    def traced(variables: Any, x: Any, rngs: Any) -> Any:
        owner = flattened(variables)

        def linear(proceed: Any, args: Any, kwargs: Any, context: Any) -> Any:
            y = proceed(*args, **kwargs)
            if context.method_name != "__call__" or type(context.module) not in _LINEAR:
                return y
            return labelled(y, context.module, owner)

        def norm(given: LayerCall) -> Any:
            x = labelled(given.x, given.module, owner)
            found = list(calls.values())[-1]
            found.is_norm, found.in_training = True, not given.uses_running_average
            found.is_told_affine = any(
                given.arguments.get(name) is not None for name in ("scale", "bias")
            )
            y = given.proceed(x)
            found.dtype = str(y.dtype)
            return y

        with nn.intercept_methods(linear):
            return run(model, variables, x, Calling(calling.call, rngs), norm)[0]

    program = jax.make_jaxpr(traced)(variables, x, calling.rngs).jaxpr
    leaves, structure = jax.tree.flatten(dict(variables))
    taken = jax.tree.unflatten(structure, program.invars[: len(leaves)])
    follow(calls, program, flattened(taken))
    return calls


def follow(calls: dict[str, FoldCall], program: Jaxpr, variables: dict[Path, Any]) -> None:
    """Follows the data of labelled calls through a program: what it comes from and goes to.

    Args:
        calls: The calls by their labels; what they come from and how often they are used is set.
        program: The program of the model.
        variables: What stands for each variable in the program.
    """
    for jaxpr in _with_inner(program):
        made_by: dict[Any, JaxprEqn] = {
            var: equation for equation in jaxpr.eqns for var in equation.outvars
        }
        used = [*jaxpr.outvars, *(var for equation in jaxpr.eqns for var in equation.invars)]
        uses = Counter(var for var in used if isinstance(var, Var))
        for equation in jaxpr.eqns:
            label = equation.params.get("name")
            if equation.primitive.name == "name" and label in calls:
                calls[label].uses += uses[equation.outvars[0]]
                taken: Any = equation.invars[0]
                maker = made_by.get(taken)
                calls[label].source = _name_of_operation(maker) if maker else "the model's input"
        if jaxpr is program:
            for call in calls.values():
                own = [variables.get(("params", *call.path, name)) for name in _FOLDED_VARIABLES]
                call.shares_variables = any(uses[var] > 1 for var in jax.tree.leaves(own))


def _with_inner(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """A program and those that its operations hold, such as the body of a loop."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(equation.params):
            inner = value.jaxpr if isinstance(value, ClosedJaxpr) else value
            if isinstance(inner, Jaxpr):
                yield from _with_inner(inner)


def _name_of_operation(equation: JaxprEqn) -> str:
    """The name of the function that an operation stands for, such as relu, or its own."""
    if "name" in equation.params:
        return str(equation.params["name"])
    inner = equation.params.get("call_jaxpr")
    if isinstance(inner, ClosedJaxpr) and inner.jaxpr.eqns:
        return _name_of_operation(inner.jaxpr.eqns[-1])
    return equation.primitive.name


def _obstacle(norm: FoldCall, calls: dict[str, FoldCall]) -> str | None:
    """Returns why a normalization layer cannot be folded, or None if it can be."""
    module = norm.module
    kind = type(module).__name__
    if type(module) not in _FOLDABLE:
        return f"{kind} is not one scale and one shift of each feature in evaluation"
    if norm.in_training:
        return "it is called in training; let `call` evaluate the model"
    if getattr(module, "example_weight", 0):
        return f"example_weight={module.example_weight} makes its statistics depend on the example"
    if norm.is_told_affine:
        return "it is given its scale or bias at the call"
    obstacle = _not_alone(norm, "it", calls)
    if obstacle:
        return obstacle
    linear = calls.get(norm.source)
    if linear is None:
        return (
            f"its input comes from {norm.source}; between it and a Dense, DenseGeneral, Conv or "
            "ConvTranspose of Flax there must be nothing, no activation either"
        )
    name = name_of(linear.path)
    obstacle = _not_alone(linear, name, calls)
    if obstacle:
        return obstacle
    if linear.uses > 1:
        return f"the output of {name} is used for something else too, such as a shortcut"
    if linear.shares_variables:
        return f"kernel or bias of {name} are used for something else too"
    if norm.shares_variables:
        return "its scale or bias are used for something else too"
    if getattr(linear.module, "batch_dims", ()):
        return f"{name} has batch dimensions"
    rank = len(norm.shape)
    first = rank - _feature_axes(linear.module)
    if any(axis < first for axis in resolve_axes(module.axis, rank, "axis")):
        return f"it normalizes along axis={module.axis}, which does not hold the features of {name}"
    return None


def _not_alone(it: FoldCall, name: str, calls: dict[str, FoldCall]) -> str | None:
    """Returns why the variables of a layer cannot be changed for one call of it."""
    if not it.owns_variables:
        return (
            f"{name} does not compute with the variables of the model as they are, but inside a "
            "transformation (scan, vmap, remat, jit) or a wrapper of its weights. Give a model "
            "that calls it as it is: without jit and remat, which change no variable; for scan and "
            "vmap one that calls layer after layer, with the variables taken apart along the axis "
            "that these add; with the weights as a wrapper has made them"
        )
    if sum(other.path == it.path for other in calls.values()) > 1:
        return f"{name} is called more than once"
    return None


def _feature_axes(linear: Any) -> int:
    """How many of the last axes of its output a linear layer computes anew."""
    features = linear.features
    return 1 if isinstance(features, int) else len(features)


def _fold_one(
    variables: dict[tuple[str, ...], Any], linear: FoldCall, norm: FoldCall
) -> dict[Path, Origin]:
    """Lets a linear layer take over what a normalization layer did, in flattened variables.

    Returns:
        What its parameters come from.
    """
    rank, number = len(norm.shape), _feature_axes(linear.module)
    axes = resolve_axes(norm.module.axis, rank, "axis")
    features = norm.shape[rank - number :]
    shape = [norm.shape[axis] if axis in axes else 1 for axis in range(rank - number, rank)]

    def taken(collection: str, name: str, otherwise: float) -> Array:
        value = nn.meta.unbox(variables.pop((collection, *norm.path, name), None))
        return jnp.full(shape, otherwise) if value is None else value.reshape(shape)

    norm_bias = nn.meta.unbox(variables.get(("params", *norm.path, "bias")))
    mean, var = taken("batch_stats", "mean", 0.0), taken("batch_stats", "var", 1.0)
    scale, bias = taken("params", "scale", 1.0), taken("params", "bias", 0.0)
    variables.pop(("batch_stats", *norm.path, "count"), None)
    factor = scale * jax.lax.rsqrt(var + norm.module.epsilon)

    path = ("params", *linear.path)
    kernel = nn.meta.unbox(variables[*path, "kernel"])
    kernel_shape = [*(1,) * (kernel.ndim - number), *factor.shape]
    if getattr(linear.module, "transpose_kernel", False):
        kernel_shape[-2:] = kernel_shape[-1], 1
    kernel_factor = jnp.broadcast_to(factor.reshape(kernel_shape), kernel.shape)

    def scaled(kernel: Array) -> Array:
        return (kernel * kernel_factor).astype(kernel.dtype)

    # Through a box around the kernel, such as that of `nn.with_partitioning`.
    variables[*path, "kernel"] = jax.tree.map(scaled, variables[*path, "kernel"])
    origins = {(*linear.path, "kernel"): Origin((*linear.path, "kernel"), kernel_factor)}
    # The gradient of the new bias is that of the normalization layer's, and also that of the old
    # one divided by what this was multiplied by.
    bias_path = (*linear.path, "bias")
    if norm_bias is not None and norm_bias.shape == features:
        origins[bias_path] = Origin((*norm.path, "bias"))
    elif (*path, "bias") in variables:
        origins[bias_path] = Origin(bias_path, jnp.broadcast_to(factor, features))
    before = variables.get((*path, "bias"), jnp.zeros(features, kernel.dtype))

    def shifted(before: Array) -> Array:
        return jnp.broadcast_to((before - mean) * factor + bias, features).astype(before.dtype)

    variables[*path, "bias"] = jax.tree.map(shifted, before)
    return origins
