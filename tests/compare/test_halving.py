"""Successive halving of tuning runs: who goes on, how far, and that it is the same after a kill."""

from collections import Counter

import pytest

import normlab
from normlab.compare.halving import Rung, rungs
from normlab.compare.status import read_status
from normlab.compare.store import Store
from normlab.config import ConfigError, make_study
from normlab.report import read_study

RATE = "optimizer.learning_rate"
STUDY = {
    "study": "small",
    "data": {"name": "digits", "batch_size": 32, "train_examples": 96},
    "model": {"name": "mlp", "hidden": [8]},
    "optimizer": {"name": "sgd", "schedule": "cosine"},
    "train": {"epochs": 8},
    "variants": {"none": {"layer": "identity"}, "batch": {"layer": "batch_norm"}},
    "tune": {RATE: [0.001, 0.01, 0.03, 0.1, 0.3, 1.0], "stop_early": True},
    "seeds": 1,
}


@pytest.mark.parametrize(
    ("train", "points", "expected"),
    [
        ({"epochs": 40}, 9, [(5, 9), (10, 5), (20, 3), (None, 2)]),
        ({"epochs": 40}, 4, [(5, 4), (10, 2), (None, 1)]),
        ({"steps": 4000, "evaluate_every": 100}, 8, [(5, 8), (10, 4), (20, 2), (None, 1)]),
        # Epochs are counted whole, and a rung as long as the one before decides nothing.
        ({"epochs": 2}, 4, [(1, 4), (None, 1)]),
        ({"epochs": 1}, 4, [(None, 4)]),
        ({"epochs": 40}, 1, [(None, 1)]),
    ],
)
def test_rungs_are_an_eighth_a_quarter_a_half_and_the_whole(train, points, expected):
    told = {"epochs": None, "steps": None, **train}
    assert rungs(told, points) == [Rung(*it) for it in expected]


def placed(folder):
    """Variant, values and stop of each tuning run -> its result."""
    found = [it for it in Store(folder).results() if it.phase == "tune"]
    return {(it.variant, it.values[RATE], it.until): it for it in found}


def test_the_better_half_of_each_arm_goes_on_and_the_choice_lasts_through_a_kill(tmp_path):
    normlab.compare(STUDY, out=tmp_path)
    first = {it.id: it for it in Store(tmp_path).results()}
    runs = placed(tmp_path)
    expected = {1: 6, 2: 3, 4: 2, None: 1}
    assert Counter((variant, until) for variant, _, until in runs) == {
        (variant, until): count
        for variant in STUDY["variants"]
        for until, count in expected.items()
    }

    def last(variant, rate, until):
        run = runs[variant, rate, until]
        return run.curve.validation["accuracy"][-1], -run.curve.validation["loss"][-1]

    for variant in STUDY["variants"]:
        for now, then in ((1, 2), (2, 4), (4, None)):
            at = {
                until: {r for v, r, u in runs if (v, u) == (variant, until)} for until in expected
            }
            best = sorted(at[now], key=lambda it: last(variant, it, now), reverse=True)
            assert at[then] == set(best[: len(at[then])])
        (rate,) = at[None]
        final = next(it for it in first.values() if (it.phase, it.variant) == ("final", variant))
        assert final.values[RATE] == rate
        # A run that stops early is the beginning of the whole one, to the bit.
        whole, part = runs[variant, rate, None], runs[variant, rate, 4]
        assert part.curve.step == whole.curve.step[:4]
        assert part.curve.train["loss"] == whole.curve.train["loss"][:4]
    study, now = read_study(tmp_path), read_status(tmp_path)
    assert not study.left_aside
    assert study.planned == {"tune": 24, "final": 2}
    assert (now.total.planned, now.total.left) == (26, 0)
    page = (tmp_path / "report.html").read_text()
    assert "successive halving, the same for all arms" in " ".join(page.split())
    # Killed in the second rung.
    for name, it in first.items():
        if it.until in (4, None) or (it.until == 2 and it.variant == "batch"):
            (tmp_path / "runs" / f"{name}.json").unlink()
    again = normlab.compare(STUDY, out=tmp_path)
    for it in Store(tmp_path).results():
        assert it.model_copy(update={"seconds": first[it.id].seconds}) == first[it.id]
    assert len(again.runs) == len(first)


@pytest.mark.parametrize(
    ("tune", "told"),
    [
        ({RATE: [0.1, 1.0], "stop_early": True, "extend": 1}, "leave out one of the two"),
        ({"train.epochs": [1, 2], "stop_early": True}, "train.epochs are tuned; leave out one"),
        # A study without a search was run as if nothing had been asked for.
        ({"stop_early": True}, "tune: nothing is tuned; give the values to try of something"),
        ({RATE: [0.1, 1.0], "stop_early": 3}, "tune.stop_early: should be a valid boolean"),
    ],
)
def test_what_cannot_stop_early_is_told(tune, told):
    with pytest.raises(ConfigError, match=told):
        make_study({**STUDY, "tune": tune}, {})
