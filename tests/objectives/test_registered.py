"""Objectives of the user's own: what registration asks of them, and what a study makes of them."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
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


with pytest.warns(UserWarning, match="shadows"):

    class Annotated(Pinball):
        targets: str = "values"  # pyright: ignore[reportIncompatibleVariableOverride]


class SharesOfValues(Pinball):
    takes_shares = True


class WithAnInit(Pinball):
    def __init__(self):
        super().__init__()


class OfOneArgument(Pinball):
    def loss(self, output):
        return output


class WithConstants(Pinball):
    weights: ClassVar[dict[str, float]] = {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        # The labels of the study were taken for classes.
        (Annotated, "Annotated annotates targets, which makes that a field of each study; leave"),
        # These two were told as a TypeError, the second of all runs of a study.
        (WithAnInit, "WithAnInit has an __init__, but a study makes it of its fields; annotate"),
        (OfOneArgument, "loss of OfOneArgument must take output and target, by their places: too"),
        (SharesOfValues, "takes_shares=True, but there are shares of classes alone, and targets="),
        (object(), "is not a class derived from normlab.Objective; write `class Mine"),
        (WithoutLoss, "WithoutLoss has no loss; add a method loss"),
        (OfNoKind, "targets='numbers'; expected one of classes, flags"),
        (WithoutMeaning, "expected names, as words with underscores, and what they mean"),
        (WithAnArray, "the fields weights: .* cannot stand in .* Annotate .* as typing.ClassVar"),
    ],
)
def test_what_cannot_stand_in_a_study_is_refused_with_a_remedy(given, told):
    with pytest.raises(ValueError, match=told):
        normlab.register_objective("mine", given)


def test_what_is_of_the_class_alone_is_no_field():
    """The remedy for fields that cannot be set, to leave out the annotation, was an error."""
    normlab.register_objective("mine", WithConstants)
    assert OBJECTIVES["mine"].model_fields.keys() == {"share", "name"}


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


@pytest.mark.parametrize(
    ("method", "returned", "told"),
    [
        ("loss", 1j * jnp.ones(3), "Mine.loss: complex numbers; expected real ones"),
        ("measure", None, "Mine.measure returns None; expected arrays by name"),
        ("measure", {3: jnp.ones(3)}, "Mine.measure returns a mapping of 3; expected arrays"),
        ("measure", {"pinball": "x"}, "Mine.measure, pinball: 'x'; expected an array of numbers"),
        ("examples", (jnp.ones(3), None), "Mine.examples returns 2 things; expected three things"),
        (
            "examples",
            (jnp.ones((3, 1)), jnp.ones((3, 1)), jnp.ones(())),
            r"Mine.examples: weights of shape \(\); expected \(3, ...\), one for each loss",
        ),
    ],
)
def test_what_a_users_methods_return_is_checked_as_training_is_traced(method, returned, told):
    """The study went on to errors of normlab's own insides, as 'NoneType' has no 'items'."""
    mine = type("Mine", (Pinball,), {method: lambda *_: returned, "__annotations__": {}})()
    with pytest.raises(ValueError, match=told):
        mine.sums(jnp.zeros((3, 1)), *mine.prepared(jnp.zeros((3, 1)), jnp.zeros((3, 1)))[1:])


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "Mine.finish returns None; expected numbers by name"),
        ({"a b": 1.0, "loss": 1.0}, "expected numbers by name, with names that are words"),
        ({"pinball": 1.0}, "returns pinball without loss, .* add 'loss': means"),
        ({"pinball": "good", "loss": 1.0}, "pinball is 'good'; expected a number"),
        ({"pinball": jnp.ones(2), "loss": 1.0}, r"pinball is an array float32\[2\]; expected"),
        ({"pinball": True, "loss": 1.0}, "pinball is True; expected a number"),
        ({"pinball": 7.5, "loss": 1.0}, "pinball is 7.5, .* at most 1, since it is a share"),
        ({"pinball": -1, "loss": 1.0}, "pinball is -1, .* at least 0, since it is a share"),
    ],
)
def test_metrics_of_a_users_own_are_numbers_within_their_bounds(returned, told):
    """A share of 7.5 was told as 750%, [750, 100]; a NumPy number ended a run after training."""
    share = {"pinball": normlab.Metric(higher_is_better=True, share=True)}
    members = {"metrics": share, "finish": lambda *_: returned, "__annotations__": {}}
    mine = type("Mine", (Pinball,), members)()
    with pytest.raises(ValueError, match=told):
        mine.metrics_of({"loss": (1.0, 1.0)})


def test_metrics_may_be_numbers_of_numpy_and_what_is_measured_is_found_without_any():
    """Code that takes no NaN was refused by what the probe for the names of metrics gave it."""

    class Rounded(Pinball):
        def finish(self, means):
            return {"pinball": np.float32(int(means["pinball"])), "loss": means["loss"]}

    sums = Rounded().no_sums(jnp.zeros((1, 1)), jnp.zeros((1, 1)), 1)
    assert Rounded().measured(sums) == ["pinball", "loss"]
    told = Rounded().metrics_of({"pinball": (4.0, 2.0), "loss": (3.0, 2.0)})
    assert told == {"pinball": 2.0, "loss": 1.5}
    assert all(type(it) is float for it in told.values())


def test_classes_of_positions_do_not_move_with_augmented_images():
    with pytest.raises(ValueError, match="moves images, but not the classes of their positions"):
        study(objective={"name": "per_pixel"}, train={"augment": "flip"})
