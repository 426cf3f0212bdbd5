"""Probes of a study: what they write, that nothing else changes, that a kill leaves no trace."""

import json
import math
import random
from dataclasses import replace

import jax
import numpy as np
import polars as pl
import pytest
from command import normlab
from compare.killing import kill_at_random, train, write_study
from flax import linen as nn
from small_runs import programs_of, small_dataset

import normlab as public
from normlab import BatchNorm
from normlab.compare.store import Probed, Store, StoreError
from normlab.config import ConfigError, make_study
from normlab.data import load
from normlab.data.batches import standardize
from normlab.report import read_study
from normlab.report.charts import figures
from normlab.report.inside import _by_layer
from normlab.report.view import views
from normlab.results import read_results
from normlab.train import MeshSpec, StateHook, fit, probing

STUDY = {
    "study": "probed",
    "data": {"name": "digits", "batch_size": 32, "train_examples": 300},
    "model": {"name": "mlp", "hidden": [12, 8]},
    "train": {"epochs": 2},
    "variants": {"none": {"layer": "identity"}, "batch": {"layer": "batch_norm", "momentum": 0.9}},
    "optimizer": {"learning_rate": 0.2},
    "seeds": 2,
    "keep": "last",
}
PROBES = {"activations": {"every": 4}, "gradients": {}, "weights": {"every": 1000}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    (folder / "probed.yaml").write_text(json.dumps({**STUDY, "probes": PROBES}))
    normlab("compare", "probed.yaml", "--out", "with", folder=folder)
    return folder


def test_probes_look_when_they_are_asked_to(folder):
    store = Store(folder / "with")
    for name in store.plan():
        lines = store.probes(name)
        steps = {it: [line.step for line in lines if line.probe == it] for it in PROBES}
        assert steps == {
            "activations": [0, 4, 8, 12, 16, 18],
            "gradients": [0, 9, 18],
            "weights": [0, 18],
        }
        assert all(line.seconds > 0 for line in lines)


def test_at_the_end_they_find_what_the_kept_weights_have(folder):
    """So that what is looked at is the state after the step that is told, and the batch known."""
    store = Store(folder / "with")
    study = make_study(STUDY, {})
    dataset = load(study.data, "classes")
    chosen = dataset.validation[:32]
    mean, deviation = (jax.numpy.asarray(it) for it in (dataset.mean, dataset.deviation))
    images = standardize(jax.numpy.asarray(dataset.images[chosen]), mean, deviation, "float32")
    for name in store.plan():
        model, variables = public.load(folder / "with" / "weights" / name)
        batch = images, dataset.labels[chosen]
        expected = public.probe(model, variables, batch, probes=tuple(PROBES), step=0.2)
        for probe in PROBES:
            *_, last = [it for it in store.probes(name) if it.probe == probe]
            assert last.values.keys() == expected[probe].keys()
            for quantity, values in last.values.items():
                assert [*values] == [*expected[probe][quantity]]  # in the order of the calls
                found = [math.inf if it is None else it for it in values.values()]
                wanted = [*expected[probe][quantity].values()]
                np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-5)


def test_they_change_no_number_of_a_run_and_none_of_its_identity(folder):
    normlab("compare", "probed.yaml", "--out", "without", "probes={}", folder=folder)
    runs = sorted((folder / "with" / "runs").glob("*.json"))
    assert len(runs) == 4
    for path in runs:
        other = json.loads((folder / "without" / "runs" / path.name).read_text())
        run = json.loads(path.read_text())
        for key in ("curve", "test", "identity", "id"):
            assert run[key] == other[key]
    told = normlab("compare", "probed.yaml", "--out", "without", folder=folder).stdout
    assert "Of 4 finished runs no probes are kept" in " ".join(told.split())
    none = normlab("export", "without", "--probes", folder=folder, code=2)
    assert "probes: {activations: {every: 100}}" in " ".join(none.stderr.split())


def test_results_have_them_as_a_table(folder):
    table = read_results(folder / "with").probes
    assert table["probe"].unique().sort().to_list() == sorted(PROBES)
    store = Store(folder / "with")
    for row in table.sample(40, seed=0).to_dicts():
        (line,) = [
            it
            for it in store.probes(row["id"])
            if (it.step, it.probe) == (row["step"], row["probe"])
        ]
        assert line.values[row["quantity"]][row["of"]] == row["value"]
    assert read_results(folder / "without").probes.is_empty()


def test_they_are_exported_as_the_table_that_python_has(folder, tmp_path):
    table = read_results(folder / "with").probes
    normlab("export", "with", "--probes", "--to", str(tmp_path / "probes.csv"), folder=folder)
    read = pl.read_csv(tmp_path / "probes.csv", infer_schema_length=None)
    assert read.columns == table.columns
    assert read["value"].to_list() == pytest.approx(table["value"].to_list(), nan_ok=True)
    form = ("--format", "parquet", "--to", str(tmp_path / "probes.parquet"))
    normlab("export", "with", "--probes", *form, folder=folder)
    assert pl.read_parquet(tmp_path / "probes.parquet").equals(table)
    refused = normlab("export", "with", "--probes", "--table", "csv", folder=folder, code=2)
    assert "leave out one of the two" in " ".join(refused.stderr.split())


NNX_MODEL = """
import normlab
from flax import nnx


@normlab.register_model("mine")
class Mine(nnx.Module):
    def __init__(self, *, norm, classes: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, 12, rngs=rngs)
        self.norm = norm(12, rngs=rngs)
        self.head = nnx.Linear(12, classes, rngs=rngs)

    def __call__(self, x):
        x = self.first(x.reshape(len(x), -1))
        return self.head(nnx.relu(self.norm(x)))
"""


def test_an_nnx_model_is_looked_into_as_any_other(tmp_path):
    """All probes tell of it, and activations at the end are those of its kept weights, by hand."""
    (tmp_path / "mine.py").write_text(NNX_MODEL)
    asked = {probe: {} for probe in ("activations", "gradients", "weights", "shift")}
    study = {**STUDY, "modules": ["mine.py"], "model": {"name": "mine"}, "probes": asked}
    study |= {"seeds": 1, "variants": {"batch": {"layer": "batch_norm", "momentum": 0.9}}}
    (tmp_path / "nnx.yaml").write_text(json.dumps(study))
    normlab("compare", "nnx.yaml", "--out", "nnx", folder=tmp_path)
    store = Store(tmp_path / "nnx")
    (name,) = store.plan()
    lines = store.probes(name)
    assert {it.probe for it in lines} == set(asked)
    (told,) = [it for it in lines if it.probe == "activations" and it.step == 18]
    assert told.values["deviation"].keys() == {"norm_0"}
    (weights,) = [it for it in lines if it.probe == "weights" and it.step == 18]
    assert weights.values["undone"].keys() == {"norm_0"}
    data = load(make_study(STUDY, {}).data, "classes")
    pixels = data.images[data.validation[:32]].astype(np.float64)
    pixels = ((pixels - data.mean) / data.deviation).reshape(32, -1)
    _, variables = public.load(tmp_path / "nnx" / "weights" / name)
    first, norm = variables["params"]["first"], variables["params"]["norm"]
    inner = pixels @ np.asarray(first["kernel"], np.float64) + np.asarray(first["bias"])
    normal = (inner - inner.mean(0)) / np.sqrt(inner.var(0) + 1e-5)
    outputs = np.asarray(norm["scale"]) * normal + np.asarray(norm["bias"])
    assert told.values["deviation"]["norm_0"] == pytest.approx(outputs.std(), rel=1e-4)
    assert told.values["percentile_85"]["norm_0"] == pytest.approx(
        np.percentile(outputs, 85), rel=1e-3
    )


def test_the_page_shows_them_by_layer_over_training(folder):
    study = read_study(folder / "with")
    by_name = {it.name: it for it in figures(views([study])[0])}
    shown = by_name["weights-undone"]
    assert [it["text"] for it in shown.datasets["weights-undone-panels"]] == ["norm_0", "norm_1"]
    assert {it["arm"] for it in shown.datasets["weights-undone"]} == {"batch"}
    rows = by_name["activations-deviation"].datasets["activations-deviation"]
    store = Store(folder / "with")
    for row in rows:
        values = [
            it.values["deviation"][row["panel"]]
            for run in study.results
            if run.arm == row["arm"]
            for it in store.probes(run.id)
            if (it.probe, it.step) == ("activations", row["step"])
        ]
        assert len(values) == 2
        assert row["value"] == pytest.approx(np.mean(values), rel=1e-3)
        panel = ["norm_0", "norm_1"].index(row["panel"])
        assert row["at"] == pytest.approx(panel + 0.9 * row["step"] / 18, abs=1e-3)
    assert len(rows) == 2 * 2 * 6
    percentiles = by_name["activations-percentiles"].datasets["activations-percentiles-panels"]
    assert [it["text"] for it in percentiles] == ["15%", "50%", "85%"]
    page = (folder / "with" / "report.html").read_text()
    for figure in ("Gradients by depth", "Deviation of outputs", "Percentiles of the last layer"):
        assert f"<h2>{figure}</h2>" in page
    assert "Gradients by depth" not in (folder / "without" / "report.html").read_text()


def test_layers_that_only_some_arms_have_stand_where_they_are_called(folder):
    """The shift of the arm without norms was told first, and norms stood after the head."""
    lines = {
        "a": [Probed(step=1, probe="p", seconds=0, values={"q": {"dense": 1.0, "head": 1.0}})],
        "b": [
            Probed(step=1, probe="p", seconds=0, values={"q": dict.fromkeys(LAYERS, 2.0)}),
        ],
    }
    view = views([read_study(folder / "with")])[0]
    runs = {arm: view.runs(arm)[0].id for arm in ("none", "batch")}
    inside = {runs["none"]: lines["a"], runs["batch"]: lines["b"]}
    assert [*_by_layer(replace(view, inside=inside), "p", "q")] == [*LAYERS]


LAYERS = ("dense", "norm", "head")


def test_a_run_that_is_killed_has_the_lines_of_one_that_was_not(tmp_path):
    write_study(tmp_path, probes={"activations": {"every": 7}})
    normlab(*train("whole"), folder=tmp_path)
    kill_at_random(train("killed"), tmp_path, "killed_saved", 2, random.Random(3))
    normlab(*train("killed"), folder=tmp_path)
    (whole,), (killed,) = (
        [[*Store(tmp_path / name).probes(it.stem)] for it in (tmp_path / name).glob("probes/*")]
        for name in ("whole", "killed")
    )
    assert [it.step for it in whole] == [*range(0, 120, 7), 120]
    assert [(it.step, it.values) for it in killed] == [(it.step, it.values) for it in whole]


def test_what_was_found_after_the_checkpoint_is_found_anew(tmp_path):
    store = Store(tmp_path)
    for step in (0, 5, 10):
        store.write_probed("a", Probed(step=step, probe="p", seconds=0, values={"q": {"l": 1.5}}))
    with (tmp_path / "probes" / "a.jsonl").open("a") as file:
        file.write('{"step": 15, "pro')  # a process was killed as it wrote
    assert [it.step for it in store.probes("a")] == [0, 5, 10]
    store.begin_probes("a", 5)
    assert [it.step for it in store.probes("a")] == [0, 5]
    store.begin_probes("a", None)
    assert store.probes("a") == []


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "probes" / "a.jsonl"
    path.parent.mkdir()
    path.write_text('{"step": -1}\n')
    with pytest.raises(StoreError, match=r"a\.jsonl is damaged .* delete it"):
        Store(tmp_path).probes("a")


@pytest.mark.parametrize(
    ("probes", "told"),
    [
        ({"activation": {}}, "there is no probe 'activation'; did you mean 'activations'?"),
        ({"shift": {"every": 0}}, "probes.shift.every: should be greater than or equal to 1"),
        ({"shift": {"evry": 1}}, "probes.shift.evry: unknown key; did you mean 'every'?"),
    ],
)
def test_what_is_wrong_is_told(probes, told):
    with pytest.raises(ConfigError) as caught:
        make_study({**STUDY, "probes": probes}, {})
    assert told in str(caught.value)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(16)(x.reshape(len(x), -1))
        return nn.Dense(3)(nn.relu(BatchNorm(use_running_average=not train)(x)))


def looked(width=1, mesh=None, seeds=(0,)):
    programs = programs_of(Net(), small_dataset(), width=width, mesh=mesh)
    found = []
    _, traced = programs.inputs(list(seeds), [{}] * len(seeds))

    def look(moment):
        found.append(probing(programs, ("activations", "gradients"))(moment.state, traced))

    fit(programs, list(seeds), hooks=[StateHook(1000, look, first=True, counts=False)])
    assert [len(it) for it in found] == [width, width]
    return found


def values_of(found):
    return [
        value
        for of_run in found
        for told in of_run.values()
        for each in told.values()
        for value in each.values()
    ]


def test_of_runs_that_are_trained_at_a_time_each_has_its_own():
    together = looked(width=3, seeds=(0, 1))
    for place, seed in enumerate((0, 1)):
        alone = looked(seeds=(seed,))
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(
                values_of([one[place]]), values_of(other), rtol=2e-3, atol=1e-5
            )


def test_on_eight_devices_they_find_what_one_finds():
    spread, alone = looked(mesh=MeshSpec(data=8)), looked()
    for one, other in zip(spread, alone, strict=True):
        np.testing.assert_allclose(values_of(one), values_of(other), rtol=2e-3, atol=1e-5)


def test_one_program_serves_all_runs_of_an_arm():
    programs = programs_of(Net(), small_dataset())
    assert probing(programs, ["activations"]) is probing(programs, ["activations"])
