"""Whole runs: exact metrics, determinism, pairing, one program for all rates and seeds."""

from dataclasses import astuple
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import normlab
from normlab.data import Dataset, DataSpec, load
from normlab.data.batches import shuffled_batches, standardize
from normlab.models import MLP
from normlab.train import SGDSpec, Trainer, TrainSpec, place
from normlab.train.step import measure


def small_dataset(train=50, validation=13, test=21):
    generator = np.random.default_rng(0)
    count = train + validation + test
    labels = generator.integers(0, 3, count).astype(np.int32)
    images = generator.integers(0, 40, (count, 4, 4, 1)) + 60 * labels[:, None, None, None]
    order = np.arange(count, dtype=np.int32)
    return Dataset(
        name="made",
        images=images.astype(np.uint8),
        labels=labels,
        train=order[:train],
        validation=order[train : train + validation],
        test=order[train + validation :],
        mean=images[:train].mean((0, 1, 2)).astype(np.float32),
        deviation=images[:train].std((0, 1, 2)).astype(np.float32),
        classes=3,
    )


def images_of(dataset, indices):
    arrays = (dataset.images[indices], dataset.mean, dataset.deviation)
    return standardize(*map(jnp.asarray, arrays))


def trainer(
    norm=normlab.BatchNorm, optimizer=None, train=None, batch_size=8, dataset=None, width=1
):
    dataset = dataset or small_dataset()
    model = MLP(hidden=(16,), classes=dataset.classes, norm=norm)
    return Trainer(
        model,
        place(dataset, batch_size),
        optimizer or SGDSpec(learning_rate=0.05),
        train or TrainSpec(epochs=3),
        batch_size,
        width,
    )


@pytest.fixture(scope="module")
def batch_norm_trainer():
    return trainer()


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_validation_in_some_epochs_changes_no_other_number():
    every, some = (
        trainer(train=TrainSpec(epochs=7, validate_every=n)).run(3, test=True) for n in (1, 3)
    )
    evaluated = [epoch for epoch, it in enumerate(some.epochs, 1) if it.validation_loss is not None]
    assert evaluated == [3, 6, 7]
    for one, other in zip(every.epochs, some.epochs, strict=True):
        told = other.validation_loss is not None
        assert astuple(other) == (astuple(one) if told else (*astuple(one)[:2], None, None))
    assert (some.test_loss, some.test_accuracy) == (every.test_loss, every.test_accuracy)
    assert_same(some.state.params, every.state.params)


def test_a_run_that_diverges_between_evaluations_stops_there():
    wild = trainer(
        optimizer=SGDSpec(learning_rate=1e20), train=TrainSpec(epochs=5, validate_every=5)
    )
    outcome = wild.run(0)
    assert outcome.diverged
    assert len(outcome.epochs) < 5
    assert outcome.epochs[-1].validation_loss is None


def test_an_epoch_is_the_steps_that_a_plain_optax_loop_takes(batch_norm_trainer):
    dataset, model = small_dataset(), batch_norm_trainer.model
    state = batch_norm_trainer.initialize(3)
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
    outcome = batch_norm_trainer.run(3)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, outcome.state.params, params)
    jax.tree.map(close, outcome.state.batch_stats, batch_stats)
    assert int(outcome.state.step) == 18
    close(outcome.epochs[-1].train_loss, np.mean(losses[-6:]))
    close(outcome.epochs[-1].train_accuracy, np.mean(correct[-6:]))


@pytest.mark.parametrize("batch_size", [5, 8, 50])
def test_evaluation_counts_every_example_once_whatever_the_batch_size(batch_size):
    dataset = small_dataset()
    made = trainer(batch_size=batch_size, train=TrainSpec(epochs=1))
    outcome = made.run(0, test=True)
    variables = {"params": outcome.state.params, "batch_stats": outcome.state.batch_stats}
    for split, loss, accuracy in [
        (dataset.test, outcome.test_loss, outcome.test_accuracy),
        (
            dataset.validation,
            outcome.epochs[-1].validation_loss,
            outcome.epochs[-1].validation_accuracy,
        ),
    ]:
        images = images_of(dataset, split)
        logits = made.model.apply(variables, images, train=False)
        labels = dataset.labels[split]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        np.testing.assert_allclose(loss, each.mean(), rtol=1e-5)
        np.testing.assert_allclose(accuracy, (logits.argmax(-1) == labels).mean(), rtol=1e-6)


def test_masked_examples_count_for_nothing_even_if_their_logits_are_not_finite():
    logits = jnp.array([[0.0, 1.0], [jnp.nan, 1.0], [2.0, 0.0]])
    sums = measure(logits, jnp.array([1, 0, 1]), jnp.array([True, False, True]))
    loss = np.log(1 + np.exp(-1)) + np.log(1 + np.exp(2))
    np.testing.assert_allclose(jnp.stack(sums), [2, loss, 1], rtol=1e-6)


def test_same_seed_gives_the_same_result_to_the_bit_and_another_seed_another(batch_norm_trainer):
    first, again, other = (batch_norm_trainer.run(seed, test=True) for seed in (1, 1, 2))
    assert first.epochs == again.epochs
    assert (first.test_loss, first.test_accuracy) == (again.test_loss, again.test_accuracy)
    assert_same(first.state.params, again.state.params)
    assert first.epochs != other.epochs


def test_a_recompiled_program_gives_the_same_result_to_the_bit(batch_norm_trainer):
    assert_same(trainer().run(1).state.params, batch_norm_trainer.run(1).state.params)


def test_one_program_serves_all_rates_and_equals_one_compiled_for_the_rate(batch_norm_trainer):
    given = batch_norm_trainer.run(1, {"learning_rate": 0.2, "momentum": 0.5})
    own = trainer(optimizer=SGDSpec(learning_rate=0.2, momentum=0.5)).run(1)
    assert_same(given.state.params, own.state.params)
    assert given.epochs != batch_norm_trainer.run(1).epochs


def test_same_seed_gives_every_variant_the_same_weights_and_the_same_order(batch_norm_trainer):
    states = [
        made.initialize(5)
        for made in (
            batch_norm_trainer,
            trainer(normlab.RMSNorm),
            trainer(normlab.Identity),
            trainer(partial(normlab.GroupNorm, num_groups=4)),
        )
    ]
    for state in states[1:]:
        for layer in ("dense_0", "head"):
            assert_same(state.params[layer]["kernel"], states[0].params[layer]["kernel"])
        assert_same(jax.random.key_data(state.key), jax.random.key_data(states[0].key))


def test_a_run_that_diverges_stops_and_says_so(batch_norm_trainer):
    outcome = trainer(normlab.Identity, train=TrainSpec(epochs=50)).run(
        0, {"learning_rate": 1e30}, test=True
    )
    assert outcome.diverged
    assert len(outcome.epochs) < 50
    assert outcome.test_loss is None
    assert outcome.test_accuracy is None
    assert outcome.state is None  # An epoch more may have begun.


def test_the_next_epoch_is_handed_over_before_the_last_ones_metrics_are_told():
    made = trainer(train=TrainSpec(epochs=3))
    happened = []
    initialize, epoch, evaluate = made.compile()

    def counted(*arguments):
        happened.append("epoch")
        return epoch(*arguments)

    made._compiled = initialize, counted, evaluate
    made.run(0, after_epoch=lambda number, _: happened.append(number))
    assert happened == ["epoch", "epoch", 1, "epoch", 2, 3]


def test_label_smoothing_changes_the_steps_and_not_the_reported_loss():
    # One step an epoch: the first loss is that of the same initial weights.
    plain, smooth = (
        trainer(batch_size=50, train=TrainSpec(epochs=2, label_smoothing=smoothing)).run(0).epochs
        for smoothing in (0.0, 0.3)
    )
    np.testing.assert_allclose(smooth[0].train_loss, plain[0].train_loss, rtol=1e-6)
    assert smooth[1].train_loss != plain[1].train_loss


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters_and_statistics():
    made = trainer(train=TrainSpec(epochs=5, precision="bfloat16"))
    outcome = made.run(0)
    variables = (outcome.state.params, outcome.state.batch_stats)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact = trainer(train=TrainSpec(epochs=5)).run(0)
    assert exact.epochs[0].train_loss != outcome.epochs[0].train_loss
    np.testing.assert_allclose(exact.epochs[0].train_loss, outcome.epochs[0].train_loss, rtol=0.1)


def test_digits_are_learned():
    made = trainer(batch_size=64, dataset=load(DataSpec()), train=TrainSpec(epochs=5))
    outcome = made.run(0, test=True)
    assert outcome.test_accuracy > 0.93


def test_the_scale_of_initialization_multiplies_the_weights_and_nothing_else():
    plain = trainer().initialize(0).params
    scaled = trainer(train=TrainSpec(epochs=3, initialization_scale=2.0)).initialize(0).params
    for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(scaled), strict=True
    ):
        factor = 2.0 if path[-1].key == "kernel" else 1.0
        np.testing.assert_array_equal(after, factor * before)
    assert float(jnp.abs(plain["dense_0"]["kernel"]).max()) > 0


RATES = [{"learning_rate": rate} for rate in (0.05, 0.1, 0.2)]


@pytest.fixture(scope="module")
def three_at_a_time():
    return trainer(width=3)


def metrics_of(outcome):
    tested = (outcome.test_loss, outcome.test_accuracy)
    return np.array([*(value for epoch in outcome.epochs for value in astuple(epoch)), *tested])


def test_several_runs_at_a_time_on_a_cpu_are_the_single_runs_to_the_bit(
    batch_norm_trainer, three_at_a_time
):
    """They go one after the other, in the same steps."""
    together = three_at_a_time.run_together([1, 2, 3], RATES, test=True)
    for seed, rate, outcome in zip((1, 2, 3), RATES, together, strict=True):
        alone = batch_norm_trainer.run(seed, rate, test=True)
        assert len(outcome.epochs) == 3
        np.testing.assert_array_equal(metrics_of(outcome), metrics_of(alone))


def test_a_place_that_is_left_over_is_filled_and_changes_no_bit(three_at_a_time):
    whole = three_at_a_time.run_together([1, 2, 3], RATES, test=True)
    (alone,) = three_at_a_time.run_together([1], RATES[:1], test=True)
    assert metrics_of(alone).tolist() == metrics_of(whole[0]).tolist()


def test_a_run_that_diverges_among_others_stops_counting_and_the_others_go_on():
    made = trainer(normlab.Identity, train=TrainSpec(epochs=6), width=3)
    rates = [{"learning_rate": rate} for rate in (0.05, 1e30, 0.1)]
    seen = []
    together = made.run_together(
        [1, 2, 3], rates, test=True, after_epoch=lambda place, epoch, _: seen.append((place, epoch))
    )
    assert [outcome.diverged for outcome in together] == [False, True, False]
    assert [len(outcome.epochs) for outcome in together] == [6, 1, 6]
    assert together[1].test_loss is None
    assert np.isfinite([metrics_of(together[place]) for place in (0, 2)]).all()
    assert [epoch for place, epoch in seen if place == 1] == [1]
    assert [epoch for place, epoch in seen if place == 2] == [1, 2, 3, 4, 5, 6]


def test_the_memory_of_a_run_grows_with_the_model_and_not_with_the_width(three_at_a_time):
    one = trainer().memory_of_a_run()
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer().initialize(0).params))
    assert one > 2 * parameters  # weights and velocities, and what a step needs
    assert 0.5 * one < three_at_a_time.memory_of_a_run() < 2 * one
