"""Dotted paths into records whose names may have dots themselves."""

from normlab.compare.paths import merged, value_at, with_values


def test_the_longest_key_that_is_there_is_meant():
    """`variants.a.b.momentum=0.5` made a variant `a` beside the variant `a.b`."""
    study = {"variants": {"a.b": {"layer": "batch_norm"}, "a": {"layer": "identity"}}}
    changed = with_values(study, {"variants.a.b.momentum": 0.5, "variants.a.layer": "affine"})
    assert changed == {
        "variants": {"a.b": {"layer": "batch_norm", "momentum": 0.5}, "a": {"layer": "affine"}}
    }
    assert value_at(changed, "variants.a.b.momentum") == 0.5
    assert with_values({}, {"train.epochs": 3}) == {"train": {"epochs": 3}}


def test_keys_within_a_value_are_names_and_the_key_before_it_is_a_path():
    """`variants={"a.b": {...}}` over a study without it made a variant `a`."""
    study = {"variants": {"a": {"layer": "identity"}}, "factors": {"data.batch_size": [1]}}
    changed = merged(study, "variants", {"a.b": {"layer": "affine"}, "a": {"epsilon": 0.1}})
    assert changed["variants"] == {
        "a": {"layer": "identity", "epsilon": 0.1},
        "a.b": {"layer": "affine"},
    }
    assert merged(changed, "variants.a.b", {"layer": "rms_norm"})["variants"]["a.b"] == {
        "layer": "rms_norm"
    }
    assert merged(study, "factors", {})["factors"] == {}
    assert merged({"executor": "ray"}, "executor", {"workers": 2}) == {"executor": {"workers": 2}}
    assert merged({}, "train.epochs", 3) == {"train": {"epochs": 3}}
    assert study["variants"] == {"a": {"layer": "identity"}}
