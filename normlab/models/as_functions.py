"""A plain pair of functions as training sees it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .network import Network, Roles, kept_state, some_parameters

Pair = tuple[Callable[..., Any], Callable[..., Any]]


class Functions(NamedTuple):
    """A model as two functions.

    Attributes:
        init: Called as `init(key, inputs)`; returns parameters and state, trees of arrays.
        apply: Called as `apply(params, state, inputs, train=, key=)`; returns the outputs and the
            state after. The key is None in evaluation.
        parameter_roles: Tells of parameters what they are for; None for the default.
        name: Of the model, for messages.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    parameter_roles: Callable[[Any], Roles] | None = None
    name: str = "the model"


class FunctionsNetwork(Network):
    """A pair `(init, apply)` as pure functions.

    Unless a third function says otherwise, called with the parameters to return a `Roles`, the
    weights are the arrays of two axes or more, nothing belongs to norm layers, and there is no
    head.

    Args:
        model: The pair, or the three.
    """

    def __init__(self, model: Functions):
        self.model = model
        self.name = model.name

    @classmethod
    def is_made_by(cls, maker: Any) -> bool:
        """Tells whether something is a function, which may return a pair."""
        return inspect.isfunction(maker)

    @classmethod
    def check(cls, told: str, maker: Any) -> None:
        """Refuses nothing: what a function returns is known when it is called."""

    @classmethod
    def made(cls, maker: Any, norm: Callable[..., Any], given: Mapping[str, Any]) -> Functions:
        """Returns the pair, once it has been found to be one.

        Raises:
            ValueError: If the function returns something else.
        """
        made = maker(**given, norm=norm_for_functions(norm))
        name = maker.__qualname__
        if not isinstance(made, tuple) or len(made) not in (2, 3) or not all(map(callable, made)):
            raise ValueError(
                f"{name} returned {_told(made)}; expected two functions, (init, apply), or "
                "(init, apply, parameter_roles)."
            )
        lacking = [it for it in ("train", "key") if not _takes(made[1], it)]
        if lacking:
            raise ValueError(
                f"{name}: apply must take {' and '.join(lacking)} by name; it is called as "
                "apply(params, state, inputs, train=True, key=key)."
            )
        return Functions(made[0], made[1], made[2] if len(made) > 2 else None, name)

    def init(self, key: PRNGKeyArray, inputs: Array) -> tuple[Any, Any]:
        """Returns parameters and state.

        Raises:
            ValueError: If it returns something else, or there are no parameters.
        """
        made = self.model.init(key, inputs)
        params, state = self._two(made, "init", "parameters and state, {} for none")
        some_parameters(self.name, params)
        return jax.tree.map(jnp.asarray, (params, state))

    def train(self, params: Any, state: Any, inputs: Array, key: PRNGKeyArray) -> tuple[Any, Any]:
        """Returns the outputs in training, and the state after.

        Raises:
            ValueError: If it returns something else, or a state unlike the one before.
        """
        output, after = self._applied(params, state, inputs, train=True, key=key)
        return output, kept_state(self.name, state, after)

    def evaluate(self, params: Any, state: Any, inputs: Array) -> Any:
        """Returns the outputs in evaluation."""
        output, _ = self._applied(params, state, inputs, train=False, key=None)
        return output

    def _roles(self, params: Any) -> Any:
        """Tells what the parameters are for."""
        if self.model.parameter_roles is not None:
            return self.model.parameter_roles(params)
        none = jax.tree.map(lambda _: False, params)
        return Roles(jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params), none, none)

    def _applied(self, *arguments: Any, **named: Any) -> tuple[Any, Any]:
        returned = self.model.apply(*arguments, **named)
        return self._two(returned, "apply", "the outputs and the state after")

    def _two(self, returned: Any, function: str, expected: str) -> tuple[Any, Any]:
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise ValueError(
                f"{self.name}: {function} returned {_told(returned)}; expected two things, "
                f"{expected}."
            )
        one, other = returned
        return one, other


def norm_for_functions(
    norm: Callable[..., Any],
) -> Callable[[], Pair]:
    """Returns what makes norm layers as pairs.

    Args:
        norm: Constructor of the Linen layers.
    """

    def layer() -> Pair:
        module = norm()

        def init(key: PRNGKeyArray, inputs: Array) -> tuple[Any, Any]:
            variables = module.init(key, inputs, use_running_average=False)
            return variables.get("params", {}), variables.get("batch_stats", {})

        def apply(params: Any, state: Any, inputs: Array, *, train: bool) -> tuple[Array, Any]:
            output, updated = module.apply(
                {"params": params, "batch_stats": state},
                inputs,
                use_running_average=not train,
                mutable=["batch_stats"] if train else [],
            )
            return output, updated.get("batch_stats", state)

        return init, apply

    return layer


def _takes(function: Callable[..., Any], argument: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(
        it.kind == it.VAR_KEYWORD or (it.name == argument and it.kind in named) for it in parameters
    )


def _told(returned: Any) -> str:
    if isinstance(returned, tuple | list):
        kinds = ", ".join(type(it).__name__ for it in returned)
        return f"{len(returned)} things ({kinds})"
    return f"a {type(returned).__name__}"
