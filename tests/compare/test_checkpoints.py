"""Commands that save: killed, stopped, on a full disk, on damaged files; and what is loaded."""

import json
import math
import random
import resource
import shutil
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ENVIRONMENT, NORMLAB, normlab, started, table
from compare.killing import compare, kill_at_random, train, write_study
from flax import nnx

import normlab as public
from normlab import surgery
from normlab.checksum import sealed
from normlab.compare.kept import _of_the_same_weights, _Saved, score_of
from normlab.config import ConfigError, make_study
from normlab.errors import UserError
from normlab.models import MODELS
from normlab.train import Record
from normlab.train.checkpoint import _digests, sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a run that nothing came in the way of."""
    folder = tmp_path_factory.mktemp("saved")
    write_study(folder)
    normlab(*train("whole"), folder=folder)
    return folder


def wait_for_checkpoints(process, folder, pattern, count):
    while len([*folder.glob(pattern)]) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_was_not(folder):
    kill_at_random(train("killed"), folder, "killed_saved", 3, random.Random(1))
    normlab(*train("killed"), folder=folder)
    compare(folder, "whole", "killed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_run_and_ends_it(folder, number):
    name = f"stopped{number}"
    process = started(*train(name), "train.checkpoint_every=1000000", folder=folder)
    first = process.stdout.readline()
    while not first.startswith("step"):
        first = process.stdout.readline()
        assert first, "it ended"
    process.send_signal(number)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, printed
    assert "Traceback" not in printed
    (saved,) = (folder / f"{name}_saved").glob("[0-9]*")
    assert f"Stopped; it is saved up to step {int(saved.name)}, in {name}_saved." in printed
    assert "To go on:\n  normlab train small.yaml" in printed
    normlab(*train(name), folder=folder)
    compare(folder, "whole", name)


def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(folder):
    kill_at_random(train("damaged"), folder, "damaged_saved", 1, random.Random(0))
    process = started(*train("damaged"), folder=folder)
    wait_for_checkpoints(process, folder, "damaged_saved/[0-9]*[0-9]", 2)
    process.kill()
    process.communicate()
    last = max(it for it in (folder / "damaged_saved").glob("[0-9]*") if it.name.isdecimal())
    record = last / "record" / "metadata"
    record.write_bytes(record.read_bytes()[:-2])
    done = normlab(*train("damaged"), folder=folder)
    assert f"{last.name} is damaged: record/metadata was changed since it was" in done.stderr
    assert f"that of step {int(last.name) - 1} is used" in done.stderr
    compare(folder, "whole", "damaged")


def test_a_full_disk_is_said_and_the_last_good_checkpoint_stays(folder):
    """By a limit on the size of files, below the arrays of a wider model."""
    arguments = [*train("full"), "model.hidden=[400]", "train.checkpoint_every=40"]
    process = started(*arguments, folder=folder)
    wait_for_checkpoints(process, folder, "full_saved/[0-9]*[0-9]", 1)
    process.kill()
    process.communicate()
    there = sorted(it.name for it in (folder / "full_saved").glob("[0-9]*") if it.name.isdecimal())
    done = subprocess.run(
        [*NORMLAB, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
    )
    assert done.returncode == 2, done.stdout + done.stderr
    told = " ".join(done.stderr.split())
    assert "full_saved" in told
    assert "cannot be written: File too large. Raise the limit on the size of files" in told
    assert "Traceback" not in done.stderr
    assert sorted(it.name for it in (folder / "full_saved").glob("[0-9]*")) == there
    normlab(*arguments, folder=folder)


def test_checkpoints_of_another_run_are_refused(folder):
    done = normlab(
        "train", "small.yaml", "--save", "whole_saved", "--seed", 7, folder=folder, code=2
    )
    told = " ".join(done.stderr.split())
    assert "whole_saved holds checkpoints of the run final-batch-0-" in told
    assert "give another folder, or delete it" in told


def test_what_was_saved_is_a_model_and_its_variables(folder):
    model, variables = public.load(folder / "whole_saved")
    images = jnp.zeros((4, 8, 8, 1))
    assert model.apply(variables, images, train=False).shape == (4, 10)
    assert "BatchNorm" in str(surgery.summary(model, variables, images))


@pytest.mark.parametrize(
    ("executor", "width"),
    [
        ("local", 1),
        ("local", 2),
        ("processes", 2),
        pytest.param("ray", 1, marks=pytest.mark.ray),
    ],
)
def test_a_study_that_is_stopped_within_runs_goes_on_where_they_stood(tmp_path, executor, width):
    path = write_study(tmp_path, keep="last", tune={"optimizer.learning_rate": [0.02, 0.05]})
    # What a checkpoint holds is tested above; that many of them would be most of the time.
    seldom = "train.checkpoint_every=15"
    arguments = [f"executor.name={executor}", f"executor.width={width}", seldom]
    if executor == "ray":
        pytest.importorskip("ray", reason="Ray comes with the extra `ray`")
        arguments.append("executor.address=local")
    if executor != "local":
        arguments.append("executor.workers=1")
    normlab("compare", path.name, *arguments, "--out", "whole", folder=tmp_path)
    process = started("compare", path.name, *arguments, "--out", "stopped", folder=tmp_path)
    wait_for_checkpoints(process, tmp_path, "stopped/checkpoints/*/[0-9]*[0-9]", 2)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM, printed
    saved = tmp_path.glob("stopped/checkpoints/*-*/[0-9]*[0-9]")
    assert max(int(it.name) for it in saved) > 1
    normlab("compare", path.name, *arguments, "--out", "stopped", folder=tmp_path)
    assert table(tmp_path / "stopped") == table(tmp_path / "whole")
    assert not [*(tmp_path / "stopped/checkpoints").glob("*-*")]
    kept = sorted(it.name for it in (tmp_path / "whole/weights").iterdir())
    assert [name.rsplit("-", 1)[0] for name in kept] == ["final-batch-0", "final-batch-1"]
    for name in kept:
        one, two = (public.load(tmp_path / it / "weights" / name)[1] for it in ("whole", "stopped"))
        jax.tree.map(np.testing.assert_array_equal, one, two)


def small(**changes):
    study = {
        "study": "kept",
        "data": {"name": "digits", "batch_size": 16, "train_examples": 160},
        "model": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 4},
        "variants": {"batch": {"layer": "batch_norm"}},
        "seeds": 1,
    }
    return make_study(study, changes)


def test_a_module_of_nnx_holds_its_weights(tmp_path):
    @public.register_model("kept_nnx")
    class Kept(nnx.Module):
        def __init__(self, norm, classes, hidden: tuple[int, ...] = (), *, rngs):
            del hidden  # which the study has for another model
            self.norm = norm(64, rngs=rngs)
            self.head = nnx.Linear(64, classes, rngs=rngs)

        def __call__(self, x):
            return self.head(self.norm(x.reshape(len(x), -1)))

    try:
        study = small(model={"name": "kept_nnx"})
        public.compare(study, out=tmp_path, keep="last")
        (kept,) = (tmp_path / "weights").iterdir()
        module, variables = public.load(kept)
    finally:
        MODELS.pop("kept_nnx")
    assert isinstance(module, Kept)
    module.eval()
    assert module(jnp.zeros((2, 8, 8, 1))).shape == (2, 10)
    np.testing.assert_array_equal(module.head.kernel[...], variables["params"]["head"]["kernel"])


def test_the_best_weights_have_the_accuracy_that_the_curve_has(tmp_path):
    results = public.compare(small(), out=tmp_path, keep="best", **{"train.epochs": 6})
    (name,) = [it.name for it in (tmp_path / "weights").iterdir()]
    told = json.loads((tmp_path / "runs" / f"{name}.json").read_text())
    (step,) = (it for it in (tmp_path / "weights" / name).glob("[0-9]*"))
    curve = results.curves.sort("validation_accuracy", "step", descending=[True, False])
    assert int(step.name) == curve["step"][0]
    assert told["status"] == "finished"


def test_the_best_of_what_has_no_number_is_kept_all_the_same():
    """Of R² of constant targets no weights were kept, and the study said that it had not to."""
    changes = {"objective": {"name": "regression"}, "metric": "r2", "keep": "best"}
    given = {"study": "s", "model": {"name": "mlp"}, "variants": {"none": {"layer": "identity"}}}
    score = score_of(make_study(given, changes))
    nothing = {"loss": 0.5, "r2": math.nan}
    assert score(Record(1, {}, nothing)) == -math.inf
    assert score(Record(1, {}, {"loss": 0.5, "r2": -3.0})) == -3.0
    assert score(Record(1, {}, {"loss": math.nan, "r2": math.nan})) is None
    assert score(Record(1, {})) is None


def test_weights_that_a_study_did_not_keep_are_told(tmp_path, capsys):
    public.compare(small(), out=tmp_path)
    public.compare(small(), out=tmp_path, keep="last")
    told = " ".join(capsys.readouterr().out.split())
    assert "Of 1 finished runs no weights are kept, since the study did not say so" in told


def test_how_often_runs_are_saved_is_no_part_of_what_they_are(tmp_path):
    one, other = small(), small(**{"train.checkpoint_every": 3, "keep": "last"})
    assert one.hash == other.hash
    public.compare(one, out=tmp_path)
    (run,) = (tmp_path / "runs").glob("*.json")
    before = run.stat().st_mtime_ns
    public.compare(other, out=tmp_path)
    (again,) = (tmp_path / "runs").glob("*.json")
    assert (again, again.stat().st_mtime_ns) == (run, before)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"keep": "all"}, "keep: "),
        ({"train.checkpoint_every": 0}, "train.checkpoint_every: "),
        ({"tune": {"train.checkpoint_every": [1, 2]}}, "cannot be tuned"),
        ({"factors": {"train.checkpoint_every": [1, 2]}}, "cannot be a factor"),
    ],
)
def test_mistakes_are_told(changes, told):
    with pytest.raises(ConfigError, match=told):
        small(**changes)


def test_folders_without_weights_are_told_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"holds no weights; give weights/RUN in the folder of a"):
        public.load(tmp_path)
    public.compare(small(), out=tmp_path, keep="last")
    with pytest.raises(UserError, match=r"holds no weights, but those of 1 run: .*final-batch-0"):
        public.load(tmp_path)
    (kept,) = (tmp_path / "weights").iterdir()
    (step,) = kept.glob("[0-9]*")
    (step / "record" / "metadata").unlink()
    with pytest.raises(UserError, match=r"is damaged: record/metadata is missing"):
        public.load(kept)


BENT = [
    ("run.json", ("runs",), None),
    ("run.json", ("runs",), []),
    ("run.json", ("arm",), {"variant": "batch"}),
    ("run.json", ("arm", "variant"), "other"),
    ("run.json", ("study",), {}),
    ("run.json", ("study", "model"), {"name": "mlp", "hidden": "x"}),
    ("run.json", ("study", "modules"), 3),
    ("run.json", ("inputs", "shape"), [8]),
    ("run.json", ("inputs", "dtype"), "no"),
    ("run.json", ("outputs",), 2**70),
    ("checksum.json", ("files",), []),
    ("checksum.json", ("files",), None),
    ("checksum.json", (), {}),
    ("record/metadata", ("arrays",), None),
    ("record/metadata", ("arrays",), {}),
    ("arrays/_METADATA", (), {}),
    ("arrays/_METADATA", ("tree_metadata",), {}),
]


def test_what_normlab_did_not_write_is_named_whatever_its_checksums_say(folder, tmp_path):
    """KeyError, TypeError and errors of pydantic and orbax came out of `load`, with tracebacks."""
    whole = folder / "whole_saved"
    for number, (name, keys, to) in enumerate(BENT):
        there = tmp_path / str(number)
        shutil.copytree(whole, there)
        last = max(there.glob("[0-9]*"))
        path = there / name if name == "run.json" else last / name
        content = json.loads(path.read_text())
        content.pop("checksum", None)
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        if keys:
            inner[keys[-1]] = to
        else:
            content = to
        path.write_text(sealed(content) if path.parent in (there, last) else json.dumps(content))
        if path.parent not in (there, last):
            (last / "checksum.json").write_text(sealed({"files": _digests(last)}))
        for step in set(there.glob("[0-9]*")) - {last}:
            shutil.rmtree(step)
        with pytest.raises(UserError, match=f"{there}.*give another folder|{there} holds no weig"):
            public.load(there)


def test_what_is_the_users_own_in_the_folder_to_save_in_stays(folder):
    """Folders called 2024.partners and 1700000000 were removed, the first without a word."""
    for name in ("2024.partners", "3.tmpdata", "1700000000"):
        (folder / "mine" / name).mkdir(parents=True)
        (folder / "mine" / name / "work").touch()
    told = normlab("train", "small.yaml", "--save", "mine", folder=folder, code=2).stderr
    assert "holds other things, as 1700000000; give an empty folder" in told
    assert len([*(folder / "mine").glob("*/work")]) == 3
    sweep(folder / "mine")
    assert len([*(folder / "mine").glob("*/work")]) == 3


def test_weights_stay_those_that_are_kept_whatever_else_of_a_study_changes():
    """A changed margin removed the best weights of a run that went on from a checkpoint."""
    there = {"runs": ["a"], "keep": "best", "study": {"metric": {"name": "loss"}, "seeds": 2}}
    more = there | {"study": {"metric": {"name": "loss"}, "seeds": 3}}
    saved = _Saved.model_construct(**there)
    assert _of_the_same_weights(saved, more)
    others = ({"runs": ["b"]}, {"keep": "last"}, {"study": {"metric": {"name": "accuracy"}}})
    for other in others:
        assert not _of_the_same_weights(saved, there | other)
    assert not _of_the_same_weights(None, there)
