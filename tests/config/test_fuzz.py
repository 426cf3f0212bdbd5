"""Configurations by fuzzers, each execution a study that its dump is, or problems in a few lines.

The fuzzers are in `fuzz.py`, which runs in a process of its own that may crash or hang.
`NORMLAB_FUZZ_SECONDS` sets how long they go on; the seeds are always the same ones from the first.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from normlab.compare.store import Store
from normlab.config import ConfigError, load_study, make_study

FUZZ = Path(__file__).with_name("fuzz.py")
SMALL = {"study": "small", "model": {"name": "mlp"}, "variants": {"a": {"layer": "layer_norm"}}}


def test_fuzzers_find_nothing(tmp_path):
    seconds = float(os.environ.get("NORMLAB_FUZZ_SECONDS", "10"))
    last = tmp_path / "last"
    command = [sys.executable, str(FUZZ), "0", str(seconds), str(last)]
    environment = os.environ | {"PYTHONPATH": str(FUZZ.parents[2])}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + 120, env=environment
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"seed {last.read_text()} hangs")
    assert done.returncode in (0, 1), f"seed {last.read_text()} crashes: {done.stderr[-2000:]}"
    assert done.returncode == 0, done.stdout[-5000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["refused"] > 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        # Errors of PyYAML's constructors came out as they were.
        ('seeds: !!int ""', "seeds: '' is not a number, but has the tag !!int"),
        ('seeds: !!bool "x"', "seeds: 'x' is not a truth value, but has the tag !!bool"),
        ('seeds: !!float "x"', "seeds: 'x' is not a number, but has the tag !!float"),
        ("seeds: !!null x", "seeds: 'x' is not nothing, but has the tag !!null"),
        ("seeds: !!timestamp x", "seeds: has the tag tag:yaml.org,2002:timestamp"),
        # Python writes no integer of so many digits down.
        ("seeds: " + "9" * 5000, "seeds: a number of 5000 signs; expected at most 100"),
        ("seeds: 0x" + "F" * 5000, "seeds: a number of 5002 signs; expected at most 100"),
        ("seeds: 1e" + "9" * 5000, "seeds: a number of 5002 signs; expected at most 100"),
        # Depth is counted while nodes are composed, and not by the stack of the process.
        ("a: " + "[" * 100, "cannot be read as YAML: more than 50 levels in each other"),
        ("a: " + "[" * 40_000, "cannot be read as YAML: more than 50 levels in each other"),
        ("- " * 40_000, "cannot be read as YAML: more than 50 levels in each other"),
        ("a: {<<: &a {<<: *a}}", "a: more than 50 levels in each other; does it contain itself?"),
        # References that double took 6 GB for 763 bytes, or, of nothing, for ever.
        (
            "x0: aaaaaaaa\n"
            + "".join(f"x{n}: ${{x{n - 1}}}${{ x{n - 1} }}\n" for n in range(1, 41)),
            "its references ${...} stand for more than 10^9 values of more than 10^9 signs",
        ),
        (
            "x: {x0: ''"
            + "".join(f", x{n}: '${{.x{n - 1}}}${{x.x{n - 1}}}'" for n in range(1, 41))
            + "}",
            "its references ${...} stand for more than 10^9 values",
        ),
        (
            "x0: {a: 1}\n" + "".join(f"x{n}: {{a: '${{x{n - 1}}}'}}\n" for n in range(1, 60)),
            "its references ${...} stand for 3661 values of 12135 signs in 61 levels; expected",
        ),
        ("a: ${${b}}\nb: c\nc: 1", "a: a reference ${...} names a key, not one that another"),
        # Merges of merges double with each line.
        (
            "a: &a0 {x: 1}\n"
            + "".join(f"b{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 41)),
            "more than 20000 values, with what aliases stand for",
        ),
        ("a: [" + "1, " * 20_001 + "]", "cannot be read as YAML: more than 20000 values"),
        ("a: \ud800", "cannot be read as YAML"),
        ("a: ${a}", "a reference ${...} cannot be followed"),
        ('variants: {"a\\u2028": {layer: identity}}', "variants.a\\u2028: the name"),
    ],
)
def test_what_fuzzers_found_in_files(tmp_path, content, told):
    file = tmp_path / "found.yaml"
    try:
        file.write_text(content)
    except UnicodeEncodeError:
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
        told = "is no text in UTF-8"
    with pytest.raises(ConfigError) as caught:
        load_study(file)
    assert any(problem.startswith(told) for problem in caught.value.problems), caught.value.problems
    assert len(str(caught.value)) <= 4_096


@pytest.mark.parametrize(
    "given",
    [10**5000, -(10**5000), "x" * 200_000, ["\ud800"] * 2000],
    ids=["large", "small", "long", "surrogates"],
)
def test_what_fuzzers_found_in_pythons_values(given):
    """A message had all that was given, or could not be written."""
    with pytest.raises(ConfigError) as caught:
        make_study(SMALL, {"data.folder": given, "seeds": given})
    assert len(str(caught.value)) <= 4_096
    assert str(caught.value).replace("\n", "").isprintable()


def test_a_study_of_many_unknown_keys_is_told_in_a_few_lines():
    with pytest.raises(
        ConfigError, match=r"2000 problems\n(.*\n)*  \.\.\. and \d+ more$"
    ) as caught:
        make_study(SMALL, {f"key{place}": 1 for place in range(2000)})
    assert len(str(caught.value)) <= 4_096


def test_a_stored_configuration_is_the_study_that_it_was_stored_for(tmp_path):
    """Its type was another one for each time that a study was read, and so was the study."""
    names = ("no", "1:30", "1_000", "=", "a: b", "#", "'", "\\", "&a", "${a}")
    layers = ("identity", "batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm")
    layers += ("scale_norm", "position_norm", "affine", "dynamic_tanh")
    variants = {name: {"layer": layer} for name, layer in zip(names, layers, strict=True)}
    study = make_study(SMALL | {"variants": variants}, {})
    Store(tmp_path).write_config(study.model_dump(mode="json"))
    assert load_study(tmp_path / "config.yaml") == study


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\u2028b", "a line separator (U+2028)"),
        ("a\u202eb", "an invisible character (U+202E)"),
        ("a\u200bb", "an invisible character (U+200B)"),
        ("a\uffff", "a character that Unicode has not (U+FFFF)"),
        ("\ue000", "a character of private use (U+E000)"),
        ("\u3164", "a blank character (U+3164)"),
        ("a\nb", "a control character (U+000A)"),
        ("a\tb", "a control character (U+0009)"),
        ("a\0b", "a control character (U+0000)"),
        ("a\ud800b", "half of a character (U+D800)"),
        (" a", "has spaces at an end"),
        ("a  b", "has spaces at an end, several together or of another kind; write 'a b'"),
        ("a\u00a0b", "of another kind; write 'a b'"),
        ("", "a name of 0 signs; expected 1 to 100"),
        ("constructor", "charts cannot have the name 'constructor'; give another, as in"),
        ("__proto__", "charts cannot have the name"),
        ("toString", "charts cannot have the name"),
        ("x" * 101, "a name of 101 signs; expected 1 to 100"),
    ],
)
def test_names_that_nobody_can_see_or_type_are_refused(name, told):
    """They ended a study after all of its training, when its page was drawn."""
    layer = {"layer": "identity"}
    for given in (
        SMALL | {"variants": {"b": layer, name: layer}},
        SMALL | {"tasks": {"b": {}, name: {"train.epochs": 3}}},
    ):
        with pytest.raises(ConfigError) as caught:
            make_study(given, {})
        assert told in str(caught.value)


def test_names_that_look_the_same_are_refused():
    layer = {"layer": "identity"}
    with pytest.raises(ConfigError, match="look the same; rename one of them"):
        make_study(SMALL | {"variants": {"caf\u00e9": layer, "cafe\u0301": layer}}, {})


def test_the_default_of_seeds_reads_a_significance_in_quotes():
    """It was taken for the default, 0.05, so that there were too few seeds."""
    variants = {name: {"layer": name} for name in ("identity", "layer_norm", "rms_norm")}
    given = SMALL | {"variants": variants}
    quoted, number = (make_study(given, {"significance": level}) for level in ("0.001", 0.001))
    assert quoted.seeds == number.seeds > make_study(given, {}).seeds
