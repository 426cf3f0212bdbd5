"""The weight normalizations for Flax NNX, each by the Linen wrapper of its name."""

# ruff: noqa: D101  (their docstrings are made of those of the Linen wrappers)

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
from flax import linen as nn
from flax import nnx
from flax.nnx.filterlib import Filter, to_predicate

from .. import linen
from ..functional.arguments import shown
from ..linen.shared import check_flag
from .from_linen import FromLinen, is_initializer, settings

_Path = tuple[Any, ...]
_KERNELS = nnx.PathContains("kernel")


class _StandIn(nn.Module):
    """An NNX layer as Linen wrappers see it: a module whose parameters are its weights.

    Attributes:
        weights: The weights by name.
        layer: Called with the weights that the wrapper made of them, and the arguments.
    """

    weights: Mapping[str, Any]
    layer: Callable[..., Any]

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        weights = {
            name: self.param(name, lambda key, value=value: value)
            for name, value in self.weights.items()
        }
        return self.layer(weights, *args, **kwargs)


class WeightWrapper(FromLinen):
    """A Linen module that calls a layer with normalized weights, around an NNX layer.

    Attributes:
        layer_instance: The layer to be called. Its parameters stay as they are.
        variable_filter: The parameters to be normalized, as an NNX filter.
        batch_stats: State of the wrapper, by the path of a parameter and a name.
    """

    _description: ClassVar[str] = """\
The NNX form of `normlab.{name}`, computed by it, around an NNX layer::

    layer = normlab.nnx.{name}(nnx.Linear(8, 4, rngs=rngs), rngs=rngs)
    y = layer(x)

Other than in `flax.nnx`, a call leaves the parameters of the layer as they are, as in Linen,
instead of storing them normalized; and what is learned is an `nnx.Param`, so that it is trained.
Dictionaries hold what belongs to each parameter, by its path: `scales` or `gains`, `batch_stats`.

Args:
    layer_instance: The layer to be called.
    variable_filter: The parameters to be normalized, as an NNX filter.
    promote_dtype: A function that is given a tuple of a weight, as the layer has it, and what is
        learned for it (None for what is not there), and `dtype=`, and returns what to compute with.
    rngs: Gives the wrapper its key; needed where it has variables.
    scale_metadata, gain_metadata: Metadata of the variables.
"""

    # What the Linen module takes when it is initialized.
    _initial_arguments: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with the arguments."""
        return self._call(args, kwargs)

    def _create(
        self,
        layer_instance: nnx.Module,
        *,
        variable_filter: Filter = _KERNELS,
        promote_dtype: Callable[..., Any] | None = None,
        rngs: nnx.Rngs | None = None,
        **given: Any,
    ) -> None:
        if not isinstance(layer_instance, nnx.Module):
            raise TypeError(
                f"{type(self).__name__}: layer_instance is {type(layer_instance).__name__}, but a "
                "layer of Flax NNX was expected, such as nnx.Linear(4, 8, rngs=rngs)."
            )
        if not _is_filter(variable_filter):
            raise ValueError(
                f"{type(self).__name__}: variable_filter={shown(variable_filter)} was given; "
                "expected a filter of Flax NNX, such as nnx.PathContains('kernel') or nnx.Param."
            )
        self.layer_instance = layer_instance
        self.promote_dtype = promote_dtype
        initializers = self._set_fields(given | {"variable_filter": variable_filter})
        weights = self._weights()
        if not weights:
            raise ValueError(
                f"{type(self).__name__}: variable_filter={variable_filter} matches no parameter of "
                f"{type(layer_instance).__name__}, so that nothing would be normalized. Its "
                f"parameters are {', '.join(map(_linen_name, self._weights(nnx.Param)))}."
            )
        key = jax.random.key(0) if rngs is None else rngs.params()
        wrapper = self._wrapper(weights, lambda weights: None, **initializers)
        variables = wrapper.init({"params": key}, **self._initial_arguments)

        paths = {f"layer_instance/{_linen_name(path)}": path for path in weights}
        created: dict[str, dict[_Path, Any]] = {}
        for collection, values in variables.items():
            for name, value in values.items():
                weight, _, kind = name.rpartition("/")
                if weight not in paths:  # but the weights themselves
                    continue
                if collection == "batch_stats":
                    state = created.setdefault("batch_stats", {})
                    state[*paths[weight], kind] = nnx.BatchStat(value)
                else:
                    metadata = given[f"{kind}_metadata"] or {}
                    learned = created.setdefault(f"{kind}s", {})
                    learned[paths[weight]] = nnx.Param(value, **metadata)
        if created and rngs is None:
            raise TypeError(
                f"{type(self).__name__}: rngs is missing, which initializes {', '.join(created)}; "
                "pass for example rngs=nnx.Rngs(0)."
            )
        for kind in self._learned():
            setattr(self, f"{kind}s", nnx.data(created.get(f"{kind}s")))
        self.batch_stats = nnx.data(created.get("batch_stats", {}))

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], update: bool = False) -> Any:
        """Calls the layer with normalized weights; keeps the new state if it is to be updated."""
        weights = self._weights()
        seen: dict[str, Any] = {}
        params: dict[str, Any] = {"layer_instance": seen}
        for path, weight in weights.items():
            name = _linen_name(path)
            learned = {
                f"layer_instance/{name}/{kind}": variable.get_value()
                for kind in self._learned()
                if (variable := (getattr(self, f"{kind}s") or {}).get(path)) is not None
            }
            seen[name], *values = self._promoted(weight.get_value(), *learned.values())
            params |= zip(learned, values, strict=True)
        state = {
            f"layer_instance/{_linen_name(path)}": variable
            for path, variable in self.batch_stats.items()
        }
        kept = {name: variable.get_value() for name, variable in state.items()}
        y, updated = self._wrapper(weights, self._call_layer).apply(
            {"params": params, "batch_stats": kept},
            *args,
            mutable=["batch_stats"] if update else [],
            **kwargs,
        )
        for name, value in updated.get("batch_stats", {}).items():
            state[name].set_value(value)
        return y

    def _call_layer(self, weights: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with other weights than its own."""
        graph, own, others = nnx.split(self.layer_instance, nnx.Param, ...)
        replaced = [
            (path, variable.copy(weights.get(_linen_name(path), variable.get_value())))
            for path, variable in nnx.to_flat_state(own)
        ]
        # All other variables are shared with the layer, so that it keeps what the call changes.
        return nnx.merge(graph, nnx.from_flat_state(replaced), others)(*args, **kwargs)

    def _weights(self, wanted: Filter = None) -> dict[_Path, nnx.Variable[Any]]:
        """Returns the parameters to be normalized by their paths."""
        wanted = self.variable_filter if wanted is None else wanted
        return dict(nnx.to_flat_state(nnx.state(self.layer_instance, nnx.All(nnx.Param, wanted))))

    def _wrapper(
        self, weights: Mapping[_Path, nnx.Variable[Any]], layer: Callable[..., Any], **changes: Any
    ) -> Any:
        """Builds the Linen wrapper around a layer that has only these weights."""
        stand_in = _StandIn(_by_name(weights), layer, parent=None)
        return self._linen(layer_instance=stand_in, **{"variable_filter": None} | changes)

    def _learned(self) -> list[str]:
        """Returns the names of what is learned for a weight."""
        fields = filter(is_initializer, settings(self.linen_module))
        return [field.name.removesuffix("_init") for field in fields]


class ScaledWeightStandardization(WeightWrapper, of=linen.ScaledWeightStandardization): ...


class SpectralNorm(WeightWrapper, of=linen.SpectralNorm):
    _initial_arguments = MappingProxyType({"update_stats": False})

    def __call__(self, x: Any, update_stats: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer.

        Args:
            x: Given to the layer.
            update_stats: Whether the state takes in what this call estimates; by default in
                training, that is where `use_running_average` is false.
            **kwargs: Given to the layer.

        Returns:
            What the layer returns.
        """
        check_flag(self, "update_stats", update_stats)
        if update_stats is None:
            check_flag(self, "use_running_average", self.use_running_average)
            update_stats = not self.use_running_average
        return self._call((x,), kwargs | {"update_stats": update_stats}, update=update_stats)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets what `nnx.view` may set.

        Args:
          use_running_average: Whether calls leave the state as it is.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _create(
        self,
        layer_instance: nnx.Module,
        *,
        variable_filter: Filter = ...,
        update_stats: bool = True,
        promote_dtype: Callable[..., Any] | None = None,
        rngs: nnx.Rngs | None = None,
        **given: Any,
    ) -> None:
        check_flag(self, "update_stats", update_stats)
        self.use_running_average = not update_stats  # set by `train()` and `eval()`
        given |= {"variable_filter": variable_filter, "promote_dtype": promote_dtype, "rngs": rngs}
        super()._create(layer_instance, **given)


class WeightNorm(WeightWrapper, of=linen.WeightNorm):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with the arguments.

        The first call with `data_dependent_init` sets scale and bias by its batch, and clears the
        attribute, which takes a call outside of functional transformations.
        """
        if not self.data_dependent_init:
            return self._call(args, kwargs)
        weights = self._weights()
        layer = weights | self._weights(lambda path, _: path == ("bias",))
        scale = next(iter((self.scales or {}).values()), None)
        wrapper = self._wrapper(
            layer,
            self._call_layer,
            data_dependent_init=True,
            variable_filter=[f"layer_instance/{_linen_name(path)}" for path in weights],
            scale_init=lambda *_: scale and scale.get_value(),
        )
        # Linen initializes by a batch: scale and bias are what it makes of the present ones.
        y, variables = wrapper.init_with_output(jax.random.key(0), *args, **kwargs)
        for name, value in variables["params"].items():
            if scale and name.endswith("/scale"):
                scale.set_value(value)
        if ("bias",) in layer:
            layer["bias",].set_value(variables["params"]["layer_instance"]["bias"])
        self.data_dependent_init = False
        return y

    def _linen(self, **changes: Any) -> Any:
        # Linen would initialize by whatever it is initialized with.
        return super()._linen(**{"data_dependent_init": False} | changes)


class WeightStandardization(WeightWrapper, of=linen.WeightStandardization): ...


def _is_filter(value: Any) -> bool:
    if isinstance(value, nn.Module | nnx.Module):  # which can be called, as filters can
        return False
    try:
        to_predicate(value)
    except (TypeError, ValueError):
        return False
    return True


def _linen_name(path: _Path) -> str:
    return "/".join(map(str, path))


def _by_name(weights: Mapping[_Path, nnx.Variable[Any]]) -> dict[str, Any]:
    return {_linen_name(path): variable.get_value() for path, variable in weights.items()}
