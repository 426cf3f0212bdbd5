"""Objectives of the user's own: what registration asks of them, and what a study makes of them."""

import jax.numpy as jnp
import pytest

import normlab
from normlab.compare.grid import single_run
from normlab.compare.study import study_type, with_changes
from normlab.objectives import OBJECTIVES, Classification, Multilabel


@pytest.fixture(autouse=True)
def _forget_what_a_test_registers():
    before = dict(OBJECTIVES)
    yield
    OBJECTIVES.clear()
    OBJECTIVES.update(before)


class Pinball(normlab.Objective):
    share: float = 0.9
    targets = "values"
    metrics = {"pinball": normlab.Metric(higher_is_better=False)}  # noqa: RUF012

    def loss(self, output, target):
        error = target - output
        return jnp.maximum(self.share * error, (self.share - 1) * error).mean(-1)

    def measure(self, output, target):
        return {"pinball": self.loss(output, target)}


def study(**parts):
    given = {
        "study": "s",
        "model": {"name": "mlp"},
        "variants": {"a": {"layer": "rms_norm"}},
        **parts,
    }
    return study_type().model_validate(given)


def test_a_study_names_an_objective_and_sets_its_fields():
    assert normlab.register_objective("pinball")(Pinball) is Pinball
    objective = study(objective={"name": "pinball", "share": 0.5}).objective
    assert isinstance(objective, Pinball)
    assert (objective.name, objective.share, objective.targets) == ("pinball", 0.5, "values")
    assert list(objective.all_metrics()) == ["pinball", "loss"]
    output, target = jnp.array([[0.0], [0.0]]), jnp.array([[2.0], [-4.0]])
    assert objective.loss(output, target).tolist() == [1, 2]
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        study(objective={"name": "pinball", "label_smoothing": 0.1})


def test_without_a_name_the_objective_is_classification():
    assert study().objective == Classification()
    assert study(objective={"label_smoothing": 0.1}).objective.label_smoothing == 0.1
    assert isinstance(study(objective={"name": "multilabel"}).objective, Multilabel)


def test_another_name_starts_from_the_defaults_of_that_one():
    given = study(objective={"label_smoothing": 0.1}).model_dump()
    changed = with_changes(given, {"objective.name": "regression"})
    assert changed["objective"] == {"name": "regression"}


def test_the_code_of_an_objective_is_part_of_a_runs_identity():
    normlab.register_objective("pinball", Pinball)
    made = study(objective={"name": "pinball"})
    *_, of_objective = single_run(made, made.arms()[0], 0).setting["code"]
    assert len(of_objective) == 64
    own = study()
    assert single_run(own, own.arms()[0], 0).setting["code"][-1] is None


class WithoutLoss(normlab.Objective):
    pass


class OfNoKind(Pinball):
    targets = "numbers"  # pyright: ignore[reportAssignmentType]


class WithoutMeaning(Pinball):
    metrics = {"pinball": "down"}  # noqa: RUF012 # pyright: ignore[reportAssignmentType]


class WithAnArray(Pinball):
    weights: dict[str, float] = {}  # noqa: RUF012


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (object(), "is not a class derived from normlab.Objective; write `class Mine"),
        (WithoutLoss, "WithoutLoss has no loss; add a method loss"),
        (OfNoKind, "targets='numbers'; expected one of classes, flags"),
        (WithoutMeaning, "expected names, as words with underscores, and what they mean"),
        (WithAnArray, "the fields weights: .* cannot stand in a configuration"),
    ],
)
def test_what_cannot_stand_in_a_study_is_refused_with_a_remedy(given, told):
    with pytest.raises(ValueError, match=told):
        normlab.register_objective("mine", given)


def test_names_are_taken_once():
    with pytest.raises(ValueError, match="'regression' is taken by"):
        normlab.register_objective("regression", Pinball)
    normlab.register_objective("pinball", Pinball)
    normlab.register_objective("pinball", Pinball)  # as a module that is loaded again does


class Wide(Pinball):
    def loss(self, output, target):
        return jnp.square(output - target)


class OfTheBatch(Pinball):
    def measure(self, output, target):
        return {"pinball": jnp.mean(output)}


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        (Wide(), r"Wide.loss: an array of shape \(3, 1\); expected \(3,\).*as with .mean"),
        (OfTheBatch(), r"OfTheBatch.measure, pinball: an array of shape \(\); expected \(3,\)"),
    ],
)
def test_losses_and_measures_are_of_each_example(objective, told):
    """A loss (N, 1) times weights (N,) would have been a table of all pairs."""
    with pytest.raises(ValueError, match=told):
        objective.sums(jnp.zeros((3, 1)), jnp.zeros((3, 1)), jnp.ones(3))


def test_classes_of_positions_do_not_move_with_augmented_images():
    with pytest.raises(ValueError, match="moves images, but not the classes of their positions"):
        study(objective={"name": "per_pixel"}, train={"augment": "flip"})
