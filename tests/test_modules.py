"""A study's modules are those beside it, whatever else is called so."""

import multiprocessing
import os
import pickle
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest

import normlab
from normlab.compare.fingerprint import of_user_code
from normlab.config import ConfigError, load_study
from normlab.data import load
from normlab.models import MODELS
from normlab.modules import import_modules
from normlab.variants import VARIANTS

LAYER = """
import jax.numpy as jnp
import normlab
from flax import linen as nn

@normlab.register("centred")
class Centred(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average=None):
        return {factor} * x
"""
STUDY = """
study: {name}
modules: [{module}]
data: {{name: digits, batch_size: 32, train_examples: 64}}
model: {{name: mlp, hidden: [4]}}
train: {{epochs: 1}}
variants: {{own: {{layer: centred}}}}
seeds: 1
"""


@pytest.fixture(autouse=True)
def _forget():
    path = list(sys.path)
    yield
    import_modules([], normlab.modules.Path())
    assert sys.path == path


def a_study(folder, factor, module="my_layers.py", layer=LAYER):
    folder.mkdir(exist_ok=True)
    (folder / "my_layers.py").write_text(textwrap.dedent(layer).replace("{factor}", str(factor)))
    file = folder / "study.yaml"
    file.write_text(STUDY.format(name=folder.name, module=module))
    return file


def factor_of(study):
    """What the study's layer multiplies by."""
    layer = study.variants["own"].constructor()()
    return float(layer.apply({}, jnp.ones(())))


@pytest.mark.parametrize("module", ["my_layers", "my_layers.py"])
def test_each_study_gets_the_file_beside_it(tmp_path, monkeypatch, module):
    """The import path was asked, where the file of another study or of the folder came first."""
    work = tmp_path / "work"
    a_study(work, 9)
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(work)
    one, other = (load_study(a_study(tmp_path / it, n, module)) for it, n in (("a", 1), ("b", 2)))
    # The first was checked before the second, which registered the same name, and keeps its own.
    assert (factor_of(one), factor_of(other)) == (1, 2)
    codes = [of_user_code(it.variants["own"].layer_class) for it in (one, other)]
    assert codes[0] != codes[1]
    # Checked again, as `normlab.compare` does from whatever folder, it is still the first.
    assert factor_of(load_study(tmp_path / "a" / "study.yaml")) == 1
    assert "my_layers" not in sys.modules


def test_what_another_study_registered_is_not_known(tmp_path):
    load_study(a_study(tmp_path / "a", 1))
    other = a_study(tmp_path / "b", 1)
    with pytest.raises(ConfigError, match="unknown layer 'centred'"):
        load_study(other, ["modules=[]"])


def test_each_study_gets_the_data_of_its_own_file_whenever_it_reads_them(tmp_path):
    loader = """
        import numpy as np

        @normlab.register_data("mine")
        def load():
            images, labels = np.full((100, 2), {factor}, np.float32), np.arange(100) % 2
            return images, labels, images, labels
    """
    read = [
        load_study(
            a_study(tmp_path / name, factor, layer=LAYER + textwrap.dedent(loader)),
            ["data={name: mine, batch_size: 8, standardize: false}"],
        )
        for name, factor in (("one", 1), ("two", 2))
    ]
    import_modules([], tmp_path)
    for study, value in zip(read, (1, 2), strict=True):
        (arm,) = study.arms()
        for as_seen in (study, study.for_arm(arm)):
            assert (load(as_seen.data).images == value).all()
    with pytest.raises(ConfigError, match="'mine' is not known"):
        load_study(a_study(tmp_path / "three", 3), ["data.name=mine"])


def test_an_edited_file_is_read_again_though_it_has_the_same_size_and_time(tmp_path):
    file = a_study(tmp_path / "a", 1)
    layers = file.parent / "my_layers.py"
    os.utime(layers, (1, 1))
    before = load_study(file)
    code = of_user_code(before.variants["own"].layer_class)
    a_study(tmp_path / "a", 2)
    os.utime(layers, (1, 1))
    after = load_study(file)
    assert (factor_of(before), factor_of(after)) == (1, 2)
    assert of_user_code(after.variants["own"].layer_class) != code
    assert not (file.parent / "__pycache__").exists()


WITH_HELPER = LAYER.replace("from flax", "from .helper import FACTOR\nfrom flax").replace(
    "{factor}", "FACTOR"
)


def test_a_file_imports_its_neighbours_by_relative_imports_and_rests_on_them(tmp_path):
    codes = []
    for folder, factor in (("a", 1), ("b", 2), ("a", 3)):
        file = a_study(tmp_path / folder, "", layer=WITH_HELPER)
        (file.parent / "helper.py").write_text(f"FACTOR = {factor}\n")
        study = load_study(file)
        assert factor_of(study) == factor
        codes.append(of_user_code(study.variants["own"].layer_class))
    assert len(set(codes)) == 3


def test_an_import_without_a_dot_of_a_neighbour_is_told_how_to_write(tmp_path, monkeypatch):
    """From another study's folder on the path, its helper would be taken without a word."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "helper.py").write_text("FACTOR = 9\n")
    monkeypatch.syspath_prepend(work)
    file = a_study(tmp_path / "a", "", layer=WITH_HELPER.replace("from .helper", "from helper"))
    (file.parent / "helper.py").write_text("FACTOR = 1\n")
    with pytest.raises(ConfigError, match=r"write `from \. import helper` or `from \.helper"):
        load_study(file)


def test_no_file_beside_a_study_takes_the_place_of_a_library(tmp_path):
    file = a_study(tmp_path / "a", 1, layer=LAYER + "\nimport jax, numpy\nNUMPY = numpy.__name__\n")
    for name in ("numpy", "jax", "random"):
        (file.parent / f"{name}.py").write_text("raise RuntimeError('not me')\n")
    assert factor_of(load_study(file)) == 1
    assert jax.__version__


def test_a_class_of_a_study_can_be_pickled(tmp_path):
    layer = load_study(a_study(tmp_path / "a", 1)).variants["own"].constructor()()
    assert pickle.loads(pickle.dumps(layer)) == layer


@pytest.mark.parametrize(
    ("name", "file"), [("own.layers", "own/layers.py"), ("own", "own/__init__.py")]
)
def test_a_package_beside_a_study_is_its_own(tmp_path, name, file):
    study = a_study(tmp_path / "a", 1, module=name)
    (tmp_path / "a" / "own").mkdir()
    (tmp_path / "a" / "my_layers.py").rename(tmp_path / "a" / file)
    assert load_study(study).modules == (str((tmp_path / "a" / file).resolve()),)


def test_an_installed_module_is_imported_by_name_and_stays(tmp_path, monkeypatch):
    a_study(tmp_path / "installed", 5)
    (tmp_path / "installed" / "my_layers.py").rename(tmp_path / "installed" / "installed_layers.py")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    file = a_study(tmp_path / "a", 1, module="installed_layers")
    for _ in range(2):
        study = load_study(file)
        assert (study.modules, factor_of(study)) == (("installed_layers",), 5)
    del VARIANTS["centred"], sys.modules["installed_layers"]


@pytest.mark.parametrize("code", ["import sys; sys.exit(0)", "raise SystemExit", "exit(0)"])
def test_a_module_that_exits_is_told_as_one_that_fails(tmp_path, code):
    """It ended the command with exit code 0 and no word."""
    file = a_study(tmp_path / "a", 1, layer=f"{code}\n")
    with pytest.raises(ConfigError, match=r"my_layers\.py cannot be imported: it called sys\.exit"):
        load_study(file)


@pytest.mark.parametrize("name", ["", ".", "/", "a/b", "..x", "a..b"])
def test_what_is_no_name_of_a_module_is_told(tmp_path, name):
    with pytest.raises(ConfigError, match="is no name of a module; expected one as my_layers"):
        load_study(a_study(tmp_path / "one", 1), [f"modules=['{name}']"])


def test_all_modules_that_fail_are_told_with_their_places(tmp_path):
    file = a_study(tmp_path / "a", 1, layer="def f():\n    1 / 0\nf()\n")
    (tmp_path / "a" / "typo.py").write_text("x = 1\nclass:\n")
    with pytest.raises(ConfigError) as told:
        load_study(file, ["modules=[my_layers.py, typo.py, no_such_layers, nowhere.py]"])
    assert told.value.problems == [
        "modules: my_layers.py cannot be imported: ZeroDivisionError: division by zero "
        "(my_layers.py:2 in f)",
        "modules: typo.py cannot be imported: SyntaxError: invalid syntax (typo.py:2)",
        "modules: no_such_layers cannot be imported: ModuleNotFoundError: there is no file "
        f"no_such_layers.py in {tmp_path / 'a'}, the folder of the study, and no module of this "
        "name is installed",
        "modules: nowhere.py cannot be imported: FileNotFoundError: there is no file "
        f"{tmp_path / 'a' / 'nowhere.py'}",
    ]


def test_a_spawned_process_and_this_one_load_the_same_file(tmp_path, monkeypatch):
    work = tmp_path / "work"
    a_study(work, 9)
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(work)
    for folder, factor in (("a", 1), ("b", 2)):
        file = a_study(tmp_path / folder, factor)
        out = tmp_path / f"out_{folder}"
        results = normlab.compare(file, out=out, executor={"name": "processes", "workers": 1})
        again = normlab.compare(out / "config.yaml", out=out)
        assert len(results.runs) == len(again.runs) == 1
    assert multiprocessing.active_children() == []
    assert "centred" not in MODELS
