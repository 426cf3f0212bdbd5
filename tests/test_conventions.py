"""The table of conventions: what it holds and what it says of what it does not hold."""

import jax
import numpy as np
import pytest

import normlab
from normlab.conventions import CONVENTIONS
from normlab.variants import VARIANTS, settable_fields

ENTRIES = [(library, layer) for library, layers in CONVENTIONS.items() for layer in layers]
WRAPPERS = {"weight_norm": normlab.WeightNorm, "spectral_norm": normlab.SpectralNorm}


def test_the_libraries_are_those_that_the_documentation_names():
    documented = normlab.convention.__doc__
    assert all(f'"{library}"' in documented for library in CONVENTIONS)


@pytest.mark.parametrize(("library", "layer"), ENTRIES)
def test_every_entry_is_of_a_layer_and_can_stand_in_a_configuration(library, layer):
    fields = normlab.convention(library, layer)
    if layer in WRAPPERS:
        assert fields.keys() <= settable_fields(WRAPPERS[layer]).keys()
    else:
        assert fields.keys() <= settable_fields(VARIANTS[layer].layer).keys()
        VARIANTS[layer].layer(**fields)


def test_every_batch_normalization_says_what_enters_its_running_statistics():
    """Defaults of normlab that change must not change what another library does."""
    for library, layer in ENTRIES:
        if "batch" in layer:
            fields = normlab.convention(library, layer)
            assert {"epsilon", "running_variance", "debias"} <= fields.keys()
            assert "momentum" in fields or library == "haiku"  # where it has no default


@pytest.mark.parametrize(("library", "layer"), [entry for entry in ENTRIES if "batch" in entry[1]])
def test_before_training_evaluation_returns_its_input(library, layer):
    """Whatever the rule for statistics that nothing has entered yet (equinox#955, #1010)."""
    fields = normlab.convention(library, layer)
    norm, x = VARIANTS[layer].layer(True, **fields), np.full((1, 4), 3, np.float32)
    y, _ = norm.init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y, x / np.sqrt(1 + fields["epsilon"]), rtol=1e-3)


def test_what_is_returned_may_be_changed():
    fields = normlab.convention("pytorch", "batch_norm")
    fields["momentum"] = None
    assert normlab.convention("pytorch", "batch_norm")["momentum"] == 0.9


def test_unknown_names_are_refused_with_the_nearest_or_all_that_there_are():
    with pytest.raises(ValueError, match="'torch' is not known; did you mean 'pytorch'"):
        normlab.convention("torch", "batch_norm")
    with pytest.raises(ValueError, match=r"keras is not .* did you mean 'batch_norm'"):
        normlab.convention("keras", "BatchNorm")
    with pytest.raises(ValueError, match="'numpy' is not known") as error:
        normlab.convention("numpy", "batch_norm")
    assert all(library in str(error.value) for library in CONVENTIONS)
    with pytest.raises(ValueError, match="keras is not known to have the layer 'evonorm'") as error:
        normlab.convention("keras", "evonorm")
    assert all(layer in str(error.value) for layer in CONVENTIONS["keras"])
