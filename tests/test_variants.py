"""The table of variants and what may enter it."""

import subprocess
import sys
from typing import Any

import pytest
from flax import linen as nn

import normlab
from normlab.variants import VARIANTS, settable_fields


class Fitting(nn.Module):
    power: float = 1.0
    sizes: tuple[int, ...] = (1, 2)
    made: tuple[int, ...] = nn.module.dataclasses.field(default_factory=lambda: (3,))
    initializer: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x, use_running_average=None):
        return x


@pytest.fixture(autouse=True)
def _table_as_before():
    before = dict(VARIANTS)
    yield
    VARIANTS.clear()
    VARIANTS.update(before)


def test_a_layer_is_registered_by_a_call_or_a_decorator():
    assert normlab.register("by_call", Fitting) is Fitting
    assert normlab.register("by_decorator", source="here")(Fitting) is Fitting
    assert VARIANTS["by_call"].layer is VARIANTS["by_decorator"].layer is Fitting
    assert VARIANTS["by_decorator"].source == "here"


def test_only_fields_of_plain_types_can_be_set():
    assert settable_fields(Fitting) == {
        "power": float,
        "sizes": tuple[int, ...],
        "made": tuple[int, ...],
    }
    assert not {"use_running_average", "axis_name", "bias_init", "dtype"} & set(
        settable_fields(normlab.BatchNorm)
    )


def test_a_taken_name_is_refused_but_for_the_same_layer_again():
    normlab.register("mine", Fitting)
    normlab.register("mine", Fitting)
    with pytest.raises(ValueError, match="the name 'batch_norm' is taken by normlab"):
        normlab.register("batch_norm", Fitting)


def test_a_decorator_without_a_name_is_refused_at_once():
    # In a process of its own, where no type checker refuses it first.
    program = (
        "import normlab\n"
        "for register in (normlab.register, normlab.register_model, normlab.register_data):\n"
        "    try:\n        register(int)\n"
        "    except ValueError as error:\n        print(error)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert shown.splitlines() == [
        f"{register}: <class 'int'> was given in the place of the name; expected a word, as in "
        f'@normlab.{register}("mine").'
        for register in ("register", "register_model", "register_data")
    ]


def test_a_layer_whose_flag_cannot_be_given_by_name_is_refused():
    """Models ended in a TypeError in the middle of a study."""

    class ByPlace(nn.Module):
        @nn.compact
        def __call__(self, x, use_running_average=None, /):
            return x

    class Several(nn.Module):
        @nn.compact
        def __call__(self, x, **use_running_average):
            return x

    for layer in (ByPlace, Several):
        with pytest.raises(ValueError, match=r"use_running_average of the call .* by its name"):
            normlab.register("by_place")(layer)


def test_a_layer_that_cannot_stand_in_a_model_is_refused():
    class WithoutDefault(Fitting):
        needed: float = nn.module.dataclasses.field(kw_only=True)

    class OtherCall(nn.Module):
        def __call__(self, x): ...

    class Reserved(Fitting):
        layer: int = 3

    with pytest.raises(ValueError, match="has a field layer"):
        normlab.register("reserved", Reserved)
    with pytest.raises(ValueError, match="must take use_running_average"):
        normlab.register("other", OtherCall)
    with pytest.raises(ValueError, match=r"fields needed of .*WithoutDefault need defaults"):
        normlab.register("without", WithoutDefault)
    with pytest.raises(ValueError, match=r"is not a class of flax\.linen\.Module"):
        normlab.register("function", lambda x: x)
