"""Naming devices: which names work, and what the others are told."""

import sys

import jax
import pytest

from normlab.cost import targets
from normlab.cost.targets import TargetError, find_target, local_targets


def test_devices_of_this_machine():
    assert find_target("cpu").devices == tuple(jax.devices()[:1])
    assert find_target("cpu:8").devices == tuple(jax.devices())
    assert local_targets() == ("cpu",)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("xpu", "expected cpu, gpu, gpu:8 or a TPU slice as tpu:v5e:4x4"),
        ("cpu:0", "expected cpu, gpu, gpu:8"),
        ("cpu:1:2", "expected cpu, gpu, gpu:8"),
        ("cpu:9", "this machine has 8 of them"),
        ("tpu", "JAX finds no tpu on this machine. For a slice elsewhere name it"),
        ("tpu:v5", "did you mean 'v5p'"),
        ("tpu:v5e", "as in tpu:v5e:4x4"),
        ("tpu:v5e:3x3", "the nearest is tpu:v5e:2x4"),
        ("tpu:v5e:32x32", "the nearest is tpu:v5e:16x16"),
        ("tpu:v5p:4x4", "the nearest is tpu:v5p:2x2x4"),
    ],
)
def test_a_name_that_is_none_says_what_was_expected(name, told):
    with pytest.raises(TargetError) as caught:
        find_target(name)
    assert repr(name) in str(caught.value)
    assert told in str(caught.value)


def test_without_the_compiler_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(TargetError, match=r"pip install 'normlab\[tpu-cost\]'"):
        find_target("tpu:v6e:8x16")
