"""Dotted paths into records whose names may have dots themselves."""

from normlab.compare.paths import value_at, with_values


def test_the_longest_key_that_is_there_is_meant():
    """`variants.a.b.momentum=0.5` made a variant `a` beside the variant `a.b`."""
    study = {"variants": {"a.b": {"layer": "batch_norm"}, "a": {"layer": "identity"}}}
    changed = with_values(study, {"variants.a.b.momentum": 0.5, "variants.a.layer": "affine"})
    assert changed == {
        "variants": {"a.b": {"layer": "batch_norm", "momentum": 0.5}, "a": {"layer": "affine"}}
    }
    assert value_at(changed, "variants.a.b.momentum") == 0.5
    assert with_values({}, {"train.epochs": 3}) == {"train": {"epochs": 3}}
