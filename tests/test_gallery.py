"""The gallery: its page and picture belong to the layers that are registered."""

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import normlab
from normlab.variants import VARIANTS

HERE = Path(__file__).parents[1] / "experiments/gallery"
BUILT_IN = {
    name: variant
    for name, variant in VARIANTS.items()
    if variant.layer.__module__.startswith("normlab.")
}


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", HERE / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.VARIANTS = BUILT_IN  # Other tests may have registered layers of their own.
    return module


def test_the_page_is_what_the_script_writes(gallery):
    assert (HERE / "README.md").read_text() == gallery.page()


def test_the_picture_has_every_layer():
    drawn = "".join(ElementTree.parse(HERE / "pools.svg").getroot().itertext())
    for variant in BUILT_IN.values():
        assert variant.layer.__name__ in drawn
        assert variant.statistics in drawn


def test_reaching_inputs_are_those_that_the_definitions_name(gallery):
    """As (examples, positions, channels), from the first position's last channel."""
    empty = np.zeros((gallery.EXAMPLES, gallery.HEIGHT * gallery.WIDTH, gallery.CHANNELS), bool)
    for layer, pooled in (
        (normlab.BatchNorm(), np.s_[:, :, -1]),
        (normlab.LayerNorm(), np.s_[0, 0, :]),
        (normlab.GroupNorm(2), np.s_[0, :, 4:]),
        (normlab.Identity(), np.s_[0, 0, -1]),
    ):
        expected = empty.copy()
        expected[pooled] = True
        np.testing.assert_array_equal(gallery.reaching_inputs(layer), expected)
