"""Flax's own tests of its normalization layers, with those of normlab in their place."""

import importlib.util
import os
import unittest
from pathlib import Path
from types import ModuleType
from unittest import mock

import flax
import jax
import pytest
from flax import linen, nnx

import normlab

SOURCES = os.environ.get("NORMLAB_FLAX_SOURCES", "")

pytestmark = [
    pytest.mark.flax_suite,
    pytest.mark.skipif(
        not SOURCES, reason="NORMLAB_FLAX_SOURCES names no folder with the sources of Flax"
    ),
]

LAYERS = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "RMSNorm",
    "SpectralNorm",
    "WeightNorm",
]


@pytest.fixture(autouse=True)
def ranks_may_differ():
    """Flax's tests let arrays of different ranks broadcast."""
    with jax.numpy_rank_promotion("allow"):
        yield


def with_layers(module: ModuleType, ours) -> ModuleType:
    """Returns a copy of `flax.linen` or `flax.nnx` with other normalization layers."""
    copy = ModuleType(module.__name__)
    vars(copy).update(vars(module) | {name: getattr(ours, name) for name in LAYERS})
    return copy


def cases_of(path: str, part_of_name: str) -> dict[str, type]:
    """Returns the classes of tests of a file of Flax, which see the layers of normlab."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, Path(SOURCES, path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with (
        mock.patch.object(flax, "linen", with_layers(linen, normlab)),
        mock.patch.object(flax, "nnx", with_layers(nnx, normlab.nnx)),
    ):
        spec.loader.exec_module(module)
    return {
        name: value
        for name, value in vars(module).items()
        if part_of_name in name and issubclass(value, unittest.TestCase)
    }


if SOURCES:
    globals().update(cases_of("tests/linen/linen_test.py", "Norm"))
    globals().update(cases_of("tests/nnx/nn/normalization_test.py", "Test"))
