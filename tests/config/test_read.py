"""What YAML and Python can hand in: understood as meant, or told with what to write instead."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from normlab.config import ConfigError, load_study, make_study
from normlab.config.load import _calls
from normlab.data import DataSpec

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SMALL = {"study": "small", "model": {"name": "mlp"}, "variants": {"a": {"layer": "layer_norm"}}}


def problems(*overrides, path=QUICKSTART):
    with pytest.raises(ConfigError) as caught:
        load_study(path, overrides)
    return caught.value.problems


def python_problems(given, **changes):
    with pytest.raises(ConfigError) as caught:
        make_study(given, changes)
    return caught.value.problems


@pytest.mark.parametrize(
    ("override", "told"),
    [
        # `seeds: yes` was one seed.
        ("seeds=true", "seeds: expected a number, but true was given"),
        ("data.batch_size=TRUE", "data.batch_size: expected a number, but true was given"),
        ("optimizer.momentum=True", "optimizer.momentum: expected a number, but true was given"),
        ("margin_points=true", "margin_points: expected a number, but true was given"),
        ("target=true", "target: expected a number, but true was given"),
        ("model.hidden=[8, true]", "model.hidden: expected a number, but true was given"),
        ("executor.width=true", "executor.width: expected a number, but true was given"),
        ("variants.batch.epsilon=true", "variants.batch.epsilon: expected a number, but true"),
        ("tune.seeds=true", "tune.seeds: expected a number, but true was given"),
        ("tune.optimizer.momentum=[true, 0.5]", "tune.optimizer.momentum: expected a number"),
        ("tune.trials=true", "tune.trials: expected a number, but true was given"),
        ("factors.data.batch_size=[true, 8]", "factors.data.batch_size: expected a number"),
        ("tasks.x.train.epochs=true", "tasks.x.train.epochs: expected a number, but true"),
        # Nor is a number a truth value, or a word that only some take for one.
        ("optimizer.nesterov=1", "optimizer.nesterov: expected true or false, but 1 was given"),
        ("variants.batch.use_bias='no'", "variants.batch.use_bias: expected true or false"),
        # Other numbers than were meant.
        ("seeds=010", "seeds: 010 is 10 to YAML 1.2 and something else to YAML 1.1; write"),
        (
            "seeds=1:30",
            "seeds: should be a valid integer, unable to parse string as an integer, but '1:30'",
        ),
        ("optimizer.learning_rate=1e300", "optimizer.learning_rate: 1e+300 cannot be computed"),
        ("optimizer.learning_rate=1e-60", "optimizer.learning_rate: 1e-60 cannot be computed"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate: should be a finite number"),
        ("variants.batch.epsilon=.inf", "variants.batch.epsilon: should be a finite number"),
        ("seeds=" + "9" * 5000, "seeds: a number of 5000 signs; expected at most 100"),
        # Python reads it as 10.
        ("seeds=1_0", "seeds: expected a number, but '1_0' was given"),
        (f"modules=[{'a' * 3000}]", "modules: aaa"),
        # The first variant was taken instead.
        ("baseline=false", "baseline: false is true or false to YAML, but a text is expected"),
        ("baseline=0", "baseline: 0 is a number to YAML, but a text is expected; quote it: '0'"),
        # Words that YAML takes for something else.
        ("study=true", "study: true is true or false to YAML, but a text is expected; quote it"),
        ("data.name=null", "data.name: null is nothing to YAML, but a text is expected; quote it"),
        ("data.name=~", "data.name: ~ is nothing to YAML, but a text is expected; quote it: '~'"),
        ("model.name=1.50", "model: 1.50 is a number to YAML, but a text is expected; quote it"),
        ("model.activation=false", "model.activation: false is true or false to YAML"),
        ("variants.batch.layer=False", "variants.batch: False is true or false to YAML"),
        (
            "modules=[true]",
            "modules[0]: true is true or false to YAML, but a text is expected; quote",
        ),
        ("tasks={~: {}}", "tasks.~: the name ~ is nothing to YAML; quote it: '~'"),
        ("variants={1: {layer: rms_norm}}", "variants.1: the name 1 is a number to YAML; quote it"),
        ("seeds=", "seeds=: expected key=value, as in train.epochs=5; for no value key=null"),
        ("data={name: digits, name: mnist}", "data.name: is given twice"),
    ],
)
def test_nothing_becomes_another_kind_of_thing(override, told):
    found = problems(override)
    assert any(line.startswith(told) for line in found), found


def test_names_that_yaml_takes_for_something_else_are_told_as_they_stood(tmp_path):
    """All at once, though YAML had the same key for some of them."""
    file = tmp_path / "names.yaml"
    file.write_text(
        "study: names\nmodel: {name: mlp}\nbaseline: 'True'\n"
        "variants: {True: {layer: identity}, TRUE: {layer: rms_norm}, ~: {layer: layer_norm}}\n"
    )
    assert problems(path=file) == [
        "variants.True: the name True is a truth value to YAML; quote it: 'True'",
        "variants.TRUE: the name TRUE is a truth value to YAML; quote it: 'TRUE'",
        "variants.~: the name ~ is nothing to YAML; quote it: '~'",
    ]
    quoted = file.read_text().replace("True:", "'True':").replace("TRUE:", "'TRUE':")
    file.write_text(quoted.replace("~:", "'~':"))
    assert list(load_study(file).variants) == ["True", "TRUE", "~"]


@pytest.mark.parametrize(
    "search",
    [
        "tune.optimizer.learning_rate=['1e-2', 0.01]",
        "tune.optimizer.learning_rate=[1, 1.0]",
        "tune.optimizer.nesterov=[true, 'true']",
        "tune.data.batch_size=[16, 16.0]",
        "tune.layer.use_scale=[false, 'false']",
        "factors.data.batch_size=['16', 16]",
        "factors.optimizer.weight_decay=[0.0, -0.0]",
        "factors=[{train.epochs: 3}, {train.epochs: '3'}]",
    ],
)
def test_values_are_compared_as_their_fields_have_them(search):
    """They were two points of one search, whose runs failed after training."""
    (told,) = problems(search)
    assert "repeats one" in told


def test_values_are_kept_as_their_fields_have_them():
    study = load_study(
        QUICKSTART,
        ["tune.optimizer.learning_rate=['1e-2', 1]", "factors.train.epochs=[2.0, '3']"],
    )
    assert study.tune.space == {"optimizer.learning_rate": (0.01, 1.0)}
    assert repr(study.factors) == "{'train.epochs': (2, 3)}"


def test_what_is_given_twice_is_refused_wherever_it_is(tmp_path):
    """The last one had won, in silence."""
    assert problems("seeds=1", "seeds=2") == [
        "seeds: is given twice on the command line; leave out one of the two"
    ]
    file = tmp_path / "twice.yaml"
    file.write_text(
        "study: twice\nmodel: {name: mlp}\nseeds: 3\nseeds: 4\nvariants: {a: {layer: rms_norm}}\n"
        "tune: {optimizer.momentum: [0.5], optimizer: {momentum: [0.9]}}\n"
    )
    assert problems(path=file) == [
        "seeds: is given twice; leave out one of the two",
        "tune.optimizer.momentum: is given twice, once with a dotted key; leave out one of the two",
    ]
    (told,) = python_problems(SMALL, **{"train.epochs": 3, "train": {"epochs": 4}})
    assert told.startswith("train.epochs: is given twice")


def test_an_override_comes_after_what_the_file_says_however_both_are_written(tmp_path):
    file = tmp_path / "tasks.yaml"
    file.write_text(
        "study: tasks\nmodel: {name: mlp}\nvariants: {a: {layer: rms_norm}}\n"
        "tasks: {x: {objective: {label_smoothing: 0.1}, train.epochs: 3}}\n"
        "tune: {optimizer: {momentum: [0.5]}, seeds: 2}\n"
    )
    study = load_study(file, ["tasks.x.train.epochs=4", "tune.optimizer.momentum=[0.9]"])
    assert study.tasks["x"] == {"objective.label_smoothing": 0.1, "train.epochs": 4}
    assert study.tune.space == {"optimizer.momentum": (0.9,)}
    assert load_study(file, ["tune={}"]).tune is None
    assert load_study(file, ["tasks={}"]).tasks == {}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("margin_points=0.5%", "but '0.5%' was given; 0.5% is 0.5 points"),
        ("target=1.2.3%", "but '1.2.3%' was given"),
        ("target_accuracy=0.9", "target_accuracy: is now target; rename it"),
        # All prose gives it in points.
        ("margin=0.005", "in points of a percentage: margin_points=0.5"),
        ("margin=2", "margin_points=2"),
        ("margin_points=0.005", "as a share, 0.005 is margin_points=0.5"),
        ("margin_points=50", "expected between 0.05 and 20 points of a percentage"),
        ("target=95", "95% as a share is 0.95"),
        ("target=95%", "95% as a share is 0.95"),
        ("significance=0.95", "0.95 is the level of the tests; for intervals of 95% give 0.05"),
        ("significance=5", "5% as a share is 0.05"),
        ("data.validation=20", "20% as a share is 0.2"),
        ("data.train_share=50", "50% as a share is 0.5"),
        ("model.dropout=10", "10% as a share is 0.1"),
        ("objective.label_smoothing=10", "10% as a share is 0.1"),
        ("optimizer.momentum=90", "90% as a share is 0.9"),
        ("variants.batch.momentum=90", "a number from 0 to 1"),
    ],
)
def test_implausible_units_are_told_with_what_was_probably_meant(override, told):
    (line,) = problems(override)
    assert told in line


MANY = ",".join(map(str, range(1, 1000)))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["executor.width=1000000000"], "executor.width: should be less than or equal to 1000"),
        (
            ["executor=processes", "executor.workers=1000000000"],
            "executor.workers: should be less than or equal to 1000",
        ),
        (
            [f"factors.data.batch_size=[{MANY}]", f"factors.train.epochs=[{MANY}]"],
            "6 variants at 998001 levels of factors on 1 tasks make 5988006 arms",
        ),
        (
            [f"tune.data.batch_size=[{MANY}]", f"tune.train.epochs=[{MANY}]"],
            "tune has a grid of 4990005 points; expected at most 10000",
        ),
        (["seeds=10000", "factors.train.epochs=[1, 2]"], "make 120120 runs"),
        (["train.epochs=1000000000000"], "train.epochs: should be less than or equal to 1000000"),
        (["model.hidden=[99999999]"], "model.hidden[0]: should be less than or equal to 1000000"),
        (["model={name: vit, depth: 1000000}"], "model.depth: should be less than or equal to"),
        ([f"model.hidden=[{MANY},1,1]"], "model.hidden: expected at most 1000 entries"),
        ([f"tune.train.epochs=[{MANY},1000,1001]"], "tune.train.epochs: expected at most"),
        (["variants.batch.axis=99999999999"], "variants.batch.axis: 99999999999 is too large"),
    ],
)
def test_counts_have_bounds_that_are_checked_before_anything_is_enumerated(overrides, told):
    """These hung for minutes."""
    start = time.process_time()
    found = problems(*overrides)
    assert any(told in line for line in found), found
    assert time.process_time() - start < 10


ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (ALIASES, "more than 20000 values, with what aliases stand for"),
        ("a: &a [*a]", "a: more than 50 levels in each other; does it contain itself?"),
        ("[" * 20000, "cannot be read as YAML: more than 50 levels in each other"),
        ("a: !!python/object/apply:os.system [ls]", "a: has the tag tag:yaml.org,2002:python"),
        ("a: !!set {x, y}", "a: has the tag tag:yaml.org,2002:set"),
        ("? [a, b]\n: c", "has a list or keys and values as a key; expected text"),
        ("a: 'b", "cannot be read as YAML: found unexpected end of stream (line 1, column 6)"),
        ("a: \x00", "cannot be read as YAML"),
        ("study: café\n".encode("latin-1"), "is no text in UTF-8: byte 0xe9 at 10; save the file"),
        ("", "expected keys and values, as in study: NAME"),
        ("x" * (2 << 20), "is larger than 1 MiB; expected a YAML file"),
    ],
)
def test_files_that_are_no_configuration_are_told(tmp_path, content, told):
    file = tmp_path / "odd.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert problems(path=file)[0].startswith(told)


def test_a_pipe_is_read_and_what_is_no_file_is_told(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, QUICKSTART.read_bytes())
    os.close(writing)
    assert load_study(f"/dev/fd/{reading}").model_dump() == load_study(QUICKSTART).model_dump()
    os.close(reading)
    (tmp_path / "link.yaml").symlink_to("nowhere.yaml")
    assert problems(path=tmp_path / "link.yaml") == [
        "is a link to nowhere.yaml, which does not exist"
    ]
    assert problems(path=tmp_path / ("x" * 300)) == ["cannot be read: File name too long"]
    assert problems(path=QUICKSTART / "x.yaml")[0].startswith("no such file")
    assert problems(path=Path("/dev/zero")) == ["is larger than 1 MiB; expected a YAML file"]
    marked = tmp_path / "marked.yaml"
    marked.write_bytes(b"\xef\xbb\xbf" + QUICKSTART.read_bytes())
    assert load_study(marked).study == "quickstart"


def test_a_file_that_the_system_refuses_is_told():
    assert problems(path=Path("/proc/self/mem")) == ["cannot be read: Input/output error"]


def test_pythons_values_are_those_of_a_file():
    study = make_study(
        SMALL,
        {
            "seeds": np.int64(3),
            "model.hidden": np.array([8, 9]),
            "data": {"name": "mnist", "folder": Path("here")},
            "tune": {"optimizer.learning_rate": (np.float32(0.5), 1)},
            "optimizer.nesterov": np.True_,
        },
    )
    assert (study.seeds, study.model.hidden, study.data.folder) == (3, (8, 9), "here")
    assert study.tune.space == {"optimizer.learning_rate": (0.5, 1.0)}
    assert study.optimizer.nesterov is True


def test_pythons_values_that_no_file_could_have_are_told_at_once():
    own = {"study": "own", "model": {"name": "mlp", "hidden": {8, 9}}, "variants": {}}
    own["variants"] = {True: {"layer": "identity"}, None: {"layer": "rms_norm"}}
    told = python_problems(own, seeds=np.True_, **{"data.folder": b"x", "train.epochs": object})
    starts = (
        "data.folder: b'x' was given; expected text, a number",
        "model.hidden: {8, 9} was given; expected text",
        "seeds: expected a number, but true was given",
        "train.epochs: <class 'object'> was given",
        "variants.None: the name None is no text; write 'None'",
        "variants.True: the name True is no text; write 'True'",
    )
    assert len(told) == len(starts)
    assert all(line.startswith(start) for line, start in zip(sorted(told), starts, strict=True))
    own["model"] = own
    (line,) = python_problems(own)
    assert line == "model: more than 50 levels in each other; does it contain itself?"
    (line,) = python_problems(SMALL, seeds=10**400)
    assert line == "seeds: a number of 1329 bits; expected a smaller one"


def test_studies_can_be_read_any_number_of_times():
    """Each one had added a layer of checks to the types of all."""
    for _ in range(3):
        load_study(QUICKSTART)
    before = repr(DataSpec.__pydantic_core_schema__)
    load_study(QUICKSTART)
    assert repr(DataSpec.__pydantic_core_schema__) == before


@pytest.mark.parametrize(
    "text", ["s_${oc.env:HOME}", "${oc.decode:1}", "${${seeds}:HOME}", "a ${ oc.env : HOME }"]
)
def test_a_reference_calls_nothing(text):
    """The environment went into the name of a study, and so into pages and paths."""
    (told,) = python_problems(SMALL, optimizer={"schedule": text})
    assert "a reference names a key, as ${train.epochs}, and calls nothing" in told


def test_colons_beside_references_and_in_plain_text_are_no_calls():
    for text in ("${seeds}: x", "\\${oc.env:HOME}", "a:b", "}:${seeds}"):
        assert not _calls(text)
