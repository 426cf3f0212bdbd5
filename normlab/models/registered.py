"""The models that a study can name: normlab's, and a user's own by registration."""

from dataclasses import fields
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Union

from flax import linen as nn
from pydantic import Field, create_model, model_validator

from .. import linen
from ..modules import enter
from ..registration import check_module, check_name, record_fields, refuse_taken
from ..spec import Spec
from ..user_code import with_place
from .block import Norm
from .cnn import CNNSpec
from .mlp import MLPSpec
from .resnet import ResNetSpec
from .vit import ViTSpec

# What a study fills in, beside what Flax keeps for itself.
_FILLED_IN = ("parent", "name", "norm", "classes", "dtype")


class RegisteredModelSpec(Spec):
    """A model of the user's own in a study; fields as in its class."""

    module: ClassVar[Any]
    name: str

    def build(self, norm: Norm, classes: int, dtype: Any) -> nn.Module:
        """Returns the model with the given norm."""
        given = self.model_dump(exclude={"name"}, exclude_unset=True)
        if "dtype" in _field_names(self.module):
            given["dtype"] = dtype
        elif dtype != "float32":
            raise ValueError(
                f"{self.module.__name__} has no field dtype, so that it cannot compute in {dtype}; "
                "add one, or leave out train.precision."
            )
        return self.module(**given, norm=norm, classes=classes)

    @model_validator(mode="after")
    def _let_the_model_check(self) -> "RegisteredModelSpec":
        try:
            self.build(linen.Identity, 2, "float32")
        except (Exception, SystemExit) as error:  # of which pydantic would let most through
            raise ValueError(with_place(error)) from error
        return self


# What a study knows without registration, for type checkers.
ModelSpec = Annotated[MLPSpec | CNNSpec | ResNetSpec | ViTSpec, Field(discriminator="name")]

MODELS: dict[str, type[Any]] = {
    "mlp": MLPSpec,
    "cnn": CNNSpec,
    "resnet": ResNetSpec,
    "vit": ViTSpec,
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
    constructor of the norm layers, `classes`, the number of logits, and `dtype`, if there is such
    a field, the type to compute in (`train.precision`). What the model draws in training, as
    `flax.linen.Dropout` does, it draws from the stream "dropout".

    Args:
        name: How configurations call it.
        model: A Flax module with fields `norm` and `classes`, and others with defaults, whose call
            takes images (N, H, W, C) and `train` and returns logits (N, classes).

    Returns:
        The model, or a decorator that returns it.

    Raises:
        ValueError: If the name is none or taken, or the model cannot stand in a study.
    """
    check_name("register_model", name)
    if model is None:
        return partial(register_model, name)
    told, taken = f"register_model({name!r})", MODELS.get(name)
    refuse_taken("register_model", name, taken and getattr(taken, "module", taken), model)
    check_module(
        told,
        model,
        argument="train",
        meaning="which tells training from evaluation",
        filled_in=_FILLED_IN,
        record=RegisteredModelSpec,
    )
    lacking = [field for field in ("norm", "classes") if field not in _field_names(model)]
    if lacking:
        raise ValueError(
            f"{told}: {model.__qualname__} has no field {' and no field '.join(lacking)}; a study "
            "fills in norm, the constructor of the norm layers, and classes, the number of logits."
        )
    names: Any = Literal[name]
    settable = record_fields(model, _FILLED_IN)
    spec = create_model(model.__name__, __base__=RegisteredModelSpec, name=(names, ...), **settable)
    spec.module = model
    enter(MODELS, name, spec)
    return model


def model_spec_type() -> Any:
    """Returns the type that validates a model: one record per model, told by `name`."""
    return Annotated[Union[tuple(MODELS.values())], Field(discriminator="name")]  # noqa: UP007


def _field_names(model: Any) -> list[str]:
    return [field.name for field in fields(model)]
