"""The folder of a study: what is written comes back, whole or not at all."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compare.results import named
from pydantic import ValidationError

from normlab.compare.status import read_status
from normlab.compare.store import (
    Curve,
    NoStudyError,
    Result,
    Store,
    StoreError,
    left_aside_in_words,
    write_whole,
)
from normlab.report import read_study


def result(note="", loss=0.5, **changes):
    curve = Curve(
        step=[10, 20],
        train={"loss": [2.0, loss], "accuracy": [0.5, 0.9]},
        validation={"loss": [2.0, 1.0], "accuracy": [0.4, 0.8]},
    )
    fields = {
        "id": "any",
        "phase": "final",
        "variant": "batch",
        "arm": "batch",
        "seed": 0,
        "values": {"optimizer.learning_rate": 0.1},
        "status": "finished",
        "steps_per_epoch": 10,
        "curve": curve,
        "test": {"loss": 1.0, "accuracy": 0.8},
        "seconds": 1.5,
        "identity": {"model": {"name": "mlp", "hidden": [128, 128]}, "code": note},
    }
    made = Result(**(fields | changes))
    return made if "id" in changes else named(made)


def test_a_result_comes_back_as_it_was_written(tmp_path):
    store = Store(tmp_path)
    written = [result("b"), result("a", loss=math.nan, seed=1)]
    for each in written:
        store.write(each)
    assert store.results() == sorted(written, key=lambda it: it.id)


def test_a_store_has_what_was_written_and_nothing_else(tmp_path):
    store = Store(tmp_path / "not" / "there" / "yet")
    assert store.results() == []
    store.write(result())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_numbers_that_are_not_finite_are_null_in_the_file_and_none_in_memory(tmp_path, bad):
    written = result(loss=bad)
    Store(tmp_path).write(written)
    content = json.loads((tmp_path / "runs" / f"{written.id}.json").read_text())
    assert content["curve"]["train"]["loss"] == [2.0, None]
    assert Store(tmp_path).results()[0].curve.train["loss"] == [2.0, None]


def test_what_has_overflowed_in_its_square_is_as_infinity(tmp_path):
    """Losses of 1e308 gave warnings of NumPy on the way to the page."""
    assert result(loss=1e308).curve.train["loss"] == [2.0, None]


def test_a_folder_in_the_place_of_a_claim_claims_nothing(tmp_path):
    """`status` ended in a traceback."""
    (tmp_path / "claims" / "final-none-0.lock").mkdir(parents=True)
    assert Store(tmp_path).running() == set()


def test_numbers_keep_every_bit(tmp_path):
    loss = 0.1 + 0.2 + 1e-17
    Store(tmp_path).write(result(loss=loss))
    assert Store(tmp_path).results()[0].curve.train["loss"][1] == loss


@pytest.mark.parametrize(
    "content",
    ["", '{"id": "broken"', "null", '{"id": "broken"}', result("other").model_dump_json()],
    ids=["empty", "cut off", "null", "incomplete", "of another run"],
)
def test_a_damaged_file_is_named_and_left_aside(tmp_path, content):
    Store(tmp_path).write(result())
    (tmp_path / "runs" / "broken.json").write_text(content)
    store = Store(tmp_path)
    assert store.results() == [result()]
    assert store.finished() == {result().id}
    (told,) = store.left_aside.values()
    assert re.search(r"broken\.json is not the result of a run \(.+\)\.$", told)
    assert any("makes those anew" in line for line in left_aside_in_words(store.left_aside))


def test_a_configuration_comes_back_as_it_was_written(tmp_path):
    # Texts that YAML, or a reader of 1e-3 as a number, would take for something else.
    texts = [
        "1e-3",
        "0.1",
        "yes",
        "null",
        "2020-01-01",
        "1:30",
        "010",
        "${a}",
        "a: b",
        "",
        "~",
        "ü",
    ]
    values = [1e-05, 0.1, 1e22, -0.5, 3, 2**70, True, None, math.inf, *texts, [1, [2.5]], {"a": []}]
    variants = {name or "empty": {"layer": "identity", "values": values} for name in texts}
    study = {
        "study": "small",
        **{part: {"name": "any"} for part in ("data", "model", "optimizer")},
        "train": {"epochs": 1},
        "variants": variants,
        "baseline": "yes",
        "seeds": 3,
    }
    store = Store(tmp_path)
    store.write_config(study)
    assert store.config() == study
    # As one writes it, without the line of the checksum: 1e-3 is a number.
    path = tmp_path / "config.yaml"
    text = path.read_text().partition("\n")[2]
    path.write_text(text.replace("seeds: 3", "seeds: 3\ntarget: 1e-3"))
    assert store.config()["target"] == 0.001


def test_a_configuration_of_thousands_of_variants_is_read(tmp_path):
    """OmegaConf refuses more than 10,000 nodes of YAML."""
    fields = {"layer": "batch_norm", "momentum": 0.9, **{f"field_{n}": n for n in range(10)}}
    study = {
        "study": "large",
        **{part: {"name": "any"} for part in ("data", "model", "optimizer")},
        "train": {"epochs": 1},
        "variants": {f"v{place}": fields for place in range(1_000)},
        "baseline": "v0",
        "seeds": 3,
    }
    Store(tmp_path).write_config(study)
    assert Store(tmp_path).config() == study


@pytest.mark.parametrize("content", [b"seeds: [", b"a: !!python/tuple [1]", b"\xff", b"- 1", b""])
def test_a_damaged_configuration_is_named_with_the_remedy(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(StoreError, match=r"(?s)(is damaged|does not describe a study) .*Run the"):
        Store(tmp_path).config()


def test_leftovers_of_interrupted_writes_are_ignored(tmp_path):
    store = Store(tmp_path)
    store.write(result())
    (tmp_path / "runs" / ".final-batch-1.json.0123.tmp").write_text('{"id": "fin')
    assert store.results() == [result()]


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    in_the_way = tmp_path / "file.json"
    in_the_way.mkdir()
    with pytest.raises(OSError, match=r"file\.json"):
        write_whole(in_the_way, "text")
    assert list(tmp_path.iterdir()) == [in_the_way]


KILLS = """
import os, random, signal, sys, time
from normlab.compare.store import Store
from compare.test_store import result

store = Store(sys.argv[1])
# Long enough that a plain write would often be caught halfway.
measured = {key: [0.123456789] * 2_000 for key in ("loss", "accuracy")}
curve = {"step": [*range(1, 2_001)], "train": measured, "validation": measured}
seen, draw, parent = set(), random.Random(0), os.getpid()
start = time.monotonic()
store.write(result("first", curve=curve))
took = time.monotonic() - start
for kill in range(30):
    child = os.fork()
    if not child:
        place = kill
        while os.getppid() == parent:
            store.write(result(f"run-{place % 7}", curve=curve, seconds=float(place)))
            place += 1
        os._exit(0)
    end = time.monotonic() + draw.uniform(0.5, 5) * took
    while time.monotonic() < end:
        seen |= {it.id for it in store.results()}
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for it in store.results():
        assert len(it.curve.train["loss"]) == 2_000
assert len(seen) == 1 + 7, seen
"""


def test_killing_the_writer_never_leaves_a_partial_result(tmp_path):
    tests = Path(__file__).parents[1]
    process = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path)],
        env={"PYTHONPATH": f"{tests}:{tests.parent}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert process.returncode == 0, process.stderr


def test_the_configuration_comes_back_with_its_types(tmp_path):
    config = {
        "study": "<script>alert(1)</script>",
        "baseline": "none",
        "seeds": 3,
        "data": {"name": "digits"},
        "model": {"name": "mlp"},
        "optimizer": {"name": "sgd"},
        "train": {"epochs": 2},
        "tune": {"optimizer.learning_rate": [0.003, 1e-05, 1e7], "seeds": 2},
        "variants": {"none": {"layer": "identity"}, "yes": {"layer": "1e-3", "on": True}},
        "target": None,
    }
    store = Store(tmp_path)
    store.write_config(config)
    assert store.config() == config
    assert list(store.config()) == list(config)
    assert list(store.config()["variants"]) == ["none", "yes"]


def test_the_environment_comes_back(tmp_path):
    environment = {"packages": {"jax": "0.10.2"}, "git_revision": None, "device": "cpu: 2 cores"}
    store = Store(tmp_path)
    store.write_environment(environment)
    assert store.environment() == environment


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seeds": None}, "seeds: Input should be a valid integer"),
        ({"variants": ["none"]}, "variants: Input should be a valid dictionary"),
        ({"baseline": "other"}, "the baseline 'other' is none of the variants"),
        ({"seeds": "3"}, "seeds: Input should be a valid integer"),
        ({"tune": [1]}, "tune: Input should be a valid dictionary"),
        ({"tune": {"optimizer.learning_rate": 0.1}}, "tune.optimizer.learning_rate.*list"),
        ({"tune": {"optimizer.learning_rate": {"low": 1.0}}}, "tune.optimizer.learning_rate"),
    ],
)
@pytest.mark.parametrize("read", [read_status, read_study])
def test_a_configuration_of_which_something_is_lost_is_told(tmp_path, read, changes, what):
    config = {
        "study": "small",
        "baseline": "none",
        "seeds": 3,
        "data": {"name": "digits"},
        "model": {"name": "mlp"},
        "optimizer": {"name": "sgd"},
        "train": {"epochs": 2},
        "variants": {"none": {"layer": "identity"}},
    }
    store = Store(tmp_path)
    store.write_environment({"packages": {}})
    store.write_config(config)
    read(tmp_path)
    store.write_config(config | changes)
    with pytest.raises(StoreError, match=f"{what}.*Run the study again"):
        read(tmp_path)


@pytest.mark.parametrize("read", [Store.config, Store.environment])
def test_a_folder_without_a_study_is_named(tmp_path, read):
    with pytest.raises(NoStudyError, match=f"{tmp_path.name} holds no study"):
        read(Store(tmp_path))
    assert issubclass(NoStudyError, FileNotFoundError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": None}, "final runs that finished"),
        ({"phase": "tune"}, "final runs that finished"),
        ({"status": "diverged"}, "final runs that finished"),
        ({"id": "../outside"}, "pattern"),
        ({"id": ".hidden"}, "pattern"),
        ({"surprise": 1}, "Extra inputs"),
        (
            {"curve": {"step": [], "train": {"loss": []}, "validation": {"loss": []}}},
            "at least one point",
        ),
        (
            {"curve": {"step": [10], "train": {"loss": [0.5, 0.4]}, "validation": {}}},
            "one entry for each point",
        ),
        (
            {"curve": {"step": [10, 10], "train": {"loss": [1, 1]}, "validation": {}}},
            "steps of a curve rise",
        ),
    ],
)
def test_a_result_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        result(**changes)
