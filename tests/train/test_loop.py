"""Whole runs: exact metrics, determinism, pairing, one program for all rates and seeds."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import initialized, programs_of, run, small_dataset

import normlab
from normlab.data import DataSpec, load
from normlab.data.batches import shuffled_batches, standardize
from normlab.models import MLP
from normlab.objectives import Classification
from normlab.train import RecordHook, SGDSpec, StateHook, TrainSpec, fit


def images_of(dataset, indices):
    arrays = (dataset.images[indices], dataset.mean, dataset.deviation)
    return standardize(*map(jnp.asarray, arrays))


def programs(norm=normlab.BatchNorm, dataset=None, **options):
    dataset = dataset or small_dataset()
    model = MLP(hidden=(16,), classes=dataset.classes, norm=norm)
    return programs_of(model, dataset, **options)


@pytest.fixture(scope="module")
def with_batch_norm():
    return programs()


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_validation_in_some_epochs_changes_no_other_number():
    every, some = (
        run(programs(train=TrainSpec(epochs=7, validate_every=n)), 3, test=True) for n in (1, 3)
    )
    evaluated = [epoch for epoch, it in enumerate(some.curve, 1) if it.validation is not None]
    assert evaluated == [3, 6, 7]
    for one, other in zip(every.curve, some.curve, strict=True):
        told = other.validation is not None
        assert other == (one if told else replace(one, validation=None))
    assert some.test == every.test
    assert_same(some.state.params, every.state.params)


def test_a_run_that_diverges_between_evaluations_stops_there():
    wild = programs(
        optimizer=SGDSpec(learning_rate=1e20), train=TrainSpec(epochs=5, validate_every=5)
    )
    outcome = run(wild, 0)
    assert outcome.diverged
    assert len(outcome.curve) < 5
    assert outcome.curve[-1].validation is None


def test_steps_are_those_of_epochs_however_they_are_recorded():
    """Stops lie at ends of epochs, at points of the curve and at what hooks ask for."""
    epochs = run(programs(), 3, test=True)
    seen = []
    made = programs(train=TrainSpec(steps=18, evaluate_every=4))
    hook = StateHook(5, lambda moment: seen.append((moment.step, int(moment.state.step))))
    steps = run(made, 3, test=True, hooks=[hook])
    assert [point.step for point in steps.curve] == [4, 8, 12, 16, 18]
    assert all(point.validation is not None for point in steps.curve)
    assert seen == [(5, 5), (10, 10), (15, 15), (18, 18)]
    assert steps.test == epochs.test
    assert_same(steps.state.params, epochs.state.params)
    assert_same(steps.state.opt_state, epochs.state.opt_state)
    # The same steps: 18 of 8 examples, in whichever points they are summed.
    for points in (steps.curve, epochs.curve):
        ends = [0, *(point.step for point in points)]
        counts = np.diff(ends)
        total = sum(n * point.train["loss"] for n, point in zip(counts, points, strict=True))
        np.testing.assert_allclose(total / 18, mean_loss_of(epochs), rtol=1e-6)


def mean_loss_of(outcome):
    return np.mean([point.train["loss"] for point in outcome.curve])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epochs": 2, "steps": 3}, "epochs=2 and steps=3 both say how long"),
        ({"evaluate_every": 3}, "evaluate_every=3 counts steps, but the run is 10 epochs long"),
        ({"steps": 9, "validate_every": 2}, "validate_every=2 counts epochs"),
    ],
)
def test_a_run_has_one_length(given, told):
    with pytest.raises(ValueError, match=told):
        TrainSpec(**given)


def test_an_epoch_is_the_steps_that_a_plain_optax_loop_takes(with_batch_norm):
    dataset, model = small_dataset(), with_batch_norm.steps.network.model
    state = initialized(with_batch_norm, 3)
    params, batch_stats, key = state.params, state.batch_stats, state.key
    sgd = optax.sgd(0.05, momentum=0.9)
    opt_state = sgd.init(params)
    losses, correct = [], []
    for _ in range(3):
        order_key, key = jax.random.split(key)
        for batch in shuffled_batches(order_key, jnp.asarray(dataset.train), 8):
            images = images_of(dataset, batch)
            labels = dataset.labels[batch]

            def loss(params, batch_stats=batch_stats, images=images, labels=labels):
                logits, updated = model.apply(
                    {"params": params, "batch_stats": batch_stats},
                    images,
                    train=True,
                    mutable=["batch_stats"],
                )
                each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return each.mean(), (updated["batch_stats"], each, logits.argmax(-1) == labels)

            gradient, (batch_stats, each, right) = jax.grad(loss, has_aux=True)(params)
            updates, opt_state = sgd.update(gradient, opt_state)
            params = optax.apply_updates(params, updates)
            losses.append(each)
            correct.append(right)
    outcome = run(with_batch_norm, 3)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, outcome.state.params, params)
    jax.tree.map(close, outcome.state.batch_stats, batch_stats)
    assert int(outcome.state.step) == 18
    close(outcome.curve[-1].train["loss"], np.mean(losses[-6:]))
    close(outcome.curve[-1].train["accuracy"], np.mean(correct[-6:]))


@pytest.mark.parametrize("batch_size", [5, 8, 50])
def test_evaluation_counts_every_example_once_whatever_the_batch_size(batch_size):
    dataset = small_dataset()
    made = programs(batch_size=batch_size, train=TrainSpec(epochs=1))
    outcome = run(made, 0, test=True)
    variables = {"params": outcome.state.params, "batch_stats": outcome.state.batch_stats}
    for split, told in [
        (dataset.test, outcome.test),
        (dataset.validation, outcome.curve[-1].validation),
    ]:
        images = images_of(dataset, split)
        logits = made.steps.network.model.apply(variables, images, train=False)
        labels = dataset.labels[split]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        np.testing.assert_allclose(told["loss"], each.mean(), rtol=1e-5)
        np.testing.assert_allclose(
            told["accuracy"], (logits.argmax(-1) == labels).mean(), rtol=1e-6
        )


def test_masked_examples_count_for_nothing_even_if_their_logits_are_not_finite():
    logits = jnp.array([[0.0, 1.0], [jnp.nan, 1.0], [2.0, 0.0]])
    sums = Classification().sums(logits, jnp.array([1, 0, 1]), jnp.array([1.0, 0.0, 1.0]))
    loss = np.log(1 + np.exp(-1)) + np.log(1 + np.exp(2))
    np.testing.assert_allclose(sums["loss"], [loss, 2], rtol=1e-6)
    np.testing.assert_allclose(sums["accuracy"], [1, 2])


def test_same_seed_gives_the_same_result_to_the_bit_and_another_seed_another(with_batch_norm):
    first, again, other = (run(with_batch_norm, seed, test=True) for seed in (1, 1, 2))
    assert first.curve == again.curve
    assert first.test == again.test
    assert_same(first.state.params, again.state.params)
    assert first.curve != other.curve


def test_a_recompiled_program_gives_the_same_result_to_the_bit(with_batch_norm):
    assert_same(run(programs(), 1).state.params, run(with_batch_norm, 1).state.params)


def test_one_program_serves_all_rates_and_equals_one_compiled_for_the_rate(with_batch_norm):
    given = run(with_batch_norm, 1, {"learning_rate": 0.2, "momentum": 0.5})
    own = run(programs(optimizer=SGDSpec(learning_rate=0.2, momentum=0.5)), 1)
    assert_same(given.state.params, own.state.params)
    assert given.curve != run(with_batch_norm, 1).curve


def test_same_seed_gives_every_variant_the_same_weights_and_the_same_order(with_batch_norm):
    states = [
        initialized(made, 5)
        for made in (
            with_batch_norm,
            programs(normlab.RMSNorm),
            programs(normlab.Identity),
            programs(partial(normlab.GroupNorm, num_groups=4)),
        )
    ]
    for state in states[1:]:
        for layer in ("dense_0", "head"):
            assert_same(state.params[layer]["kernel"], states[0].params[layer]["kernel"])
        assert_same(jax.random.key_data(state.key), jax.random.key_data(states[0].key))


def test_a_run_that_diverges_stops_and_says_so():
    made = programs(normlab.Identity, train=TrainSpec(epochs=50))
    outcome = run(made, 0, {"learning_rate": 1e30}, test=True)
    assert outcome.diverged
    assert len(outcome.curve) < 50
    assert outcome.test is None
    assert outcome.state is None  # An epoch more may have begun.


def test_the_next_epoch_is_handed_over_before_the_last_ones_metrics_are_told():
    made = programs(train=TrainSpec(epochs=3))
    happened = []
    initialize, advance, evaluate = made.compile()

    def counted(*arguments):
        happened.append("epoch")
        return advance(*arguments)

    made._compiled = initialize, counted, evaluate
    run(made, 0, hooks=[RecordHook(lambda _, record: happened.append(record.step))])
    assert happened == ["epoch", "epoch", 6, "epoch", 12, 18]


def test_the_state_is_handed_out_before_the_next_steps_use_it_up():
    handed = []
    hook = StateHook(6, lambda moment: handed.append(jax.device_get(moment.state)))
    outcome = run(programs(), 4, hooks=[hook])
    assert [int(state.step) for state in handed] == [6, 12, 18]
    assert_same(handed[-1].params, outcome.state.params)
    shorter = run(programs(train=TrainSpec(epochs=1)), 4)
    assert_same(handed[0].params, shorter.state.params)


def test_label_smoothing_changes_the_steps_and_not_the_reported_loss():
    # One step an epoch: the first loss is that of the same initial weights.
    def curve(smoothing):
        objective = Classification(label_smoothing=smoothing)
        train = TrainSpec(epochs=2)
        return run(programs(batch_size=50, train=train, objective=objective), 0).curve

    plain, smooth = curve(0.0), curve(0.3)
    np.testing.assert_allclose(smooth[0].train["loss"], plain[0].train["loss"], rtol=1e-6)
    assert smooth[1].train["loss"] != plain[1].train["loss"]


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters_and_statistics():
    made = programs(train=TrainSpec(epochs=5, precision="bfloat16"))
    outcome = run(made, 0)
    variables = (outcome.state.params, outcome.state.batch_stats)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact = run(programs(train=TrainSpec(epochs=5)), 0)
    assert exact.curve[0].train["loss"] != outcome.curve[0].train["loss"]
    np.testing.assert_allclose(
        exact.curve[0].train["loss"], outcome.curve[0].train["loss"], rtol=0.1
    )


def test_digits_are_learned():
    made = programs(batch_size=64, dataset=load(DataSpec()), train=TrainSpec(epochs=5))
    outcome = run(made, 0, test=True)
    assert outcome.test["accuracy"] > 0.93


def test_the_scale_of_initialization_multiplies_the_weights_and_nothing_else():
    plain = initialized(programs(), 0).params
    scaled = programs(train=TrainSpec(epochs=3, initialization_scale=2.0))
    scaled = initialized(scaled, 0).params
    for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(scaled), strict=True
    ):
        factor = 2.0 if path[-1].key == "kernel" else 1.0
        np.testing.assert_array_equal(after, factor * before)
    assert float(jnp.abs(plain["dense_0"]["kernel"]).max()) > 0


RATES = [{"learning_rate": rate} for rate in (0.05, 0.1, 0.2)]


@pytest.fixture(scope="module")
def three_at_a_time():
    return programs(width=3)


def test_several_runs_at_a_time_on_a_cpu_are_the_single_runs_to_the_bit(
    with_batch_norm, three_at_a_time
):
    """They go one after the other, in the same steps."""
    together = fit(three_at_a_time, [1, 2, 3], RATES, test=True)
    for seed, rate, outcome in zip((1, 2, 3), RATES, together, strict=True):
        alone = run(with_batch_norm, seed, rate, test=True)
        assert len(outcome.curve) == 3
        assert (outcome.curve, outcome.test) == (alone.curve, alone.test)
        assert_same(outcome.state.params, alone.state.params)


def test_a_place_that_is_left_over_is_filled_and_changes_no_bit(three_at_a_time):
    whole = fit(three_at_a_time, [1, 2, 3], RATES, test=True)
    (alone,) = fit(three_at_a_time, [1], RATES[:1], test=True)
    assert (alone.curve, alone.test) == (whole[0].curve, whole[0].test)


def test_a_run_that_diverges_among_others_stops_counting_and_the_others_go_on():
    made = programs(normlab.Identity, train=TrainSpec(epochs=6), width=3)
    rates = [{"learning_rate": rate} for rate in (0.05, 1e30, 0.1)]
    seen = []
    hook = RecordHook(lambda place, record: seen.append((place, record.step // 6)))
    together = fit(made, [1, 2, 3], rates, test=True, hooks=[hook])
    assert [outcome.diverged for outcome in together] == [False, True, False]
    assert [len(outcome.curve) for outcome in together] == [6, 1, 6]
    assert together[1].test is None
    for place in (0, 2):
        assert np.isfinite(list(together[place].test.values())).all()
        assert together[place].state is not None
    assert [epoch for place, epoch in seen if place == 1] == [1]
    assert [epoch for place, epoch in seen if place == 2] == [1, 2, 3, 4, 5, 6]


def test_the_memory_of_a_run_grows_with_the_model_and_not_with_the_width(three_at_a_time):
    one = programs().memory_of_a_run()
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(initialized(programs(), 0).params))
    assert one > 2 * parameters  # weights and velocities, and what a step needs
    assert 0.5 * one < three_at_a_time.memory_of_a_run() < 2 * one
