"""Replaced layers of NNX models: folded into those before, or taken over from a trained model."""

import functools
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from ..errors import UserError
from .convert import Converted, carry_over, of_optimizer
from .fold import FoldCall, fold_into, folds_of, follow
from .given import Path, check_batch, name_of
from .layers import How
from .layers import Layer as Described
from .nnx_calls import (
    LAYERS,
    LayerCall,
    calling_of,
    check_model,
    class_of,
    described,
    find_layers,
    intercepted,
)
from .optimizers import Carried, Optimization, Origin, carry

# Subclasses may use their kernel in another way.
_LINEAR = (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.ConvTranspose)

# Where the variables of a kind are found by the functions for Linen; random numbers are not taken.
_COLLECTIONS = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}


class FoldedNorm(nnx.Module):
    """Stands where a normalization layer was, which the linear layer before it does along.

    Attributes:
        dtype: Dtype of the output.
        use_running_average: Whether the model is called as in evaluation; nothing else is possible.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        """Keeps the dtype of the output."""
        self.dtype = jnp.dtype(dtype)
        self.use_running_average = True

    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> Array:
        """Returns the input in the dtype of the output.

        Raises:
            ValueError: If it is called in training.
        """
        told = self.use_running_average if use_running_average is None else use_running_average
        if not told:
            raise UserError(
                "this normalization layer is folded into the layer before it and cannot be "
                "trained. Call eval() of the folded model, or train the model as it was."
            )
        return jnp.asarray(x, self.dtype)


def fold(
    model: nnx.Module,
    x: Any,
    *,
    strict: bool = True,
    optimizer: nnx.Optimizer[Any] | None = None,
    **how: Unpack[How],
) -> tuple[str, ...]:
    """Folds batch normalization into the linear layer whose output it normalizes, in place.

    As `normlab.surgery.fold`, which says what is folded and why something is not. The linear layers
    are `nnx.Linear`, `LinearGeneral`, `Conv` and `ConvTranspose`; in the place of each folded layer
    there is one that does nothing. The model is left as by `eval()`.

    Args:
        model: The model.
        x: A batch.
        strict: Whether to refuse a model of which a normalization layer would be left over.
        optimizer: The optimizer of the model, whose state is changed along, in place.
        how: How the model is called: `call` or `method`; see `normlab.surgery.How`.

    Returns:
        Paths of the layers that were folded, as in `"blocks/0/norm"`.

    Raises:
        ValueError: If a layer cannot be folded, with the path and the reason of each, or the state
            of the optimizer cannot follow; then model and optimizer are as they were.
    """
    check_model(model)
    check_batch(x)
    if optimizer is not None:
        check_optimizer(optimizer, "fold")
    flat = _variables(model)
    folds = folds_of(_calls(model, x, calling_of(how)), strict=strict)
    origins = fold_into(flat, folds)
    if optimizer is not None:
        folded = nnx.clone(model)
        _put(folded, folds, flat)
        carried = _carry(optimizer, model, folded, origins)
        going_on = _with_state(nnx.Optimizer(folded, optimizer.tx, wrt=optimizer.wrt), carried)
        optimizer.opt_state = nnx.data(going_on.opt_state)
    _put(model, folds, flat)
    return tuple(name_of(norm.path) for _, norm in folds)


def _put(
    model: nnx.Module, folds: list[tuple[FoldCall, FoldCall]], flat: dict[Path, Array]
) -> None:
    """Gives a model its folded weights, and layers that do nothing in the places of the norms."""
    modules = {tuple(map(str, path)): it for path, it in nnx.iter_modules(model)}
    paths = {tuple(map(str, path)): path for path, _ in nnx.iter_modules(model)}
    for linear, norm in folds:
        layer: Any = modules[linear.path]
        layer.kernel.set_value(flat["params", *linear.path, "kernel"])
        bias = flat["params", *linear.path, "bias"]
        if layer.bias is None:
            layer.bias, layer.use_bias = nnx.Param(bias), True
        else:
            layer.bias.set_value(bias)
        *parents, last = paths[norm.path]
        holder: Any = modules.get(tuple(map(str, parents)))
        if holder is None:  # A list or a dictionary of layers.
            holder = functools.reduce(_inside, parents, model)
        if isinstance(last, str) and not isinstance(holder, dict):
            setattr(holder, last, FoldedNorm(norm.dtype))
        else:
            holder[last] = FoldedNorm(norm.dtype)
    model.eval()


def check_optimizer(optimizer: Any, function: str) -> None:
    """Refuses what is no optimizer of Flax NNX.

    Raises:
        ValueError: That says what was expected.
    """
    if not isinstance(optimizer, nnx.Optimizer):
        raise UserError(
            f"{function}: optimizer is {type(optimizer).__name__}, but for a model of Flax NNX an "
            "nnx.Optimizer was expected, which holds its state, as in "
            "nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)."
        )


def _carry(
    optimizer: nnx.Optimizer[Any],
    before: nnx.Module,
    after: nnx.Module,
    origins: dict[Path, Origin],
) -> Carried:
    """Carries the state of an optimizer over from one model to another."""
    old, new = (nnx.as_pure(nnx.state(model, optimizer.wrt)) for model in (before, after))
    optimization = Optimization(optimizer.tx, nnx.as_pure(optimizer.opt_state))
    return carry(optimization, old, new, origins)


def _with_state(optimizer: Any, carried: Carried) -> Any:
    """Gives an optimizer a state; returns it."""
    nnx.update(optimizer.opt_state, nnx.state(carried.state))
    return optimizer


def _inside(holder: Any, name: Any) -> Any:
    if isinstance(name, str) and not isinstance(holder, dict):
        return getattr(holder, name)
    return holder[name]


def _calls(model: nnx.Module, x: Any, call: Any) -> dict[str, FoldCall]:
    """Finds the calls of linear and normalization layers, and how data flows between them."""
    calls: dict[str, FoldCall] = {}
    copy = nnx.clone(model)
    copy.eval()
    graph, state = nnx.split(copy)

    def traced(state: Any, x: Any) -> Any:
        working = nnx.merge(graph, state)
        owner = _variables(working)

        def labelled(value: Array, given: LayerCall, form: Any) -> tuple[Array, FoldCall]:
            path = tuple(given.name.split("/"))
            owns = all(
                owner.get((collection, *path, name)) is variable.get_value()
                for (collection, name), variable in _own(given.layer).items()
            )
            label = f"normlab.fold.{len(calls)}"
            calls[label] = FoldCall(path, form, owns, value.shape, str(value.dtype))
            return checkpoint_name(value, label), calls[label]

        def handle(given: LayerCall) -> Any:
            if class_of(given.layer) in _LINEAR:
                return labelled(given.proceed(), given, _linear_form(given.layer))[0]
            if not isinstance(given.layer, LAYERS):  # A subclass of a linear layer.
                return given.proceed()
            x, found = labelled(given.x, given, _norm_form(given.layer))
            found.is_norm, found.in_training = True, not given.uses_running_average
            found.is_told_affine = any(
                given.arguments.get(name) is not None for name in ("scale", "bias")
            )
            y = given.proceed(x)
            found.dtype = str(y.dtype)
            return y

        with intercepted(working, handle, (*LAYERS, *_LINEAR)):
            return call(working, x)

    program = jax.make_jaxpr(traced)(state, x).jaxpr
    leaves = jax.tree_util.tree_leaves_with_path(state)
    taken = {
        ("params", *(str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey))): var
        for (keys, _), var in zip(leaves, program.invars, strict=False)
    }
    follow(calls, program, taken)
    return calls


def _norm_form(layer: Any) -> nn.Module:
    """Returns the Linen form of a normalization layer; of a subclass of a class that is none."""
    form, cls = described(layer), class_of(layer)
    if cls.__module__.startswith(("normlab.", "flax.")):
        return form
    own: Any = type(cls.__name__, (type(form),), {})
    return own()


def _linear_form(layer: Any) -> nn.Module:
    """Returns the Linen form of a linear layer, as far as its features go."""
    features = layer.out_features
    if isinstance(layer, nnx.LinearGeneral):
        return nn.DenseGeneral(features, batch_dims=tuple(layer.batch_axis))
    if isinstance(layer, nnx.ConvTranspose):
        kernel = layer.kernel_size
        return nn.ConvTranspose(features, kernel, transpose_kernel=layer.transpose_kernel)
    return nn.Dense(features)


def convert(
    source: nnx.Module,
    target: nnx.Module,
    x: Any = None,
    *,
    optimizer: nnx.Optimizer[Any] | None = None,
    **how: Unpack[How],
) -> Converted:
    """Takes the variables of a trained model over into one with other normalization layers.

    As `normlab.surgery.convert`: normalization layers are paired in their order if both models have
    as many, and by their paths if not. The target is changed in place; what is new keeps the value
    that it has there. Random number generators stay as they are.

    Args:
        source: The trained model.
        target: The same model with other normalization layers.
        x: A batch that both take, for the order of the calls; by default layers are paired in the
            order of their paths.
        optimizer: The optimizer of the source, which stays as it is.
        how: How the models are called: `call` or `method`; see `normlab.surgery.How`.

    Returns:
        The target's variables by collection and path, and what became of each. If an optimizer was
        given, its `optimizer_state` is one of the target, which goes on from the state of that.
    """
    if optimizer is not None:
        check_optimizer(optimizer, "convert")
    before, after = (_found(model, x, how) for model in (source, target))
    old, new = _variables(source), _variables(target)
    changes, origins = carry_over(old, new, before, after)
    going_on: Any = None
    if optimizer is not None:
        carried = _carry(optimizer, source, target, origins)
        has_model = isinstance(optimizer, nnx.ModelAndOptimizer)
        kind: Any = nnx.ModelAndOptimizer if has_model else nnx.Optimizer
        going_on = _with_state(kind(target, optimizer.tx, wrt=optimizer.wrt), carried)
        going_on.step.set_value(optimizer.step.get_value())
        changes += of_optimizer(carried.fates)
    modules = {tuple(map(str, path)): it for path, it in nnx.iter_modules(target)}
    places = {
        (collection, *path, name): variable
        for path, module in modules.items()
        for (collection, name), variable in _own(module).items()
    }
    for path, variable in places.items():
        variable.set_value(new[path])
    return Converted(new, tuple(sorted(changes, key=lambda change: change.path)), going_on)


def _found(model: nnx.Module, x: Any, how: How) -> tuple[Described, ...]:
    """Returns the normalization layers of a model, in the order of their calls if there is a batch.

    Without one, the shape of their inputs stays empty.
    """
    layers = {tuple(map(str, path)): it for path, it in find_layers(model).items()}
    shapes: dict[Path, tuple[int, ...]] = {}
    if x is not None:
        check_batch(x)
        call = calling_of(how)
        graph, state = nnx.split(model)

        def record(given: LayerCall) -> Any:
            shapes.setdefault(tuple(given.name.split("/")), given.x.shape)
            return given.proceed()

        def traced(state: Any, x: Any) -> None:
            working = nnx.merge(graph, state)
            working.eval()
            with intercepted(working, record):
                call(working, x)

        jax.eval_shape(traced, state, x)
    return tuple(
        Described(path, described(layers[path]), shapes.get(path, ())) for path in shapes or layers
    )


def _own(module: nnx.Module) -> dict[tuple[str, str], Any]:
    """Returns the variables of a module itself, by collection and name."""
    return {
        (collection, name): variable
        for name, variable in vars(module).items()
        for kind, collection in _COLLECTIONS.items()
        if isinstance(variable, kind)
    }


def _variables(model: nnx.Module) -> dict[Path, Array]:
    """Returns the values of all variables, by collection and path."""
    return {
        (collection, *map(str, path), name): variable.get_value()
        for path, module in nnx.iter_modules(model)
        for (collection, name), variable in _own(module).items()
    }
