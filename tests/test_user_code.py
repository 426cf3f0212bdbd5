"""Errors of a user's own code are told with their message and their place."""

import html
import json

import pytest
import yaml
from command import normlab

import normlab as normlab_package
from normlab.compare.study import StudyError
from normlab.errors import UserError
from normlab.user_code import explained, with_place

PARTS = """
import jax, normlab, numpy as np, sys
from collections.abc import Callable
from flax import linen as nn


def broken(x):
    BREAK


@normlab.register("inside")
class Inside(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average=None):
        broken(x)
        return x


@normlab.register("called_back")
class CalledBack(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average=None):
        jax.debug.callback(broken, x)
        return x


@normlab.register("built")
class Built(nn.Module):
    def __post_init__(self):
        broken(0)
        super().__post_init__()

    def __call__(self, x, use_running_average=None):
        return x


@normlab.register_model("whole")
class Whole(nn.Module):
    norm: Callable
    classes: int

    @nn.compact
    def __call__(self, x, train):
        broken(x)
        return nn.Dense(self.classes)(x.reshape(len(x), -1))


@normlab.register_data("set")
def load():
    broken(0)
"""
LINE = PARTS.splitlines().index("    BREAK") + 1
BREAK = {
    "error": ("raise KeyError('my own words')", "KeyError: 'my own words'"),
    "value": ("raise ValueError('my own words')", "my own words"),
    "exit": ("sys.exit(0)", "it called sys.exit(0)"),
}
STUDY = {
    "study": "small",
    "modules": ["parts.py"],
    "data": {"name": "digits", "batch_size": 32, "train_examples": 64},
    "model": {"name": "mlp", "hidden": [4]},
    "train": {"epochs": 1},
    "variants": {"own": {"layer": "identity"}},
    "optimizer": {"learning_rate": 0.1},
    "seeds": 1,
}
WHERE = {
    "inside": {"variants": {"own": {"layer": "inside"}}},
    "built": {"variants": {"own": {"layer": "built"}}},
    "whole": {"model": {"name": "whole"}},
    "set": {"data": {"name": "set", "batch_size": 8}},
}


def written(folder, where, how):
    (folder / "parts.py").write_text(PARTS.replace("BREAK", BREAK[how][0]))
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | where))
    return folder / "study.yaml"


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("how", BREAK)
def test_a_study_whose_runs_all_fail_raises_with_message_and_place(
    tmp_path, monkeypatch, where, how
):
    """It returned as if nothing were, or ended with exit code 0 and no word."""
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, WHERE[where], how)
    with pytest.raises(UserError) as told:
        normlab_package.compare(file)
    assert BREAK[how][1] in str(told.value)
    assert f"(parts.py:{LINE} in broken)" in str(told.value)


def test_results_tell_which_runs_failed(tmp_path, monkeypatch):
    """Where some runs failed, the results of the others looked as if they were all."""
    monkeypatch.chdir(tmp_path)
    arms = {"variants": {"plain": {"layer": "identity"}, "own": {"layer": "inside"}}}
    results = normlab_package.compare(written(tmp_path, arms, "error"))
    (failure,) = results.failures
    assert (failure.arm, failure.place) == ("own", f"parts.py:{LINE} in broken")
    assert f'File "{tmp_path / "parts.py"}", line {LINE}' in failure.traceback
    for shown in (repr(results), html.unescape(results._repr_html_())):
        assert "1 run failed" in shown
        assert BREAK["error"][1] in shown
    changed = normlab_package.compare(
        tmp_path / "study.yaml", **{"variants.own.layer": "layer_norm"}
    )
    assert changed.failures == []
    assert "failed" not in changed._repr_html_()


def test_an_error_in_a_function_that_a_program_calls_back_keeps_its_own_message(tmp_path):
    """What was shown was the first line of what XLA says."""
    file = written(tmp_path, {"variants": {"own": {"layer": "called_back"}}}, "value")
    done = normlab("compare", file, folder=tmp_path, code=1, traceback=True)
    assert f"ValueError: my own words (parts.py:{LINE} in broken)" in done.stdout
    (failed,) = (tmp_path / "runs/small/failed").glob("*.json")
    told = json.loads(failed.read_text())
    assert told["message"] == "ValueError: my own words"
    assert told["traceback"].splitlines()[-2:] == [
        f'  File "{tmp_path / "parts.py"}", line {LINE}, in broken',
        "ValueError: my own words",
    ]


@pytest.mark.parametrize(
    ("where", "how"), [("set", "error"), ("built", "exit"), ("whole", "value")]
)
def test_the_command_shows_the_traceback_of_the_users_code(tmp_path, where, how):
    file = written(tmp_path, WHERE[where], how)
    done = normlab("compare", file, folder=tmp_path, code=2, traceback=True)
    assert BREAK[how][1] in done.stderr
    if where != "built":  # pydantic has caught it in between
        assert f'File "{tmp_path / "parts.py"}", line {LINE}, in broken' in done.stderr
    assert "site-packages" not in done.stderr


def test_an_error_that_cannot_be_told_is_told_all_the_same():
    """A study ended with the error that the user's own `__str__` raised."""

    class OwnError(ValueError):
        def __str__(self):
            raise KeyError("x")

    told = "(its message cannot be told, since that raises KeyError)"
    assert str(explained(OwnError())) == f"OwnError: {told}"
    assert with_place(OwnError()) == told


def test_an_error_of_a_library_has_no_place():
    with pytest.raises(StudyError) as told:
        raise StudyError("x")
    told.value.__traceback__ = None
    assert str(explained(told.value)) == "StudyError: x"
