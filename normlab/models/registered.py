"""The models that a study can name: normlab's, and a user's own by registration."""

from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import Field, create_model, model_validator

from .. import linen
from ..modules import enter
from ..registration import (
    arguments,
    check_arguments,
    check_name,
    record_fields,
    refuse_taken,
    word_for,
)
from ..spec import Spec
from ..user_code import with_place
from .adapt import kind_of, network_of
from .block import Norm, Takes
from .cnn import CNNSpec
from .gpt import GPTSpec
from .mlp import MLPSpec
from .network import Network
from .resnet import ResNetSpec
from .vit import ViTSpec

# What a study fills in, and what Flax keeps for itself.
_FILLED_IN = {
    "norm": "the constructor of the norm layers",
    "classes": "the number of outputs",
    "rngs": "the random streams",
    "dtype": "the type to compute in",
    "parent": "",
    "name": "",
}


class RegisteredModelSpec(Spec):
    """A model of the user's own in a study; fields as the arguments of what makes it."""

    maker: ClassVar[Any]
    adapter: ClassVar[type[Network]]
    takes: ClassVar[Takes] = "either"
    name: str

    def build(self, norm: Norm, classes: int, dtype: Any) -> Any:
        """Returns the model with the given norm, as `network_of` takes it."""
        given = self.model_dump(exclude={"name"}, exclude_unset=True)
        if "dtype" in _names(self.maker):
            given["dtype"] = dtype
        elif dtype != "float32":
            raise ValueError(
                f"{self.maker.__name__} has no {word_for(self.maker)} dtype, so that it cannot "
                f"compute in {dtype}; add one, or leave out train.precision."
            )
        return self.adapter.made(self.maker, norm, {**given, "classes": classes})

    @model_validator(mode="after")
    def _let_the_model_check(self) -> "RegisteredModelSpec":
        try:
            network_of(self.build(linen.Identity, 2, "float32")).try_out()
        except (Exception, SystemExit) as error:  # of which pydantic would let most through
            raise ValueError(with_place(error)) from error
        return self


# What a study knows without registration, for type checkers.
ModelSpec = Annotated[
    MLPSpec | CNNSpec | ResNetSpec | ViTSpec | GPTSpec, Field(discriminator="name")
]

MODELS: dict[str, type[Any]] = {
    "mlp": MLPSpec,
    "cnn": CNNSpec,
    "resnet": ResNetSpec,
    "vit": ViTSpec,
    "gpt": GPTSpec,
}


def register_model(name: str, model: Any = None) -> Any:
    """Adds a model to those that a study can name, as a call or as a decorator.

    Usage::

        @normlab.register_model("mine")
        class Mine(nn.Module):
            norm: Callable
            classes: int
            width: int = 64

            @nn.compact
            def __call__(self, x, *, train):
                x = nn.Dense(self.width)(x.reshape(len(x), -1))
                x = nn.relu(self.norm()(x, use_running_average=not train))
                return nn.Dense(self.classes)(x)

    A configuration can then say `model: {name: mine, width: 3}` once it names the module, as in
    `modules: [my_models]`. Fields of plain types (numbers, words, truth values, lists of them) can
    be set there and are checked against their annotations. The study fills in `norm`, the
    constructor of the norm layers, `classes`, the number of outputs, and `dtype`, if there is such
    a field, the type to compute in (`train.precision`). What the model draws in training, as
    `flax.linen.Dropout` does, it draws from the stream "dropout".

    A class of `flax.nnx.Module` is registered alike, with arguments of its constructor in the
    place of fields, and `rngs`. Its norm layers are those of `normlab.nnx`, constructed as
    `norm(features, rngs=rngs)`. Each step calls the module after `train()`, each evaluation after
    `eval()`; every `nnx.Param` is trained, other variables are kept from step to step, and random
    streams get their keys from the step::

        @normlab.register_model("mine")
        class Mine(nnx.Module):
            def __init__(self, *, norm, classes: int, width: int = 64, rngs: nnx.Rngs):
                self.dense = nnx.Linear(784, width, rngs=rngs)
                self.norm = norm(width, rngs=rngs)
                self.head = nnx.Linear(width, classes, rngs=rngs)

            def __call__(self, x):
                x = self.dense(x.reshape(len(x), -1))
                return self.head(nnx.relu(self.norm(x)))

    So is a function that returns a pair `(init, apply)`, and gets norm layers as such pairs::

        @normlab.register_model("mine")
        def mine(*, norm, classes: int, scale: float = 0.01):
            init_norm, apply_norm = norm()

            def init(key, inputs):
                x = inputs.reshape(len(inputs), -1)
                params, state = init_norm(key, x)
                weights = scale * jax.random.normal(key, (x.shape[-1], classes))
                return {"norm": params, "weights": weights}, state

            def apply(params, state, inputs, *, train, key):
                x = inputs.reshape(len(inputs), -1)
                x, state = apply_norm(params["norm"], state, x, train=train)
                return x @ params["weights"], state

            return init, apply

    What is drawn in training is drawn from `key`, which is None in evaluation.

    What decays, is scaled at initialization and left out of adaptive clipping is told by
    `normlab.Roles`: a class may have a method `parameter_roles(params)` that returns these, and a
    function may return it as a third function. Without, a parameter of a module called "kernel"
    outside of norm layers is a weight, and the head is the linear layer that a Linen module calls
    last or the constructor of an NNX module sets last; of a pair, arrays of two axes or more are
    weights, and there is no head.

    Args:
        name: How configurations call it.
        model: A class of Flax modules, or a function, that takes `norm` and `classes`, and all
            else by default. What it makes is called with a batch of inputs, images (N, H, W, C)
            or integers, a Linen module with `train` too, and returns the outputs, as logits
            (N, classes).

    Returns:
        The model, or a decorator that returns it.

    Raises:
        ValueError: If the name is none or taken, or the model cannot stand in a study.
    """
    check_name("register_model", name)
    if model is None:
        return partial(register_model, name)
    told, taken = f"register_model({name!r})", MODELS.get(name)
    refuse_taken("register_model", name, taken and getattr(taken, "maker", taken), model)
    kind = kind_of(told, model)
    kind.check(told, model)
    check_arguments(told, model, filled_in=_FILLED_IN, record=RegisteredModelSpec)
    needed = kind.arguments
    lacking = [it for it in needed if it not in _names(model)]
    if lacking:
        without = f"no {word_for(model)} "
        raise ValueError(
            f"{told}: {model.__qualname__} has {' and '.join(without + it for it in lacking)}; a "
            f"study fills in {', '.join(f'{it}, {_FILLED_IN[it]}' for it in needed)}."
        )
    names: Any = Literal[name]
    settable = record_fields(model, _FILLED_IN)
    spec = create_model(model.__name__, __base__=RegisteredModelSpec, name=(names, ...), **settable)
    spec.maker, spec.adapter = staticmethod(model), kind  # no function becomes a method
    enter(MODELS, name, spec)
    return model


def model_spec_type() -> Any:
    """Returns the type that validates a model: one record per model, told by `name`."""
    return Annotated[Union[tuple(MODELS.values())], Field(discriminator="name")]  # noqa: UP007


def _names(maker: Any) -> list[str]:
    return [argument.name for argument in arguments(maker)]
