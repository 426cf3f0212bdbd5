"""What the wrappers have in common: a layer is called with some of its parameters normalized."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from flax.core import meta
from jaxtyping import Array

from .shared import as_array, other_axes, resolve_axes


def call_with_weights(
    wrapper: Any,
    normalize: Callable[[str, Array], Array],
    *args: Any,
    stores_normalized: bool,
    **kwargs: Any,
) -> Any:
    """Calls the layer of a wrapper with normalized weights.

    Args:
        wrapper: A module with the fields `layer_instance` and `variable_filter`.
        normalize: Given the path of a parameter, from the name of the layer on, and its value,
            returns what the layer is to see of it.
        *args: Given to the layer.
        stores_normalized: Whether initialization stores the weights normalized, as Flax does, or as
            the layer drew them.
        **kwargs: Given to the layer.

    Returns:
        What the layer returns.

    Raises:
        ValueError: If the filter matches no parameter of the layer, or the layer has none.
    """
    layer, wanted = wrapper.layer_instance, wrapper.variable_filter
    wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted or ())

    def is_box(value):  # of a parameter with the axes it is sharded along
        return isinstance(value, meta.AxisMetadata)

    def name_of(path, value):
        name = f"{layer.name}/{jax.tree_util.keystr(path[1:], simple=True, separator='/')}"
        # As in Flax, the name has the step into the box, also once the variables are unboxed.
        in_box = f"{name}/value"
        names = itertools.chain.from_iterable(wrapper.variables.values())
        boxed = is_box(value) or any(known.startswith(f"{in_box}/") for known in names)
        return in_box if boxed else name

    def seen_by_layer(variables):
        paths = {
            path: name_of(path, value)
            for path, value in jax.tree_util.tree_leaves_with_path(variables, is_leaf=is_box)
        }
        matched = {
            path: name
            for path, name in paths.items()
            if not wanted or any(part in name for part in wanted)
        }
        if paths and not matched:
            raise ValueError(
                f"{type(wrapper).__name__}: variable_filter={wanted} matches none of the "
                f"parameters {', '.join(paths.values())}, so that nothing would be normalized. "
                "Name a part of the path of one of them."
            )

        def seen(path, value):
            if path not in matched:
                return value
            name = matched[path]
            return jax.tree.map(
                lambda weight: normalize(name, as_array(wrapper, name, weight)), value
            )

        return jax.tree_util.tree_map_with_path(seen, variables, is_leaf=is_box)

    initializing = wrapper.is_initializing()
    if initializing and not stores_normalized:
        layer(*args, **kwargs)
    y = nn.map_variables(
        lambda layer: layer(*args, **kwargs),
        "params",
        seen_by_layer,
        init=initializing and stores_normalized,
    )(layer)
    if not layer.variables.get("params"):
        raise ValueError(
            f"{type(wrapper).__name__}: {type(layer).__name__} has no parameters, so that nothing "
            "would be normalized. Wrap a layer that has weights, such as Dense or Conv."
        )
    return y


def split_axes(wrapper: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the axes of a weight along which its outputs lie, and the others."""
    axes, name = wrapper.feature_axes, f"{type(wrapper).__name__}: feature_axes"
    features = () if axes is None else resolve_axes(axes, rank, name)
    return features, other_axes(features, rank)
