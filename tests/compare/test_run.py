"""Studies from configuration to results: fair tuning, pairing, going on, leaving things whole."""

import importlib
import json
import linecache
import sys
from collections import Counter

import jax
import numpy as np
import pytest

from normlab.compare.environment import environment
from normlab.compare.grid import (
    FIRST_TUNING_SEED,
    extended,
    final_runs,
    single_run,
    tuning_runs,
)
from normlab.compare.metric import FORMER as ACCURACY
from normlab.compare.run import run_study
from normlab.compare.selection import best_values
from normlab.compare.status import read_status
from normlab.compare.store import Store
from normlab.compare.study import StudyError, study_type
from normlab.compare.workbench import Workbench
from normlab.models import resnet
from normlab.report import read_study
from normlab.variants import VARIANTS

CONFIG = {
    "study": "small",
    "data": {"name": "digits", "batch_size": 32, "train_examples": 320},
    "model": {"name": "mlp", "hidden": [16]},
    "optimizer": {"name": "sgd"},
    "train": {"epochs": 2},
    "variants": {"none": {"layer": "identity"}, "batch": {"layer": "batch_norm", "momentum": 0.9}},
    "tune": {"optimizer.learning_rate": [0.001, 0.1], "seeds": 2},
    "seeds": 3,
}


def study(**changes):
    return study_type().model_validate({**CONFIG, **changes})


def arm(made, variant):
    """The arm of a variant in a study without factors and tasks."""
    return next(it for it in made.arms() if it.variant == variant)


def run(folder, changed=None):
    """Runs the study; returns the store and how many runs it has."""
    store, told = Store(folder), []
    ending = run_study(
        changed or study(), store, environment("test"), lambda *it: told.append(it[1:])
    )
    assert told[-1] == (ending.done, ending.planned) == (ending.planned, ending.planned)
    assert not ending.failures
    return store, ending.done


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, run(folder)


def test_every_arm_gets_the_same_trials_and_then_fresh_seeds():
    made = study()
    for variant in made.variants:
        tuning = tuning_runs(made, arm(made, variant))
        assert [(r.values["optimizer.learning_rate"], r.seed) for r in tuning] == [
            (rate, FIRST_TUNING_SEED + seed) for rate in (0.001, 0.1) for seed in (0, 1)
        ]
        assert [r.study.optimizer.learning_rate for r in tuning] == [0.001, 0.001, 0.1, 0.1]
        final = final_runs(made, arm(made, variant), {"optimizer.learning_rate": 0.1})
        assert [r.seed for r in final] == [0, 1, 2]
        assert not {r.seed for r in final} & {r.seed for r in tuning}


def test_the_grid_is_full_over_several_paths():
    made = study(tune={"optimizer.learning_rate": [0.1, 0.2], "data.batch_size": [16, 32, 64]})
    points = [
        (r.study.optimizer.learning_rate, r.study.data.batch_size)
        for r in tuning_runs(made, arm(made, "none"))
    ]
    assert points == [(rate, size) for rate in (0.1, 0.2) for size in (16, 32, 64)]


def test_a_study_runs_whole_and_only_final_runs_see_the_test_split(finished):
    _, (store, counted) = finished
    results = store.results()
    assert counted == len(results) == 2 * (2 * 2 + 3)
    for result in results:
        assert (result.test is not None) == (result.phase == "final")
        assert len(result.curve.validation["accuracy"]) == 2
    for variant in ("none", "batch"):
        chosen = best_values(results, variant, ACCURACY)
        assert {
            json.dumps(r.values) for r in results if r.variant == variant and r.phase == "final"
        } == {json.dumps(chosen)}
        assert chosen == {"optimizer.learning_rate": 0.1}


def test_running_again_runs_nothing_and_changes_nothing(finished):
    folder, _ = finished
    before = {path: path.read_bytes() for path in (folder / "runs").iterdir()}
    times = {path: path.stat().st_mtime_ns for path in before}
    run(folder)
    assert {path: path.read_bytes() for path in (folder / "runs").iterdir()} == before
    assert {path: path.stat().st_mtime_ns for path in before} == times


def test_a_run_that_is_missing_is_made_again_the_same_to_the_bit(finished):
    folder, _ = finished
    victim = sorted((folder / "runs").iterdir())[0]
    content = json.loads(victim.read_text())
    victim.unlink()
    run(folder)
    again = json.loads(victim.read_text())
    for told in (content, again):
        del told["seconds"], told["checksum"]  # which covers the seconds, too
    assert again == content


def test_a_changed_study_in_the_same_folder_reports_its_own_runs_only(tmp_path):
    run(tmp_path, study(tune=None))
    run(tmp_path, study(tune=None, train={"epochs": 1}, seeds=2))
    assert len(Store(tmp_path).results()) == 2 * 3 + 2 * 2
    report = read_study(tmp_path)
    assert len(report.results) == report.planned["final"] == 2 * 2
    assert {len(result.curve.train["loss"]) for result in report.results} == {1}
    # Fewer seeds than before: the surplus is left out. Tuned to the very value that was the
    # configuration's own: the runs count under their values.
    again = {"tune": {"optimizer.learning_rate": [0.1]}, "train": {"epochs": 1}, "seeds": 1}
    run(tmp_path, study(**again))
    report = read_study(tmp_path)
    assert {p: report.done(p) for p in ("tune", "final")} == report.planned
    assert [it.mean.count for it in report.summary.arms] == [1, 1]


def test_variants_whose_names_share_a_file_name_stay_apart(tmp_path):
    same = {"layer": "rms_norm"}
    names = ["a b", "a_b", "a/b", "bn²", "[/b]"]
    run(tmp_path, study(variants=dict.fromkeys(names, same), tune=None, seeds=1))
    report = read_study(tmp_path)
    assert sorted(result.variant for result in report.results) == sorted(names)


def test_a_layer_that_was_edited_is_run_again(tmp_path, monkeypatch, request):
    monkeypatch.syspath_prepend(tmp_path)
    request.addfinalizer(lambda: VARIANTS.pop("edited", None))
    folders = []
    for factor in (1, 2):
        (tmp_path / "edited.py").write_text(
            "import normlab\nfrom flax import linen as nn\n"
            "class Edited(nn.Module):\n"
            "    @nn.compact\n"
            f"    def __call__(self, x, use_running_average=None):\n        return {factor} * x\n"
            "normlab.register('edited', Edited)\n"
        )
        sys.modules.pop("edited", None)
        linecache.clearcache()
        importlib.invalidate_caches()
        importlib.import_module("edited")
        made = study(tune=None, seeds=1, variants={"own": {"layer": "edited"}})
        run(tmp_path / "runs_of_it", made)
        folders.append(read_study(tmp_path / "runs_of_it"))
    assert [len(report.results) for report in folders] == [1, 1]
    assert folders[1].left_out == 1
    assert folders[0].results[0].curve != folders[1].results[0].curve


def test_a_diverged_run_is_recorded_and_does_not_stop_the_study(tmp_path):
    made = study(
        tune={"optimizer.learning_rate": [1e30, 0.1]}, variants={"a": {"layer": "identity"}}
    )
    store, _ = run(tmp_path, made)
    tuning = {r.values["optimizer.learning_rate"]: r for r in store.results() if r.phase == "tune"}
    assert tuning[1e30].diverged
    assert tuning[1e30].curve.train["loss"] == [None]
    assert best_values(store.results(), "a", ACCURACY) == {"optimizer.learning_rate": 0.1}


def test_a_layer_that_does_not_fit_is_told_and_leaves_the_folder_as_it_was(finished):
    folder, _ = finished
    before = (folder / "config.yaml").read_bytes()
    wrong = study(variants={"ghost": {"layer": "ghost_batch_norm", "ghost_batch_size": 5}})
    with pytest.raises(StudyError, match=r"variants\.ghost: GhostBatchNorm: ghost_batch_size=5"):
        run(folder, wrong)
    assert (folder / "config.yaml").read_bytes() == before


def test_another_studys_folder_is_refused(finished):
    folder, _ = finished
    with pytest.raises(StudyError, match="holds the study 'small', not 'other'"):
        run(folder, study(study="other"))


def test_runs_of_one_arm_share_one_program_and_tuned_sizes_get_their_own():
    bench = Workbench(environment("test"))
    made = study(tune={"optimizer.learning_rate": [0.1, 0.2], "train.epochs": [1, 2]})
    runs = tuning_runs(made, arm(made, "none"))
    assert len({id(bench.programs(r, 1)) for r in runs}) == 2


FREE = {
    "plain": {"layer": "identity"},
    "same": {"layer": "identity", "model": {"residual": "plain"}},
    "fixup": {"layer": "identity", "model": {"residual": "fixup"}},
    "free": {
        "layer": "identity",
        "model": {"residual": "skip_init", "weights": "scaled_standardized"},
        "optimizer": {"adaptive_gradient_clip": 0.1},
    },
}


def free(**changes):
    """A study whose arms differ in model and optimizer."""
    small = {"name": "digits", "batch_size": 32, "train_examples": 32}
    return study(
        **{"data": small, "model": {"name": "resnet"}, "train": {"epochs": 1}, "variants": FREE}
        | {"tune": None}
        | changes
    )


def test_what_an_arm_overrides_is_part_of_its_runs():
    bench = Workbench(environment("test"))
    made = free(tune={"optimizer.momentum": [0.5]})
    runs = {name: tuning_runs(made, arm(made, name))[0] for name in FREE}
    (again,) = final_runs(made, arm(made, "free"), {"optimizer.momentum": 0.5})[:1]
    for run in (runs["free"], again, single_run(made, arm(made, "free"), 0)):
        assert run.study.model.residual == "skip_init"
        assert run.study.optimizer.adaptive_gradient_clip == 0.1
    assert again.study.optimizer.momentum == 0.5
    identities = {name: bench.identify(run)[1] for name, run in runs.items()}
    assert [it["model"]["residual"] for it in identities.values()] == [
        "plain",
        "plain",
        "fixup",
        "skip_init",
    ]
    assert identities["free"]["optimizer"]["adaptive_gradient_clip"] == 0.1
    assert identities["free"]["variant"] == {**identities["plain"]["variant"], "name": "free"}
    changed = free(variants=FREE | {"free": {"layer": "identity"}})
    ids = {bench.identify(final_runs(it, arm(it, "free"), {})[0])[0] for it in (made, changed)}
    assert len(ids) == 2
    assert len({bench._program(run) for run in runs.values()}) == len(FREE)


def test_what_is_tuned_cannot_be_overridden():
    told = r"variants\.same\.model\.residual, .*variants\.free\.model\.residual: given for an arm"
    with pytest.raises(ValueError, match=told):
        free(tune={"model.residual": ["plain", "skip_init"]})


def test_arms_without_normalization_train(tmp_path, monkeypatch):
    # The library's convolution gives the same numbers and compiles faster.
    monkeypatch.setattr(resnet, "convolution", jax.lax.conv_general_dilated)
    made = free(variants={name: FREE[name] for name in ("fixup", "free")}, seeds=1)
    store, _ = run(tmp_path, made)
    results = {result.variant: result for result in store.results()}
    assert results.keys() == {"fixup", "free"}
    for result in results.values():
        assert result.status == "finished"
        assert np.isfinite(result.test["loss"])
    # Its one step began with a head of zeros, which says the same of every class.
    assert results["fixup"].curve.train["loss"] == [pytest.approx(np.log(10), rel=1e-5)]
    assert results["fixup"].test["loss"] != pytest.approx(np.log(10), rel=1e-5)


def test_a_vision_transformer_learns_digits(tmp_path):
    made = study(
        data={"name": "digits", "batch_size": 64},
        model={"name": "vit", "patch_size": 2, "width": 32, "depth": 1, "query_key_norm": True},
        optimizer={"name": "adam", "learning_rate": 0.01},
        train={"epochs": 6},
        variants={"batch": {"layer": "batch_norm", "momentum": 0.9}},
        tune=None,
        seeds=1,
    )
    store, _ = run(tmp_path, made)
    (result,) = store.results()
    assert result.test["accuracy"] > 0.8


def test_identity_names_all_that_matters():
    bench = Workbench(environment("test"))
    made, narrow = study(tune=None), study(tune=None, model={"name": "mlp", "hidden": [8]})
    changes = {
        "seed": final_runs(made, arm(made, "none"), {})[1],
        "variant": final_runs(made, arm(made, "batch"), {})[0],
        "optimizer": final_runs(made, arm(made, "none"), {"optimizer.learning_rate": 0.3})[0],
        "model": final_runs(narrow, arm(narrow, "none"), {})[0],
    }
    base, identity = bench.identify(final_runs(made, arm(made, "none"), {})[0])
    assert identity["packages"]["jax"]
    assert identity["data_fingerprint"]
    names = {what: bench.identify(changed)[0] for what, changed in changes.items()}
    assert len({base, *names.values()}) == 5
    # More seeds, another name or other arms leave a run what it is.
    others = study(study="renamed", tune=None, seeds=9, variants={"none": {"layer": "identity"}})
    assert bench.identify(final_runs(others, arm(others, "none"), {})[0])[0] == base


def names(made):
    """The names of the final runs of each arm, by its title, if nothing is tuned."""
    bench = Workbench(environment("test"))
    return {
        it.title: [bench.identify(run)[0] for run in final_runs(made, it, {})] for it in made.arms()
    }


def test_a_run_is_the_same_whichever_way_the_study_asks_for_it():
    plain = study(tune=None, data=CONFIG["data"] | {"batch_size": 16}, train={"epochs": 3})
    factor = study(tune=None, factors={"data": {"batch_size": [8, 16]}, "train.epochs": [3]})
    listed = study(tune=None, factors=[{"train.epochs": 3, "data.batch_size": 16}])
    task = study(tune=None, tasks={"small": {"train": {"epochs": 3}, "data.batch_size": 16}})
    expected = names(plain)["batch"]
    assert names(factor)["batch, batch_size=16, epochs=3"] == expected
    assert names(listed)["batch, epochs=3, batch_size=16"] == expected
    assert names(task)["batch on small"] == expected
    # Other arms, levels, seeds and names, another order of keys, and fields given for one variant.
    variants = {
        "batch": {"momentum": 0.9, "layer": "batch_norm", "optimizer": {"learning_rate": 0.1}},
        "layer": {"layer": "layer_norm"},
    }
    other = study(
        study="other",
        tune=None,
        factors={"train.epochs": [2, 3], "data.batch_size": [16, 32, 64]},
        variants=variants,
        seeds=4,
        margin_points=1.0,
    )
    assert names(other)["batch, epochs=3, batch_size=16"][:3] == expected
    # What differs in what is trained differs in its name.
    every = [name for of_arm in names(factor).values() for name in of_arm]
    assert len(set(every)) == len(every) == 2 * 2 * 3
    # A tuned value is what the study understands, however it was written.
    tuned = [study(tune={"optimizer.learning_rate": [it]}) for it in (1, 1.0)]
    bench = Workbench(environment("test"))
    assert len({bench.identify(tuning_runs(it, arm(it, "none"))[0])[0] for it in tuned}) == 1


def test_a_study_that_gets_a_factor_an_arm_and_seeds_runs_only_what_is_new(tmp_path):
    small = {"tune": None, "train": {"epochs": 1}}
    _, first = run(tmp_path, study(**small, seeds=1))
    assert first == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    grown = study(
        **small,
        seeds=2,
        factors={"data.batch_size": [32, 160]},
        variants=CONFIG["variants"] | {"layer": {"layer": "layer_norm"}},
    )
    store, _ = run(tmp_path, grown)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(store.results()) == 3 * 2 * 2
    report = read_study(tmp_path)
    assert report.left_out == 0
    assert [it.name for it in report.summary.arms] == [it.name for it in grown.arms()]
    assert [it.runs for it in report.summary.arms] == [2] * 6
    # The run that was there counts for the arm that it now belongs to.
    of_batch = [it for it in report.results if it.arm == "batch, batch_size=32"]
    assert [(it.seed, it.levels, it.steps_per_epoch) for it in of_batch] == [
        (0, {"data.batch_size": 32}, 10),
        (1, {"data.batch_size": 32}, 10),
    ]
    # An arm is compared with the baseline at its own levels.
    accuracy = {(it.arm, it.seed): it.test["accuracy"] for it in report.results}
    for size in (32, 160):
        mine = report.summary[f"layer, batch_size={size}"].comparison.difference
        expected = np.mean(
            [
                accuracy[f"layer, batch_size={size}", seed]
                - accuracy[f"none, batch_size={size}", seed]
                for seed in (0, 1)
            ]
        )
        assert mine.value == pytest.approx(expected)


def test_every_arm_is_tuned_on_every_task_and_counts_with_its_mean_over_them(tmp_path):
    tasks = {"few": {}, "fewer": {"data.train_examples": 64, "train.epochs": 1}}
    made = study(tasks=tasks, tune={"optimizer.learning_rate": [0.001, 0.1]}, seeds=2)
    store, counted = run(tmp_path, made)
    results = store.results()
    assert counted == len(results) == 2 * 2 * (2 + 2)
    assert {(it.task, it.steps_per_epoch, len(it.curve.train["loss"])) for it in results} == {
        ("few", 10, 2),
        ("fewer", 2, 1),
    }
    for task in tasks:
        of_task = [it for it in results if it.task == task]
        for name in ("none", "batch"):
            final = [it for it in of_task if it.arm == name and it.phase == "final"]
            assert {json.dumps(it.values) for it in final} == {
                json.dumps(best_values(of_task, name, ACCURACY))
            }
    report = read_study(tmp_path)
    assert {phase: report.done(phase) for phase in ("tune", "final")} == report.planned
    for name in ("none", "batch"):
        final = [it.test["accuracy"] for it in results if it.arm == name and it.phase == "final"]
        assert report.summary[name].mean.value == pytest.approx(np.mean(final))
        assert report.summary[name].mean.count == 4


def test_arms_of_one_title_are_each_tuned_and_told_apart(tmp_path):
    """`a on b` with task `c` and `a` with task `b on c` were one entry; one was never tuned."""
    variants = {"a": {"layer": "identity"}, "a on b": {"layer": "rms_norm"}}
    tasks = {"c": {}, "b on c": {"data.train_examples": 64}}
    tune = {"optimizer.learning_rate": [0.01, 0.1]}
    made = study(variants=variants, tasks=tasks, tune=tune, train={"epochs": 1}, seeds=1)
    store, counted = run(tmp_path, made)
    assert counted == 2 * 2 * (2 + 1)
    phases = Counter((it.phase, it.variant, it.task) for it in store.results())
    assert phases == {
        **{("tune", variant, task): 2 for variant in variants for task in tasks},
        **{("final", variant, task): 1 for variant in variants for task in tasks},
    }
    counts = read_status(tmp_path).arms
    assert {it.done for it in counts.values()} == {3}
    assert list(counts) == ["a on c", '"a on b" on c', 'a on "b on c"', '"a on b" on "b on c"']


def test_tasks_that_read_the_same_examples_are_told(tmp_path):
    """One run stood for both, and the study waited for the other's or left the task empty."""
    x, y = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32), np.arange(60) % 3
    for name in ("one", "two"):
        np.savez(
            tmp_path / name, train_images=x, train_labels=y, test_images=x[:9], test_labels=y[:9]
        )
    tasks = {name: {"data.folder": str(tmp_path / f"{name}.npz")} for name in ("one", "two")}
    data = {"name": "npz", "batch_size": 8, "folder": str(tmp_path / "one.npz")}
    made = study(data=data, tasks=tasks)
    told = r"none on one and none on two are the same arm: they read the same examples"
    with pytest.raises(StudyError, match=told):
        run(tmp_path / "run", made)


def test_a_grid_goes_on_for_all_arms_where_the_best_value_of_one_lies_at_its_edge(
    tmp_path, monkeypatch
):
    # Rates so small that more is always better.
    made = study(tune={"optimizer.learning_rate": [1e-5, 1e-4], "extend": 2}, seeds=1)
    store, _ = run(tmp_path, made)
    results = store.results()
    for variant in ("none", "batch"):
        tried = [
            it.values["optimizer.learning_rate"]
            for it in results
            if (it.variant, it.phase) == (variant, "tune")
        ]
        assert sorted(tried) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])
    report = read_study(tmp_path)
    assert report.done("tune") == report.planned["tune"] == 2 * 4
    # Started again, it plans at no time less than it had come to.
    plans, whole = [], store.plan()
    monkeypatch.setattr(Store, "write_plan", lambda _, plan: plans.append(dict(plan)))
    run(tmp_path, made)
    assert plans
    assert all(plan == whole for plan in plans)
    assert len(store.results()) == len(results)


def test_a_study_that_draws_from_a_list_makes_equal_draws_once(tmp_path):
    tune = {"optimizer.learning_rate": [0.01, 0.1], "trials": 7}
    store, _ = run(tmp_path, study(tune=tune, seeds=1, train={"epochs": 1}))
    tried = [it.values["optimizer.learning_rate"] for it in store.results() if it.phase == "tune"]
    assert sorted(tried) == [0.01, 0.01, 0.1, 0.1]  # of two arms
    report = read_study(tmp_path)
    assert report.points == {"none": 2, "batch": 2}
    assert report.done("tune") == report.planned["tune"] == 4


def test_a_damaged_configuration_is_written_anew(tmp_path):
    made = study(tune=None, seeds=1, train={"epochs": 1})
    store, _ = run(tmp_path, made)
    config = store.config()
    (tmp_path / "config.yaml").write_text("study: [small")
    run(tmp_path, made)
    assert store.config() == config


def test_a_grid_does_not_go_on_to_what_the_study_refuses():
    made = study(tune={"optimizer.momentum": [0.8, 0.9], "extend": 1})
    assert extended(made, [{"optimizer.momentum": 0.9}]) is None
    wider = extended(made, [{"optimizer.momentum": 0.8}])
    assert wider.tune.space == {"optimizer.momentum": (0.8, 0.9, 0.7)}
    assert made.tune.space == {"optimizer.momentum": (0.8, 0.9)}
