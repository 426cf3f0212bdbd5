"""What a rule measures where runs diverged, or where what was found is no number."""

import math

import pytest
from compare.results import run

from normlab.compare.store import Probed, Store
from normlab.errors import UserError
from normlab.verdicts.measures import _length, _probed, _single
from normlab.verdicts.rule import MeasureSpec, ProbeSpec


@pytest.mark.parametrize("by", ["range", "mean", "least", "most"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_number_is_not_passed_over_wherever_it_stands(by, place):
    """Regression: of {1, NaN, 5} the range was 4, since Python's min and max pass over NaN."""
    values = [1.0, 5.0]
    values.insert(place, math.nan)
    spec = MeasureSpec(over="train.initialization_scale", by=by)
    assert math.isnan(_single(spec, list(zip((0.1, 1.0, 10.0), values, strict=True))))


@pytest.fixture
def probed(tmp_path):
    def probed(values, of="spread"):
        store, made = Store(tmp_path), run("final", "batch", 0)
        store.begin_probes(made.id, None)
        line = Probed(step=0, probe="gradients", seconds=1.0, values={"to_input": values})
        store.write_probed(made.id, line)
        spec = ProbeSpec(read="probe", probe="gradients", quantity="to_input", of=of)
        return _probed("measure", spec, "to_input", store, made)

    return probed


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_layer_that_overflowed_has_no_spread_with_the_others(probed, place):
    """Regression: it was left out unless it came first."""
    names = ["a", "b"]
    names.insert(place, "over")
    values = {name: None if name == "over" else 10.0 for name in names}
    ((step, value),) = probed(values)
    assert step == 0
    assert math.isnan(value)
    assert probed({"a": 1.0, "b": 1000.0}) == [(0, pytest.approx(3.0))]


@pytest.mark.parametrize("of", ["spread", "mean", "first", "last"])
def test_a_quantity_that_no_layer_has_is_told(probed, of):
    """Regression: a model without norm layers ended in a StatisticsError."""
    with pytest.raises(UserError, match="has no layer of which to_input could be told"):
        probed({}, of)


def test_an_arm_all_of_whose_runs_diverged_has_no_length():
    """Regression: its few steps counted as those that it took to the target."""

    dead = [run("final", "dead", it, diverged=True, steps_per_epoch=it + 3) for it in (0, 1)]
    half = [run("final", "half", 0, diverged=True, steps_per_epoch=7)]
    half.append(run("final", "half", 1, steps_per_epoch=200))
    assert math.isnan(_length(dead[0], [*dead, *half]))
    assert _length(half[0], [*dead, *half]) == 200
