"""What training sees of a model, whatever it is written in."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray


class Roles(NamedTuple):
    """What the parameters are for: trees of truth values, of the structure of the parameters.

    A model of one's own may say it, by a method `parameter_roles(params)` that returns this.

    Attributes:
        weights: What linear maps outside of norm layers multiply by: it decays, and is scaled at
            initialization.
        norms: What belongs to norm layers: variants differ in it.
        head: What belongs to the map that makes the outputs: adaptive clipping leaves it out.
    """

    weights: Any
    norms: Any
    head: Any


class Network(ABC):
    """A model as pure functions of its parameters and its state.

    Attributes:
        model: The model itself.
        name: Of the model, for messages.
        arguments: What a study gives to whatever makes models of this kind.
    """

    model: Any
    name: str
    arguments: ClassVar[tuple[str, ...]] = ("norm", "classes")

    @classmethod
    @abstractmethod
    def is_made_by(cls, maker: Any) -> bool:
        """Tells whether a class or function that a user registers makes models of this kind."""

    @classmethod
    @abstractmethod
    def check(cls, told: str, maker: Any) -> None:
        """Refuses a class or function beside whose arguments something is wrong.

        Args:
            told: How the message begins.
            maker: The class or function.

        Raises:
            ValueError: That says what.
        """

    @classmethod
    @abstractmethod
    def made(cls, maker: Any, norm: Callable[..., Any], given: Mapping[str, Any]) -> Any:
        """Returns the model that a class or function makes.

        Args:
            maker: The class or function.
            norm: Constructor of the Linen norm layers, which the model gets in its own form.
            given: All other arguments.
        """

    def try_out(self) -> None:  # noqa: B027  (most have nothing to try)
        """Finds out what is wrong with the model and can be found out without inputs.

        Raises:
            Exception: Whatever the model's own code raises.
        """

    @abstractmethod
    def init(self, key: PRNGKeyArray, inputs: Array) -> tuple[Any, Any]:
        """Returns parameters and state; what is drawn is drawn from the key.

        Raises:
            ValueError: If the model has what no step would keep, or nothing to train.
        """

    @abstractmethod
    def train(self, params: Any, state: Any, inputs: Array, key: PRNGKeyArray) -> tuple[Any, Any]:
        """Returns the outputs in training, and the state after."""

    @abstractmethod
    def evaluate(self, params: Any, state: Any, inputs: Array) -> Any:
        """Returns the outputs in evaluation."""

    def holding(self, params: Any, state: Any) -> Any:
        """Returns the model as its user has it, with values where it is to hold them itself."""
        del params, state
        return self.model

    def roles(self, params: Any) -> Roles:
        """Tells what the parameters are for, once `init` has been traced.

        Raises:
            ValueError: If the model says something else.
        """
        told: Any = self._roles(params)
        structure = jax.tree.structure(params)
        if not isinstance(told, Roles) or any(jax.tree.structure(it) != structure for it in told):
            given = "other trees" if isinstance(told, Roles) else f"a {type(told).__name__}"
            raise ValueError(
                f"{self.name}: parameter_roles returned {given}; expected normlab.Roles(weights, "
                "norms, head), each a tree of truth values with the structure of the parameters, "
                "as jax.tree.map(lambda leaf: leaf.ndim > 1, params)."
            )
        return told

    @abstractmethod
    def _roles(self, params: Any) -> Any:
        """Tells what the parameters are for, as the model has it or by default."""


def marked(params: Any, holds: Callable[[tuple[str, ...]], bool]) -> Any:
    """Returns a tree of truth values: what holds of the path of each parameter."""

    def of_leaf(path: Any, _: Any) -> bool:
        return holds(tuple(str(getattr(entry, "key", entry)) for entry in path))

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def some_parameters(name: str, params: Any) -> Any:
    """Returns the parameters of a model.

    Raises:
        ValueError: If there are none, or some have no gradients.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"{name} has no parameters; expected some, for there is training.")
    for path, leaf in leaves:
        dtype: Any = getattr(leaf, "dtype", type(leaf))
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(
                f"{name}: the parameter {_told(path)} is {getattr(dtype, '__name__', dtype)}; "
                "expected floating numbers, which gradients move. Keep what is not trained in the "
                "state, or in none of the two."
            )
    return params


def kept_state(name: str, before: Any, after: Any) -> Any:
    """Returns the state of a model after a step, which the next step must be able to start from.

    Raises:
        ValueError: If it is of another structure, or some of it of another shape or dtype.
    """
    given, returned = jax.tree.structure(before), jax.tree.structure(after)
    if given != returned:
        raise ValueError(
            f"{name} was given a state {given} and returned {returned}; expected the same "
            "structure at every step, as it is initialized with."
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in pairs:
        then, now = (f"{jnp.result_type(it)}{[*jnp.shape(it)]}" for it in (old, new))
        if then != now:
            raise ValueError(
                f"{name}: {_told(path)} of its state is {then} before a step and {now} after it; "
                "expected the same at every step: initialize it so, or convert it, as with "
                ".astype."
            )
    return after


def _told(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(all of it)"
