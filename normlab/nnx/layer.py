"""The NNX form of a Linen normalization layer."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array

from ..functional.arguments import shown, whole_number
from ..linen.shared import as_array, check_flag, resolve_axes
from .from_linen import FromLinen, is_initializer, settings, variables_explained


class Layer(FromLinen):
    """A Linen normalization layer as an NNX module.

    One line makes the NNX form of any Linen layer that is called like those of normlab::

        class MyNorm(normlab.nnx.Layer, of=my_layers.MyNorm): ...

    Attributes:
        num_features: Size of the feature axis, or sizes of the feature axes.
    """

    _description: ClassVar[str] = """\
The NNX form of `normlab.{name}`: its fields, its variables and its numbers, computed by it::

    layer = normlab.nnx.{name}(64, rngs=nnx.Rngs(0))
    y = layer(x)

Fields are attributes, and setting one takes effect at the next call. What is learned is an
`nnx.Param`; what is kept of the batches is an `nnx.BatchStat` of at least float32, and moves at
every call that does not use the running average. Where a variable has the name of a field, its
attribute is that name after `learned_`.

Args:
    num_features: Size of the feature axis, or sizes of the feature axes in the order of the input.
    use_running_average: Whether to normalize by the running statistics: `eval()` sets it, `train()`
        clears it, an argument of the call goes before it.
    promote_dtype: As in `flax.nnx`, a function that is given a tuple of the input, the running mean
        and variance of a layer that has them, scale, bias and other parameters (None for one that
        is not there), and `dtype=`, and returns what to compute with. By default dtypes are those
        of the Linen layer: statistics of at least float32.
    rngs: Gives each parameter its key; needed where there are any.
    scale_metadata, bias_metadata: Metadata of the variables.
"""

    def __call__(
        self,
        x: ArrayLike,
        use_running_average: Any = None,
        *,
        mask: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> Array:
        """Normalizes the input and, by batch statistics, updates the running ones.

        Args:
            x: Input with `num_features` features.
            use_running_average: Whether to normalize by the running statistics; by default what the
                attribute says.
            mask: Broadcastable to the input; true where a value counts in the statistics.
            scale: Used instead of the learned scale: of the shape of the features, or of the rank
                of the input and broadcastable to it.
            bias: Used instead of the learned bias, likewise.

        Returns:
            The normalized input, of the same shape.

        Raises:
            ValueError: If the input has other features than the layer, or an array stands in the
                place of `use_running_average`.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        check_flag(self, "use_running_average", use_running_average)
        x = as_array(self, "x", x)
        self._check(x.shape)
        variables: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
        for name, variable in vars(self).items():
            if isinstance(variable, nnx.Variable):
                collection = "batch_stats" if isinstance(variable, nnx.BatchStat) else "params"
                variables[collection][name.removeprefix("learned_")] = variable.get_value()
        given = {"mask": mask, "scale": scale, "bias": bias}
        if self.promote_dtype is not None:
            x = self._promote(x, variables, given, bool(use_running_average))
        captured = hasattr(self, "__captures__")  # by `nnx.capture`
        # Statistics that stay are not written, so that a layer in evaluation can be used within
        # transformations that know nothing of it.
        mutable = ["batch_stats"] * (not use_running_average) + ["intermediates"] * captured
        with variables_explained(self):
            y, updated = self._linen(use_running_average=None).apply(
                variables,
                x,
                use_running_average,
                **{name: value for name, value in given.items() if value is not None},
                mutable=mutable,
            )
        for name, value in updated.get("batch_stats", {}).items():
            # As in Flax, what is kept of a batch is a constant to differentiation.
            value = jax.lax.stop_gradient(value)
            variable: Any = getattr(self, self._attribute(name), None)
            if isinstance(variable, nnx.Variable):
                variable.set_value(value)  # Unlike `variable[...] = value`, it casts nothing.
            else:  # A number of updates, which a field that was set after construction asks for.
                setattr(self, self._attribute(name), nnx.BatchStat(value))
        for name, values in updated.get("intermediates", {}).items():
            for value in values:
                self.sow(nnx.Intermediate, name, value)
        return y

    def _promote(
        self,
        x: Array,
        variables: dict[str, dict[str, Any]],
        given: dict[str, Any],
        evaluates: bool,
    ) -> Array:
        """Lets `promote_dtype` convert the input, which is returned, the variables and `given`."""
        params, state = variables["params"], variables["batch_stats"]
        kept = [name for name in ("mean", "var") if name in state]
        learnable = ("scale", "bias", *params)
        fields = {field.name for field in settings(self.linen_module)}
        learned = [n for n in dict.fromkeys(learnable) if n in params or f"{n}_init" in fields]
        used = {n: params.get(n) if given.get(n) is None else given[n] for n in learned}
        y, *promoted = self._promoted(x, *(state[n] for n in kept), *used.values())
        statistics, values = promoted[: len(kept)], promoted[len(kept) :]
        if evaluates:  # As in Flax, updates start from the statistics as they are kept.
            for name, value in zip(kept, statistics, strict=True):
                state[name] = value.astype(jnp.promote_types(value.dtype, jnp.float32))
        for name, value in zip(used, values, strict=True):
            if value is not None:
                (params if given.get(name) is None else given)[name] = value
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets what `nnx.view` may set.

        Args:
          use_running_average: Whether to normalize by the running statistics.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    @property
    def includes_activation(self) -> bool:
        """Whether the layer contains its activation, so that no other should follow."""
        return getattr(self._linen(), "includes_activation", False)

    def _create(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        promote_dtype: Callable[..., Any] | None = None,
        rngs: nnx.Rngs | None = None,
        **given: Any,
    ) -> None:
        sizes = _as_tuple(num_features)
        is_size = whole_number(1)
        if not sizes or not all(map(is_size, sizes)) or not is_size(math.prod(sizes)):
            raise ValueError(
                f"{type(self).__name__}: num_features={shown(num_features)} was given; expected a "
                "positive whole number below 2^31, or several of them for several feature axes."
            )
        check_flag(self, "use_running_average", use_running_average)
        several = isinstance(num_features, Sequence)
        self.num_features = tuple(num_features) if several else num_features
        self.use_running_average = use_running_average
        self.promote_dtype = promote_dtype
        initializers = self._set_fields(given | {"use_running_average": use_running_average})
        # A named axis is there at the call only, and shapes do not depend on it.
        changes = {"use_running_average": None, "axis_name": None, "axis_index_groups": None}
        layer = self._linen(**initializers, **changes)
        sample = self._sample()

        boxes: dict[str, nnx.VariableMetadata[Any]] = {}
        any_keys = [jax.random.key(0)] * (len(given) + 1)
        declared = jax.eval_shape(lambda: _initialize(layer, sample, any_keys, boxes))
        names = declared.get("params", {})
        if names and rngs is None:
            raise TypeError(
                f"{type(self).__name__}: rngs is missing, which initializes {', '.join(names)}; "
                "pass for example rngs=nnx.Rngs(0)."
            )
        # One key for each parameter, as Flax draws them: a model that shares its rngs among its
        # layers starts from the same weights.
        keys = [rngs.params() for _ in names] if rngs is not None else []
        variables = _initialize_compiled(layer, sample, keys)

        for initializer in initializers:  # As in Flax, a parameter that is not learned is None.
            setattr(self, self._attribute(initializer.removesuffix("_init")), nnx.data(None))
        for name, value in variables.get("params", {}).items():
            if name in boxes:
                value = dataclasses.replace(boxes[name], raw_value=value)
            metadata = given.get(f"{name}_metadata") or {}
            setattr(self, self._attribute(name), nnx.Param(value, **metadata))
        for name, value in variables.get("batch_stats", {}).items():
            setattr(self, self._attribute(name), nnx.BatchStat(value))

    def _attribute(self, name: str) -> str:
        """Returns the attribute that holds a variable."""
        fields = {field.name for field in settings(self.linen_module)}
        return f"learned_{name}" if name in fields else name

    def _feature_axes(self, rank: int) -> tuple[int, ...]:
        name = "axis" if hasattr(self, "axis") else "feature_axes"
        return resolve_axes(getattr(self, name, -1), rank, f"{type(self).__name__}: {name}")

    def _check(self, shape: tuple[int, ...]) -> None:
        features = tuple(shape[axis] for axis in self._feature_axes(len(shape)))
        if features != _as_tuple(self.num_features):
            raise ValueError(
                f"{type(self).__name__}: the layer has num_features={self.num_features}, but the "
                f"input of shape {shape} has {features}. Give the number of features of the input, "
                "or name the axis that holds them."
            )

    def _sample(self) -> jax.ShapeDtypeStruct:
        """Describes an input that the layer can be initialized with."""
        named = {
            name: _as_tuple(getattr(self, name, None))
            for name in ("axis", "feature_axes", "reduction_axes")
        }
        rank = max((-a if a < 0 else a + 1 for axes in named.values() for a in axes), default=1)
        # Reduced axes that are counted from the front may have to end with the last of the input.
        if all(axis < 0 for axis in named["reduction_axes"]):
            rank = max(rank, 4)
        axes, sizes = self._feature_axes(rank), _as_tuple(self.num_features)
        if len(axes) != len(sizes):
            raise ValueError(
                f"{type(self).__name__}: num_features={self.num_features} gives {len(sizes)} sizes "
                f"for {len(axes)} feature axes; give one for each, such as num_features=(8, 16)."
            )
        shape = [2] * rank
        for axis, size in zip(axes, sizes, strict=True):
            shape[axis] = size
        # Running statistics have the precision of the input, here taken to be the parameters'.
        dtype = jnp.promote_types(getattr(self, "param_dtype", jnp.float32), jnp.float32)
        return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _initialize(
    layer: nn.Module,
    sample: jax.ShapeDtypeStruct,
    keys: list[Array],
    boxes: dict[str, nnx.VariableMetadata[Any]] | None = None,
) -> Any:
    """Initializes a Linen layer.

    Args:
        layer: The layer.
        sample: What its input is like.
        keys: For the initializers, one each, in the order that they are called in; the last one is
            for parameters without.
        boxes: Takes what `nnx.with_metadata` and its like put around initial values.

    Returns:
        The Linen variables.
    """
    remaining = iter(keys)

    def with_key(name, initializer):
        def initialize(key, *shape_and_dtype):
            del key
            value = initializer(next(remaining), *shape_and_dtype)
            if not isinstance(value, nnx.VariableMetadata):
                return value
            if boxes is not None:
                boxes[name] = value
            return value.raw_value

        return initialize

    initializers: dict[str, Any] = {
        field.name: with_key(field.name.removesuffix("_init"), getattr(layer, field.name))
        for field in settings(type(layer))
        if is_initializer(field) and getattr(layer, field.name)
    }
    return layer.clone(**initializers).init(
        {"params": keys[-1]} if keys else {},
        jnp.zeros(sample.shape, sample.dtype),
        False,  # use_running_average, by place as at the call
    )


# Compiled once for all layers alike, and without the computation on the sample.
_initialize_compiled = jax.jit(_initialize, static_argnums=(0, 1))
