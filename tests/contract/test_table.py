"""The table of cases is complete: none of normlab's own variants goes without an oracle."""

from contract.cases import BY_NAME, CASES

from normlab.variants import VARIANTS


def test_every_variant_of_normlab_has_an_oracle():
    """Those that users register are held to all that needs none."""
    own = [name for name, variant in VARIANTS.items() if is_own(variant.layer)]
    assert [name for name in own if name not in BY_NAME or BY_NAME[name].oracle is None] == []


def is_own(layer) -> bool:
    return layer.__module__.partition(".")[0] == "normlab"


def test_every_case_is_of_a_registered_variant_and_has_a_name_of_its_own():
    assert {case.variant for case in CASES} <= set(VARIANTS)
    assert len(BY_NAME) == len(CASES)
