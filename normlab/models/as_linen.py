"""A Flax Linen module as training sees it."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
from jaxtyping import Array, PRNGKeyArray

from ..registration import check_call
from .network import Network, Roles, kept_state, marked, some_parameters

# The modules whose last call makes the outputs.
_LINEAR = (nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv, nn.ConvTranspose, nn.ConvLocal)


class LinenNetwork(Network):
    """A Linen module as pure functions.

    Unless the model has a method `parameter_roles`, its weights are the parameters called
    `kernel` outside of its norm layers, which are those of the class of its field `norm`; the head
    is the linear layer that is called last.

    Args:
        model: The module, whose call takes inputs and `train`.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.name = type(model).__name__
        self._norms: set[tuple[str, ...]] = set()
        self._head: tuple[str, ...] = ()

    @classmethod
    def is_made_by(cls, maker: Any) -> bool:
        """Tells whether a class is one of Linen modules."""
        return isinstance(maker, type) and issubclass(maker, nn.Module)

    @classmethod
    def check(cls, told: str, maker: Any) -> None:
        """Refuses a class whose call does not take `train`."""
        check_call(told, maker, "train", "which tells training from evaluation")

    @classmethod
    def made(cls, maker: Any, norm: Callable[..., Any], given: Mapping[str, Any]) -> nn.Module:
        """Returns the module."""
        return maker(**given, norm=norm)

    def init(self, key: PRNGKeyArray, inputs: Array) -> tuple[Any, Any]:
        """Returns parameters and state.

        Raises:
            ValueError: If the model has variables that no step would keep, or no parameters.
        """
        with nn.intercept_methods(self._note):
            variables: Any = self.model.init({"params": key, "dropout": key}, inputs, train=True)
        if others := sorted(variables.keys() - {"params", "batch_stats"}):
            raise ValueError(
                f"{self.name} has variables in {', '.join(others)}; expected params and "
                "batch_stats alone, which a study keeps from step to step. Keep what is not "
                "trained in batch_stats, as in self.variable('batch_stats', ...)."
            )
        params = some_parameters(self.name, variables.get("params"))
        return params, variables.get("batch_stats", {})

    def train(self, params: Any, state: Any, inputs: Array, key: PRNGKeyArray) -> tuple[Any, Any]:
        """Returns the outputs in training, and the state after.

        Raises:
            ValueError: If that is no longer like the one before.
        """
        output, updated = self.model.apply(
            {"params": params, "batch_stats": state},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return output, kept_state(self.name, state, updated.get("batch_stats", {}))

    def evaluate(self, params: Any, state: Any, inputs: Array) -> Any:
        """Returns the outputs in evaluation."""
        return self.model.apply({"params": params, "batch_stats": state}, inputs, train=False)

    def _roles(self, params: Any) -> Any:
        """Tells what the parameters are for, once `init` has been traced."""
        if own := getattr(self.model, "parameter_roles", None):
            return own(params)

        def is_norm(path: tuple[str, ...]) -> bool:
            return any(path[: len(norm)] == norm for norm in self._norms)

        return Roles(
            weights=marked(params, lambda path: path[-1] == "kernel" and not is_norm(path)),
            norms=marked(params, is_norm),
            head=marked(
                params, lambda path: bool(self._head) and path[: len(self._head)] == self._head
            ),
        )

    def _note(self, call, arguments, named, context) -> Any:
        """Takes note of where in the model its norm layers and its last linear layer are."""
        # A layer that is called by itself, as inside of an NNX module, has no place in the model.
        if path := context.module.path:
            norm = getattr(self.model, "norm", None)
            norm = getattr(norm, "func", norm)
            if isinstance(norm, type) and isinstance(context.module, norm):
                self._norms.add(path)
            elif isinstance(context.module, _LINEAR):
                self._head = path
        return call(*arguments, **named)
