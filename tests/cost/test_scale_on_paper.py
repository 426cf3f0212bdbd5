"""The study on paper: its README says what its figures say."""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "scale_on_paper"
CHIPS = [1, 16, 64, 256]


@pytest.fixture(scope="module")
def costs():
    return json.loads((FOLDER / "results/cost.json").read_text())["costs"]


def of(costs, arm, chips):
    (found,) = [it for it in costs if (it["arm"], it["chips"]) == (arm, chips)]
    return found


def exchanges(cost):
    return sum(it["count"] for it in cost["collectives"].values())


def test_the_table_is_that_of_the_figures(costs):
    spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
    assert spec
    assert spec.loader
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    assert run.table(costs) in (FOLDER / "README.md").read_text()


def test_more_chips_change_nothing_on_a_chip(costs):
    for arm in {it["arm"] for it in costs}:
        many = [of(costs, arm, chips) for chips in CHIPS[1:]]
        for key in ("traffic", "memory", "operations"):
            assert max(it[key] for it in many) <= 1.01 * min(it[key] for it in many)


def test_batch_norm_exchanges_in_every_layer_and_no_other_does(costs):
    layers = 6
    for chips in CHIPS[1:]:
        own = {
            arm: exchanges(of(costs, arm, chips)) - exchanges(of(costs, "none", chips))
            for arm in ("batch", "ghost", "layer", "rms", "group")
        }
        assert own["batch"] >= 2 * layers - 1
        assert own["layer"] == own["rms"] == own["group"] == 0
        assert own["ghost"] < layers


def test_the_statistics_are_few_bytes_next_to_the_gradients(costs):
    def total(arm):
        return sum(it["bytes"] for it in of(costs, arm, 256)["collectives"].values())

    assert total("batch") < 1.05 * total("none")
