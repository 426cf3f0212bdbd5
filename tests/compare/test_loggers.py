"""Loggers: told of each point as it is made, also of those that a run goes on from."""

import sys
import types

import pytest

import normlab
from normlab.compare.grid import single_run
from normlab.compare.loggers import logging_to
from normlab.config import ConfigError, make_study
from normlab.errors import UserError
from normlab.train import Record

STUDY = {
    "study": "small",
    "data": {"name": "digits", "batch_size": 32, "train_examples": 64},
    "model": {"name": "mlp", "hidden": [4]},
    "train": {"epochs": 2},
    "variants": {"none": {"layer": "identity"}},
    "seeds": 1,
}


def events(path):
    """Step and values by name of each event of a file."""
    from tensorboardX.proto import event_pb2

    content, found = path.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12 : 12 + size])
        content = content[16 + size :]
        found += [(event.step, it.tag, it.simple_value) for it in event.summary.value]
    return found


def test_tensorboard_has_each_point_of_a_study_and_no_number_is_another(tmp_path):
    pytest.importorskip("tensorboardX", reason="comes with the extra `tensorboard`")
    plain = normlab.compare(STUDY, out=tmp_path / "plain")
    logged = normlab.compare(STUDY, out=tmp_path / "logged", log=["tensorboard"])
    assert plain.runs["id"].to_list() == logged.runs["id"].to_list()
    (run,) = logged.runs["id"]
    (path,) = (tmp_path / "logged/logs/tensorboard" / run).iterdir()
    curves = logged.curves
    expected = {
        (row["step"], name): row[name]
        for row in curves.iter_rows(named=True)
        for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    }
    found = {(step, name): value for step, name, value in events(path)}
    assert found == pytest.approx(expected, rel=1e-6)


def test_wandb_is_told_without_a_network_and_ended(tmp_path, monkeypatch):
    told = []

    class Run:
        def log(self, metrics, step):
            told.append((step, metrics))

        def finish(self):
            told.append("finished")

    def init(**options):
        assert options["mode"] == "offline"
        assert options["dir"].startswith(str(tmp_path))
        assert (options["project"], options["name"]) == ("small", "run")
        assert options["config"]["model"]["name"] == "mlp"
        return Run()

    fake = types.SimpleNamespace(init=init, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    study = make_study(STUDY, {"log": ["wandb"]})
    runs = [single_run(study, study.arms()[0], 0)]
    with logging_to(tmp_path, runs, ["run"]) as hook:
        hook.call(0, Record(2, {"loss": 1.0}))
        hook.call(0, Record(4, {"loss": 0.5}, {"loss": 0.7}))
    assert told == [
        (2, {"train_loss": 1.0}),
        (4, {"train_loss": 0.5, "validation_loss": 0.7}),
        "finished",
    ]


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("tensorboard", "tensorboardX.record_writer", "tensorboard"), ("wandb", "wandb", "wandb")],
)
def test_a_library_that_is_not_there_is_told_before_any_run(
    tmp_path, monkeypatch, name, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"log: {name}.* pip install 'normlab\[{extra}\]'"):
        normlab.compare(STUDY, out=tmp_path, log=[name])
    assert not (tmp_path / "runs").exists()


def test_a_logger_that_there_is_none_of_is_told():
    with pytest.raises(ConfigError, match=r"log\[0\]: .*tensorbord"):
        make_study(STUDY, {"log": ["tensorbord"]})
