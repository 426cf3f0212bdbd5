"""Fingerprints of a user's code: the same in every process, another for whatever is changed."""

import subprocess
import sys
from types import ModuleType
from unittest import mock

import pytest

import normlab
from normlab.compare import fingerprint

# As a notebook runs it: there is no file.
NOTEBOOK = """
import jax
import jax.numpy as jnp
from flax import linen as nn

STRENGTH = 2.0
CHOICES = {"a", "b", "c"}

def inner(x):
    return STRENGTH * x

@jax.jit
def helper(x):
    return [inner(it) for it in (x, x)] if "a" in {"a", "b", "c"} else x

class Base(nn.Module):
    power: int = 2

class Model(Base):
    initializer: object = nn.initializers.zeros

    @nn.compact
    def __call__(self, x, *, train):
        return helper(x) ** self.power
"""


def notebook(text=NOTEBOOK):
    names = {"__name__": "__main__"}
    exec(text, names)
    return names["Model"]


def of(text):
    # In a notebook, too, the main module has no file; here it would be that of pytest.
    with mock.patch.dict(sys.modules, {"__main__": ModuleType("__main__")}):
        return fingerprint.of_user_code(notebook(text))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("STRENGTH = 2.0", "STRENGTH = 3.0"),
        ("STRENGTH * x", "STRENGTH + x"),
        ("power: int = 2", "power: int = 3"),
        ("** self.power", "* self.power"),
        ("initializers.zeros", "initializers.ones"),
        ("inner(it) for it in", "it for it in"),
        ("def inner(x):", "def inner(x, y=1):"),
    ],
)
def test_whatever_a_class_in_a_notebook_rests_on_changes_its_fingerprint(before, after):
    assert before in NOTEBOOK
    assert of(NOTEBOOK.replace(before, after)) != of(NOTEBOOK)


def test_a_field_that_studies_once_had_not_counts_only_with_another_value():
    """Results of former versions are found by what their studies said."""
    former = {"data": {"name": "digits"}, "tune": {"seeds": 1}}

    def of(order="shuffled", stop_early=False, stream=False):
        data = {"name": "digits", "order": order, "stream": stream}
        return fingerprint.of_config({"data": data, "tune": {"seeds": 1, "stop_early": stop_early}})

    assert of() == fingerprint.of_config(former) == of(stream=True)
    assert len({of(), of(order="by_class"), of(stop_early=True)}) == 3


def test_comments_and_what_it_does_not_name_leave_it_as_it_is():
    assert of("# a comment\n" + NOTEBOOK + "\nOTHER = 3\n") == of(NOTEBOOK)


def test_it_is_the_same_in_every_process():
    program = (
        f"from normlab.compare import fingerprint\n{NOTEBOOK}\n"
        "print(fingerprint.of_user_code(Model))"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    ]
    assert printed[0] == printed[1]
    assert len(printed[0].strip()) == 64


def test_a_class_in_a_file_has_that_of_the_file_and_one_of_normlab_none(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for place, end in (("one_model", ""), ("same_model", ""), ("other_model", "# more")):
        (tmp_path / f"{place}.py").write_text(NOTEBOOK + end)
    import one_model  # pyright: ignore[reportMissingImports]
    import other_model  # pyright: ignore[reportMissingImports]
    import same_model  # pyright: ignore[reportMissingImports]

    one, same, other = (
        fingerprint.of_user_code(it.Model) for it in (one_model, same_model, other_model)
    )
    assert one == same != other
    assert fingerprint.of_user_code(normlab.BatchNorm) is None
