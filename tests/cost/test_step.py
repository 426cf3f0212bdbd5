"""The cost of a training step: what is compiled, for which batch, and what goes wrong."""

import numpy as np
import pytest

from normlab.compare.study import StudyError, study_type
from normlab.cost.step import study_cost
from normlab.cost.targets import find_target

HIDDEN = 32
STUDY = {
    "study": "small",
    "data": {"name": "digits", "batch_size": 48},
    "model": {"name": "mlp", "hidden": [HIDDEN, HIDDEN]},
    "variants": {
        "none": {"layer": "identity"},
        "batch": {"layer": "batch_norm"},
        "ghost": {"layer": "ghost_batch_norm", "ghost_batch_size": 16},
    },
}


def study(**changes):
    return study_type().model_validate(STUDY | changes)


def by_arm(costs):
    return {cost.arm: cost for cost in costs}


def test_one_device_has_the_work_of_the_step_and_no_exchange():
    done = []
    costs = by_arm(study_cost(study(), [find_target("cpu")], advance=done.append))
    assert sorted(done) == ["batch on cpu", "ghost on cpu", "none on cpu"]
    layers = [(64, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 10)]
    # Forward, the gradient of the weights, and that of the input but for the first layer.
    products = 2 * 48 * (3 * sum(i * o for i, o in layers) - layers[0][0] * layers[0][1])
    for cost in costs.values():
        assert (cost.chips, cost.program.exchanges.count) == (1, 0)
        assert cost.program.operations >= costs["none"].program.operations
        assert cost.normalized == 2 * 48 * HIDDEN * 4
        assert cost.passes == cost.program.traffic / cost.normalized
    assert products < costs["none"].program.operations < 1.3 * products
    assert costs["none"].program.traffic < costs["batch"].program.traffic


def test_each_device_has_the_batch_of_the_study_unless_told_otherwise():
    target = find_target("cpu:8")
    alone = by_arm(study_cost(study(), [find_target("cpu")]))["batch"]
    shared = by_arm(study_cost(study(), [target]))["batch"]
    smaller = by_arm(study_cost(study(), [target], examples_per_chip=16))["batch"]
    assert (shared.chips, shared.normalized) == (8, alone.normalized)
    assert smaller.normalized == alone.normalized / 3
    assert shared.program.operations == pytest.approx(alone.program.operations, rel=0.1)


def test_batch_statistics_meet_and_others_only_bring_their_gradients_together():
    costs = by_arm(study_cost(study(), [find_target("cpu:8")]))
    gradients = 4 * (64 * HIDDEN + HIDDEN * HIDDEN + HIDDEN * 10)
    assert costs["none"].program.exchanges.bytes >= gradients
    assert set(costs["batch"].program.collectives) == {"all-reduce"}
    assert costs["none"].program.exchanges.count < costs["ghost"].program.exchanges.count
    assert costs["ghost"].program.exchanges.count < costs["batch"].program.exchanges.count


def test_figures_do_not_vary():
    target = find_target("cpu:8")
    assert study_cost(study(), [target]) == study_cost(study(), [target])


def test_precision_and_overrides_of_an_arm_are_those_of_training():
    arms = {"none": {"layer": "identity"}, "wide": {"layer": "identity", "model": {"hidden": [64]}}}
    costs = by_arm(
        study_cost(study(variants=arms, train={"precision": "bfloat16"}), [find_target("cpu")])
    )
    assert costs["none"].normalized == 2 * 48 * HIDDEN * 2
    assert costs["wide"].normalized == 48 * 64 * 2


def test_no_images_are_needed_but_of_a_file_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.delenv("NORMLAB_DATA", raising=False)
    model = {"name": "cnn", "channels": [4]}
    arms = {"none": {"layer": "identity"}}
    cifar = study(model=model, variants=arms, data={"name": "cifar10", "batch_size": 8})
    (cost,) = study_cost(cifar, [find_target("cpu")])
    assert cost.normalized == 8 * 32 * 32 * 4 * 4
    path = tmp_path / "mine.npz"
    images, labels = np.zeros((40, 6, 5), np.uint8), np.arange(40) % 4
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    mine = study(
        model=model, variants=arms, data={"name": "npz", "folder": str(path), "batch_size": 8}
    )
    (cost,) = study_cost(mine, [find_target("cpu")])
    assert cost.normalized == 8 * 6 * 5 * 4 * 4


def test_an_arm_that_does_not_fit_is_named():
    with pytest.raises(StudyError, match=r"^variants\.ghost: GhostBatchNorm.*17 examples"):
        study_cost(study(), [find_target("cpu")], examples_per_chip=17)
