"""The command line as real processes: what it prints, how it fails, how it is interrupted."""

import json
import signal

import pytest
import yaml
from command import normlab, started, table, wait_for_results
from report.studies import QUICKSTART, draw_study

from normlab import cli
from normlab.catalog import WRAPPERS, field_entries
from normlab.variants import COSTS, VARIANTS, settable_fields

STUDY = {
    "study": "small",
    "data": {"name": "digits", "batch_size": 32, "train_examples": 320},
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"epochs": 2},
    "variants": {"none": {"layer": "identity"}, "batch": {"layer": "batch_norm"}},
    "tune": {"optimizer.learning_rate": [0.01, 0.1]},
    "seeds": 2,
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return path


def test_a_study_from_the_command_line_to_the_page(config):
    folder = config.parent
    done = normlab("compare", config.name, folder=folder)
    before, _, _ = done.stdout.partition("of 8 runs")
    assert "small: 2 arms, 8 runs, in runs/small" in before
    # Told while something can be done about it, and not on the page alone.
    assert (
        "Too few seeds. With 2 seeds no difference can be shown. Take 5: with these a true "
        "difference of 2 standard deviations is shown in 4 of 5 studies."
    ) in before
    for word in ("none", "batch", "accuracy", "report.html"):
        assert word in done.stdout
    page = (folder / "runs/small/report.html").read_text()
    assert "small" in page
    environment = json.loads((folder / "runs/small/environment.json").read_text())
    assert {"jax", "flax", "optax", "normlab"} <= set(environment["packages"])
    assert environment["command"].endswith("compare small.yaml")
    resolved = yaml.safe_load((folder / "runs/small/config.yaml").read_text())
    assert resolved["variants"]["batch"]["epsilon"] == 1e-5
    assert resolved["baseline"] == "none"

    again = normlab("report", "runs/small", folder=folder)
    assert done.stdout.splitlines()[-3:] == again.stdout.splitlines()[-3:]

    trained = normlab("train", config.name, "--variant", "batch", "--seed", "3", folder=folder)
    assert trained.stdout.count("step ") == 2
    (result,) = (folder / "runs/small/train/runs").glob("*.json")
    assert json.loads(result.read_text())["test"]["accuracy"] > 0.2


def test_several_studies_are_reported_on_one_page(tmp_path):
    for name in ("one", "other"):
        two = {it: QUICKSTART[it] for it in ("none", "batch")}
        draw_study(tmp_path / name, two, tune={}, study=name, seeds=2, epochs=3)
    done = normlab("report", "one", "other", "--out", "pages/joint.html", folder=tmp_path)
    assert done.stdout.splitlines()[-1] == "Page: pages/joint.html"
    assert "all studies together" in (tmp_path / "pages/joint.html").read_text("utf-8")
    assert (tmp_path / "pages/joint_charts/one/test-accuracy.svg").is_file()
    failed = normlab("report", "one", "another", "--out", "joint.html", folder=tmp_path, code=2)
    assert "another holds no study" in failed.stderr
    assert not (tmp_path / "joint.html").exists()


def test_help_of_every_command_is_there(tmp_path):
    overview = normlab("--help", folder=tmp_path).stdout
    for command in ("train", "compare", "report", "status", "export", "list", "data"):
        assert command in overview
    assert "CONFIG" in normlab("compare", "--help", folder=tmp_path).stdout


def test_list_and_data_name_everything(tmp_path):
    listed = normlab("list", folder=tmp_path).stdout
    for word in (
        "ghost_batch_norm",
        "Hoffer et al., 2017",
        "groups of the batch",
        "count, mean, var",
        "resnet",
        "lamb",
        "fashion_mnist",
        "epochs",
    ):
        assert word in listed
    shown = normlab("data", folder=tmp_path).stdout
    for word in ("digits", "mnist", "cifar10", "NORMLAB_DATA"):
        assert word in shown


@pytest.mark.parametrize("name", VARIANTS)
def test_list_shows_every_variant_whole(name, capsys):
    cli.console.width = 60
    cli.list_names(name)
    shown = " ".join(capsys.readouterr().out.split())
    variant = VARIANTS[name]
    for known in (variant.formula, variant.source, variant.statistics, COSTS[variant.cost]):
        assert known in shown
    for field in settable_fields(variant.layer):
        assert f" {field} " in shown
    assert f"normlab.{variant.layer.__name__}()(x, use_running_average=not train)" in shown
    assert f"layer: {name}" in shown


@pytest.mark.parametrize("name", WRAPPERS)
def test_list_shows_what_is_put_around_other_layers(name, capsys):
    cli.list_names(name)
    shown = capsys.readouterr().out
    assert WRAPPERS[name].source in shown
    assert f"normlab.{WRAPPERS[name].layer.__name__}(n" in shown  # nn.Dense or normlab.LayerNorm
    assert "in a study" not in shown


LAYERS_OF_A_USER = """
import normlab
from flax import linen as nn

@normlab.register("mixed")
class Mixed(nn.Module):
    strength: float | None = None

    @nn.compact
    def __call__(self, x, use_running_average=None):
        return nn.Dense(4)(x)

@normlab.register("for_vectors")
class ForVectors(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average=None):
        examples, features = x.shape
        return x
"""


def test_list_takes_layers_of_the_users_own(tmp_path):
    (tmp_path / "mine.py").write_text(LAYERS_OF_A_USER)
    listed = normlab("list", "--modules", "mine.py", folder=tmp_path).stdout
    (row,) = [line for line in listed.splitlines() if line.startswith("for_vectors")]
    assert "not known" in row
    shown = normlab("list", "mixed", "--modules", "mine.py", folder=tmp_path).stdout
    assert "Dense_0/kernel (32, 4)" in shown
    assert "{layer: mixed, strength: null}" in shown
    assert "x = mine.Mixed()(x" in shown


def test_the_meaning_of_every_field_is_told():
    for variant in VARIANTS.values():
        for entry in field_entries(variant):
            assert entry.meaning, f"{variant.name}: {entry.name}"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compare", "nowhere.yaml"], "nowhere.yaml: 1 problem"),
        (["compare", "small.yaml", "train.epochz=1"], "train.epochz: unknown key; did you mean"),
        (["compare", "small.yaml", "data.name=cifar10"], "cifar10 was not found"),
        (["compare", "small.yaml", "data.batch_size=1000"], "batch_size=1000"),
        (["compare", "small.yaml", "data.batch_size=1"], "variants.batch: BatchNorm: batch stat"),
        (
            ["compare", "small.yaml", "--out", "small.yaml"],
            "small.yaml is a file; expected",
        ),
        (["train", "small.yaml", "--variant", "bach"], "did you mean 'batch'"),
        (["report", "nowhere"], "nowhere holds no study"),
        (["report", "nowhere", "--out", "."], ". is a folder; expected a file, as report.html"),
        (["status", "nowhere"], "nowhere holds no study"),
        (["export", "nowhere"], "nowhere holds no study"),
        (
            ["export", "nowhere", "--format", "parquet"],
            "--format parquet cannot be printed; add --to PATH",
        ),
        (["compare", "small.yaml", "executor=rai"], "executor"),
        (["list", "--modules", "nowhere.py"], "nowhere.py cannot be imported"),
        (["list", "bach_norm"], "'bach_norm' is no variant; did you mean 'batch_norm'?"),
    ],
)
def test_a_users_mistake_is_told_without_a_traceback(config, monkeypatch, arguments, told):
    done = normlab(*arguments, folder=config.parent, code=2)
    assert told in done.stderr
    assert not (config.parent / "runs").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_study_keeps_its_runs_and_goes_on_to_the_same_end(config, tmp_path, how):
    overrides = ["seeds=12", "train.epochs=60"]
    results = config.parent / "runs/small"
    process = started("compare", config.name, *overrides, folder=config.parent)
    wait_for_results(process, results, 3)
    process.send_signal(how)
    printed = process.communicate(timeout=60)[0]
    kept = table(results)
    assert 3 <= len(kept) < 28
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "runs are done and kept. To go on:" in printed
        assert "Traceback" not in printed
    normlab("compare", config.name, *overrides, folder=config.parent)
    whole = table(results)
    assert len(whole) == 28
    assert [run for run in whole if run["id"] in {k["id"] for k in kept}] == kept
    if how == signal.SIGKILL:
        undisturbed = tmp_path / "undisturbed"
        undisturbed.mkdir()
        (undisturbed / config.name).write_text(config.read_text())
        normlab("compare", config.name, *overrides, folder=undisturbed)
        assert table(undisturbed / "runs/small") == whole


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_the_output_cannot_encode_is_escaped_and_ends_no_study(tmp_path, encoding):
    """After its training the study ended in a UnicodeEncodeError."""
    study = {**STUDY, "study": "my.v1", "variants": {"n ∞": {"layer": "identity"}}, "tune": None}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(study, allow_unicode=True), "utf-8")
    asked = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    for arguments in (
        ["compare", "small.yaml"],
        ["status", "runs/my.v1"],
        ["report", "runs/my.v1"],
    ):
        printed = normlab(*arguments, folder=tmp_path, **asked).stdout
        assert r"\u221e" in printed
    assert "n ∞" in (tmp_path / "runs/my.v1/report.html").read_text("utf-8")
    # What takes an export reads no escapes.
    assert "n ∞" in normlab("export", "runs/my.v1", folder=tmp_path, **asked).stdout
    normlab("--help", folder=tmp_path, **asked)
    assert "holds no study" in normlab("status", "∞", folder=tmp_path, code=2, **asked).stderr


def test_python_without_docstrings_is_refused_before_any_work(config):
    """The charts, made after the training, need them."""
    done = normlab("compare", config.name, folder=config.parent, code=2, PYTHONOPTIMIZE="2")
    assert "Python runs without docstrings (-OO or PYTHONOPTIMIZE=2)" in done.stderr
    assert not (config.parent / "runs").exists()
