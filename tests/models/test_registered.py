"""Models of the user's own: what registration asks of them, and what a study makes of them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import normlab
from normlab.compare.study import study_type
from normlab.models import MODELS


@pytest.fixture(autouse=True)
def _forget_what_a_test_registers():
    before = dict(MODELS)
    yield
    MODELS.clear()
    MODELS.update(before)


class Mine(nn.Module):
    norm: Callable
    classes: int
    width: int = 8
    sizes: tuple[int, ...] = (1, 2)
    initializer: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        x = self.norm(name="norm")(x, use_running_average=not train)
        return nn.Dense(self.classes)(nn.relu(x))


def study(**model):
    return study_type().model_validate(
        {"study": "s", "model": {"name": "mine", **model}, "variants": {"a": {"layer": "rms_norm"}}}
    )


def test_a_study_builds_a_registered_model_with_its_fields_and_fills_in_the_rest():
    assert normlab.register_model("mine")(Mine) is Mine
    model = study(width=3, sizes=[5]).model.build(normlab.RMSNorm, 4, "float32")
    assert (type(model), model.width, model.sizes, model.classes) == (Mine, 3, (5,), 4)
    assert model.initializer is nn.initializers.zeros
    variables = model.init({"params": jnp.zeros(2, jnp.uint32)}, jnp.ones((2, 5)), train=True)
    assert variables["params"]["norm"]["scale"].shape == (3,)


def test_fields_that_are_not_plain_or_not_there_cannot_be_set():
    normlab.register_model("mine", Mine)
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        study(initializer="zeros")
    with pytest.raises(ValueError, match="valid integer"):
        study(width="wide")


def test_a_model_checks_its_own_fields():
    @normlab.register_model("mine")
    class Even(Mine):
        def __post_init__(self):
            super().__post_init__()
            if self.width % 2:
                raise ValueError(f"width={self.width} is odd")

    assert study(width=4).model.build(normlab.RMSNorm, 2, "float32").width == 4
    with pytest.raises(ValueError, match="width=3 is odd"):
        study(width=3)


def test_the_precision_of_the_study_reaches_a_model_with_a_dtype_and_is_refused_by_another():
    @normlab.register_model("mine")
    class WithType(Mine):
        dtype: Any = jnp.float32

    assert study().model.build(normlab.RMSNorm, 2, "bfloat16").dtype == "bfloat16"
    normlab.register_model("other", Mine)
    with pytest.raises(ValueError, match="Mine has no field dtype"):
        study(name="other").model.build(normlab.RMSNorm, 2, "bfloat16")


class WithoutTrain(nn.Module):
    norm: Any
    classes: int

    def __call__(self, x):
        return x


class WithoutClasses(nn.Module):
    norm: Any = None

    def __call__(self, x, *, train):
        return x


class WithTakenField(Mine):
    build: int = 1


class NNX(nnx.Module):
    def __init__(self, *, norm, classes: int, width: int = 8, rngs: nnx.Rngs):
        if width % 2:
            raise ValueError(f"width={width} is odd")
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(x)


class NNXWithoutCall(nnx.Module):
    def __init__(self, *, norm, classes, rngs): ...


class NNXWithoutStreams(NNX):
    def __init__(self, *, norm, classes): ...


class NNXWithTakenArgument(NNX):
    def __init__(self, *, norm, classes, rngs, build: int = 1): ...


class NNXWithoutDefault(NNX):
    def __init__(self, *, norm, classes, width, rngs): ...


def pair(*, norm, classes: int, width: int = 8):
    return (lambda key, inputs: ({}, {})), (lambda params, state, inputs, train, key: (inputs, {}))


def without_classes(*, norm): ...


def without_default(*, norm, classes, width): ...


def not_a_pair(*, norm, classes):
    return 1


def without_key(*, norm, classes):
    return (lambda key, inputs: ({}, {})), (lambda params, state, inputs, train: (inputs, {}))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Mine(normlab.RMSNorm, 2), "is not a class of flax.linen.Module"),
        (WithoutTrain, "the call of WithoutTrain must take train"),
        (WithoutClasses, "WithoutClasses has no field classes"),
        (WithTakenField, "WithTakenField has a field build, a name that"),
        (1, "is not a class of flax.linen.Module or flax.nnx.Module, nor a function"),
        (NNXWithoutCall, "NNXWithoutCall has no method __call__"),
        (NNXWithoutStreams, "NNXWithoutStreams has no argument rngs; a study fills in norm, the"),
        (NNXWithTakenArgument, "NNXWithTakenArgument has an argument build, a name that"),
        (NNXWithoutDefault, "the arguments width of NNXWithoutDefault need defaults"),
        (without_classes, "without_classes has no argument classes; a study fills in"),
        (without_default, "the arguments width of without_default need defaults"),
    ],
)
def test_what_cannot_stand_in_a_study_is_refused(model, told):
    with pytest.raises(ValueError, match=told):
        normlab.register_model("mine", model)
    assert "mine" not in MODELS


@pytest.mark.parametrize(
    ("model", "fields", "told"),
    [
        (NNX, {"width": 3}, "width=3 is odd"),
        (NNX, {"width": "wide"}, "valid integer"),
        (NNX, {"depth": 3}, "Extra inputs are not permitted"),
        (pair, {"width": "wide"}, "valid integer"),
        (not_a_pair, {}, "not_a_pair returned a int; expected two functions"),
        (without_key, {}, "without_key: apply must take key by name"),
    ],
)
def test_fields_of_every_kind_are_checked_with_the_study(model, fields, told):
    normlab.register_model("mine", model)
    with pytest.raises(ValueError, match=told):
        study(**fields)


@pytest.mark.parametrize("model", [NNX, pair])
def test_the_precision_is_refused_where_no_kind_could_take_it(model):
    normlab.register_model("mine", model)
    with pytest.raises(ValueError, match="has no argument dtype, so that it cannot compute in"):
        study().model.build(normlab.RMSNorm, 2, "bfloat16")


def test_other_fields_need_defaults():
    class Bare(nn.Module):
        norm: Any
        classes: int
        width: int

        def __call__(self, x, *, train):
            return x

    with pytest.raises(ValueError, match=r"the fields width of .*Bare need defaults"):
        normlab.register_model("mine", Bare)


def test_a_name_that_is_taken_is_refused_and_the_same_class_replaces_itself():
    with pytest.raises(ValueError, match=r"'mlp' is taken by normlab.models.mlp.MLPSpec"):
        normlab.register_model("mlp", Mine)
    normlab.register_model("mine", Mine)
    normlab.register_model("mine", Mine)
    with pytest.raises(ValueError, match=r"'mine' is taken by .*Mine; choose another"):
        normlab.register_model("mine", WithTakenField)
