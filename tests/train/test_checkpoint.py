"""Checkpoints: a run goes on to the bit, damage is found and named, a full disk is said."""

import random
import shutil
import threading
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_runs import programs_of

import normlab
from normlab.data import DataSpec, load
from normlab.interrupts import StoppedError
from normlab.models import MLP
from normlab.train import AdamSpec, SGDSpec, TrainSpec, fit
from normlab.train.checkpoint import CheckpointError, Checkpoints, steps_in

SEEDS = (3, 4, 5)
FEW = TrainSpec(epochs=3, augment="flip")


@cache
def dataset():
    return load(DataSpec(name="digits", batch_size=8, train_examples=50))


def programs(norm=normlab.BatchNorm, **options):
    return programs_of(MLP(hidden=(8,), classes=10, norm=norm), dataset(), **options)


def refuse(line):
    raise AssertionError(line)


def same(one, other):
    """To the bit, with dtypes; states are compared leaf by leaf."""
    told = [(it.curve, it.diverged, it.test) for it in one]
    assert told == [(it.curve, it.diverged, it.test) for it in other]
    for a, b in zip(one, other, strict=True):
        assert jax.tree.structure(a.state) == jax.tree.structure(b.state)
        for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
            assert x.dtype == y.dtype
            data = [
                jax.random.key_data(it) if it.ndim == 0 and "key" in str(it.dtype) else it
                for it in (x, y)
            ]
            np.testing.assert_array_equal(*map(np.asarray, data))


def stopped_at(step, made, folder, seeds, every=4):
    """Trains until it is asked to stop, and saves where it stands."""
    checkpoints = Checkpoints(folder, tell=refuse)
    names = [f"run-{seed}" for seed in seeds]
    start = checkpoints.newest(made, names)
    calls = []

    def asked():
        return len(calls) >= step

    hook = checkpoints.hook(names, every, asked)
    call = hook.call

    def counted(moment):
        calls.append(moment.step)
        call(moment)

    try:
        fit(made, seeds, hooks=[replace(hook, call=counted)], test=True, start=start)
    except StoppedError:
        return
    finally:
        checkpoints.close()
    raise AssertionError("it came to its end")


def gone_on(made, folder, seeds, every=4, tell=refuse):
    checkpoints = Checkpoints(folder, tell=tell)
    names = [f"run-{seed}" for seed in seeds]
    hook = checkpoints.hook(names, every)
    outcomes = fit(made, seeds, hooks=[hook], test=True, start=checkpoints.newest(made, names))
    checkpoints.wait()
    checkpoints.close()
    return outcomes


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(
    "optimizer",
    [
        SGDSpec(learning_rate=0.05, momentum=0.9, schedule="cosine", warmup_epochs=1),
        AdamSpec(name="adam", learning_rate=0.01, gradient_clip=1.0),
    ],
    ids=["sgd", "adam"],
)
def test_a_run_that_is_stopped_again_and_again_ends_as_one_that_was_not(tmp_path, width, optimizer):
    made = programs(train=FEW, optimizer=optimizer, width=width)
    seeds = SEEDS[:width]
    whole = fit(made, seeds, test=True)
    for _ in range(3):
        stopped_at(2, made, tmp_path, seeds)
    same(gone_on(made, tmp_path, seeds), whole)
    assert len(steps_in(tmp_path)) == 2


def test_a_run_that_diverged_is_not_taken_up_with_the_others(tmp_path):
    made = programs(train=FEW, optimizer=SGDSpec(learning_rate=0.05), width=2)
    rates = [{"learning_rate": 1e20}, {"learning_rate": 0.05}]
    whole = fit(made, (3, 4), rates, test=True)
    assert [it.diverged for it in whole] == [True, False]
    checkpoints = Checkpoints(tmp_path, tell=refuse)
    fit(made, (3, 4), rates, hooks=[checkpoints.hook(["a", "b"], 5)], test=True)
    checkpoints.wait()
    start = checkpoints.newest(made, ["a", "b"])
    assert start is not None
    again = fit(made, (3, 4), rates, test=True, start=start)
    assert repr([it.curve for it in again]) == repr([it.curve for it in whole])  # with NaN
    same(again[1:], whole[1:])
    checkpoints.close()


def test_arrays_without_size_and_in_half_precision_come_back(tmp_path):
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            self.param("empty", nn.initializers.zeros, (0, 3))
            seen = self.variable("batch_stats", "seen", jnp.zeros, (), jnp.bfloat16)
            if train:
                seen.value += jnp.bfloat16(0.1)
            return nn.Dense(10)(x.reshape(len(x), -1)) + seen.value

    made = programs_of(Odd(), dataset(), train=FEW)
    whole = fit(made, (3,), test=True)
    stopped_at(2, made, tmp_path, (3,))
    same(gone_on(made, tmp_path, (3,)), whole)


def saved(tmp_path):
    made = programs(train=FEW)
    gone_on(made, tmp_path, (3,))
    return made


@pytest.mark.parametrize("seed", range(12))
def test_a_changed_or_truncated_checkpoint_is_named_and_the_one_before_is_used(tmp_path, seed):
    made = saved(tmp_path)
    before, last = steps_in(tmp_path)
    draw = random.Random(seed)
    path = tmp_path / f"{last:010d}"
    files = sorted(it for it in path.rglob("*") if it.is_file() and it.stat().st_size)
    file = draw.choice(files)
    content = bytearray(file.read_bytes())
    if draw.random() < 0.3:
        file.unlink()
    elif draw.random() < 0.5:
        file.write_bytes(content[: draw.randrange(len(content))])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    told = []
    checkpoints = Checkpoints(tmp_path, tell=told.append)
    start = checkpoints.newest(made, ["run-3"])
    checkpoints.close()
    assert start is not None
    assert start.step == before
    (line,) = told
    assert str(path) in line
    assert file.name in line
    assert f"that of step {before} is used" in line
    same(gone_on(made, tmp_path, (3,)), fit(made, (3,), test=True))


def test_where_all_are_damaged_the_run_begins_anew(tmp_path):
    made = saved(tmp_path)
    for path in tmp_path.glob("[0-9]*"):
        (path / "checksum.json").write_text("{}")
    told = []
    outcomes = gone_on(made, tmp_path, (3,), tell=told.append)
    assert "that of step" in told[0]
    assert "begins anew" in told[1]
    same(outcomes, fit(made, (3,), test=True))


def test_checkpoints_of_other_runs_and_of_another_model_are_refused(tmp_path):
    made = saved(tmp_path)
    checkpoints = Checkpoints(tmp_path, tell=refuse)
    with pytest.raises(CheckpointError, match=r"is of run-3, not of run-4; give another folder"):
        checkpoints.newest(made, ["run-4"])
    other = programs(norm=partial(normlab.GroupNorm, 4), train=FEW)
    with pytest.raises(CheckpointError, match=r"is of another model or optimizer: at "):
        checkpoints.newest(other, ["run-3"])
    checkpoints.close()


def test_the_best_checkpoint_outlives_the_last_ones(tmp_path, monkeypatch):
    made = programs(train=TrainSpec(epochs=8))
    scores = {6: 3.0, 12: 9.0, 18: 9.0}
    checkpoints = Checkpoints(tmp_path, tell=refuse)
    looked, steps = [], checkpoints.steps
    monkeypatch.setattr(checkpoints, "steps", lambda: looked.append(1) or steps())
    fit(made, (3,), hooks=[checkpoints.hook(["run"], 6, score=lambda it: scores.get(it.step))])
    checkpoints.wait()
    assert checkpoints.steps() == [12, 42, 48]
    # It looked through the folder for each point of the curve, at each point.
    assert len(looked) <= 3 * 8 + 2
    checkpoints.close()


def test_a_full_disk_is_said_before_a_part_of_a_checkpoint_lies_on_it(tmp_path, monkeypatch):
    """The library that writes arrays printed a traceback of its threads."""
    made = saved(tmp_path)
    before = steps_in(tmp_path)
    checkpoints = Checkpoints(tmp_path, tell=refuse)
    start = checkpoints.newest(made, ["run-3"])
    assert start is not None
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"cannot be written: No space left on device. Free"):
        checkpoints.save(start._replace(step=99), ["run-3"])
    checkpoints.close()
    assert steps_in(tmp_path) == before
    assert not [*tmp_path.glob("*.part*")]


def test_what_was_begun_when_the_process_was_killed_is_swept(tmp_path):
    made = saved(tmp_path)
    for name in ("0000000099.part.orbax-checkpoint-tmp", "0000000098.part", "0000000001.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("x")
    checkpoints = Checkpoints(tmp_path, tell=refuse)
    assert checkpoints.newest(made, ["run-3"]) is not None
    assert sorted(it.name for it in tmp_path.iterdir()) == [
        f"{step:010d}" for step in checkpoints.steps()
    ]
    checkpoints.close()


def test_runs_side_by_side_write_one_after_the_other(tmp_path):
    """Of two threads that wrote at once, one found its event loop closed, and its run failed."""
    under_way, most = [], []

    def write(thread):
        for step in range(4):
            checkpoints = Checkpoints(tmp_path / f"{thread}-{step}", 1, print)
            checkpointer = checkpoints._checkpointer
            save, wait = checkpointer.save, checkpointer.wait_until_finished

            def waiting(wait=wait):
                wait()
                under_way.remove(thread)

            def saving(*arguments, save=save, checkpointer=checkpointer, waiting=waiting, **named):
                under_way.append(thread)
                most.append(len(under_way))
                save(*arguments, **named)
                checkpointer.wait_until_finished = waiting

            checkpointer.save = saving
            checkpoints.write(step, {"array": jnp.ones(3)}, {})
            checkpoints.wait()
            checkpointer.wait_until_finished = wait
            checkpoints.close()
            written.append(steps_in(tmp_path / f"{thread}-{step}"))

    written = []
    threads = [threading.Thread(target=write, args=(it,)) for it in range(3)]
    for it in threads:
        it.start()
    for it in threads:
        it.join()
    assert len(written) == 12
    assert all(len(it) == 1 for it in written)
    assert max(most) == 1
