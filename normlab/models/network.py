"""What training sees of a model, whatever it is written in."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

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
    """

    model: Any
    name: str

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

    @abstractmethod
    def roles(self, params: Any) -> Roles:
        """Tells what the parameters are for, once `init` has been traced."""
