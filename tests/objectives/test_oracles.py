"""Each objective against its float64 oracle, over batches of which the last one is short."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import objectives as oracles

from normlab.data.batches import padded_batches
from normlab.objectives import (
    Classification,
    Multilabel,
    NextToken,
    PerPixel,
    Regression,
    add_sums,
)

N, BATCH = 37, 8
drawn = np.random.default_rng(3)


def evaluated(objective, inputs, targets, outputs):
    """Sums over padded batches, as programs evaluate; what fills up is not finite."""
    batches, mask = padded_batches(np.arange(len(outputs), dtype=np.int32), BATCH)
    example = [None if it is None else jnp.asarray(it[:1]) for it in (inputs, targets)]
    sums = objective.no_sums(*example, outputs.shape[-1])
    for indices, counted in zip(batches, mask, strict=True):
        labels = None if targets is None else jnp.asarray(targets[indices])
        _, wanted, weights = objective.examples(jnp.asarray(inputs[indices]), labels)
        own = weights * counted.reshape(-1, *(1,) * (weights.ndim - 1))
        filled = np.where(counted.reshape(-1, *(1,) * (outputs.ndim - 1)), outputs[indices], np.nan)
        sums = add_sums(sums, objective.sums(jnp.asarray(filled), wanted, own))
    return objective.metrics_of(jax.device_get(sums))


def assert_told(objective, told, expected, rtol=2e-6):
    assert told.keys() == expected.keys() <= objective.all_metrics().keys()
    for name, value in expected.items():
        np.testing.assert_allclose(told[name], value, rtol=rtol, err_msg=name)


def normal(*shape):
    return drawn.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("classes", [7, 20])
def test_classification_has_top_5_accuracy_from_20_classes_up(classes):
    logits, labels = normal(N, classes), drawn.integers(0, classes, N).astype(np.int32)
    told = evaluated(Classification(), normal(N, 3), labels, logits)
    assert ("top_5_accuracy" in told) == (classes == 20)
    assert_told(Classification(), told, oracles.classification(logits, labels))


def test_multilabel():
    logits, flags = normal(N, 6), (drawn.random((N, 6)) < 0.3).astype(np.uint8)
    flags[:9] = logits[:9] > 0  # All right in some examples.
    told = evaluated(Multilabel(), normal(N, 3), flags, logits)
    assert_told(Multilabel(), told, oracles.multilabel(logits, flags))


def test_f1_of_nothing_predicted_and_nothing_set_is_0():
    none = np.zeros((N, 2), np.uint8)
    told = evaluated(Multilabel(), normal(N, 3), none, -np.ones((N, 2), np.float32))
    assert (told["micro_f1"], told["flags_right"], told["subset_accuracy"]) == (0, 1, 1)


@pytest.mark.parametrize("delta", [None, 0.7])
@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_regression_has_metrics_in_the_targets_units_and_a_large_mean_cancels_nothing(
    offset, delta
):
    """R² of sums of squares of values near 3000 had no right digit in float32."""
    training = (offset + normal(200, 2) * [0.5, 20]).astype(np.float32)
    values = (offset + normal(N, 2) * [0.5, 20]).astype(np.float32)
    predictions = normal(N, 2) / 3 + (values - training.mean(0)) / training.std(0)
    predictions = predictions.astype(np.float32)
    objective = Regression() if delta is None else Regression(loss_by="huber", delta=delta)
    objective = objective.fitted(training)
    told = evaluated(objective, normal(N, 3), values, predictions)
    exact = [it.astype(np.float64) for it in (values, training)]
    rtol = 2e-6 if not offset else 2e-4  # Steps of float32 near 3000, in deviations of 0.5.
    assert_told(objective, told, oracles.regression(predictions, *exact, delta), rtol)


def test_r2_leaves_out_what_does_not_vary():
    values = np.stack([np.full(N, 5.0), np.arange(N)], 1).astype(np.float32)
    objective = Regression().fitted(values)
    standardized = (values - values.mean(0)) / [1, values[:, 1].std()]
    told = evaluated(objective, normal(N, 3), values, standardized.astype(np.float32))
    np.testing.assert_allclose([told["r2"], told["rmse"]], [1, 0], atol=1e-5)
    constant = values[:, :1]
    told = evaluated(Regression().fitted(constant), normal(N, 3), constant, 0 * constant)
    assert np.isnan(told["r2"])


@pytest.mark.parametrize("padding", [None, 0])
def test_next_token_compares_with_the_tokens_moved_by_one_and_leaves_out_padding(padding):
    tokens = drawn.integers(0, 5, (N, 6)).astype(np.int32)
    logits = normal(N, 5, 5)
    objective = NextToken(padding=padding)
    given, *_ = objective.examples(jnp.asarray(tokens), None)
    np.testing.assert_array_equal(given, tokens[:, :-1])
    told = evaluated(objective, tokens, None, logits)
    assert_told(objective, told, oracles.next_token(logits, tokens, padding))


def test_more_tokens_than_bytes_have_no_bits_per_byte():
    tokens = drawn.integers(0, 257, (N, 3)).astype(np.int32)
    told = evaluated(NextToken(), tokens, None, normal(N, 2, 257))
    assert told.keys() == {"loss", "perplexity"}


@pytest.mark.parametrize("given", [np.zeros((2, 5), np.float32), np.zeros((2, 1), np.int32)])
def test_next_token_refuses_what_is_no_text(given):
    with pytest.raises(ValueError, match="expected the numbers of at least two tokens"):
        NextToken().examples(jnp.asarray(given), None)


def test_a_padding_that_is_no_token_is_refused():
    """It was taken without a word, and left out nothing."""
    output = jnp.zeros((2, 3, 7))
    assert NextToken(padding=6).check("gpt", output, (2, 3), 7).shape == (2, 3, 7)
    with pytest.raises(ValueError, match=r"padding=7 is none of the tokens, which are 0 to 6"):
        NextToken(padding=7).check("gpt", output, (2, 3), 7)


def test_per_pixel_leaves_out_positions_and_classes_that_are_nowhere():
    logits, labels = normal(N, 4, 3, 5), drawn.integers(-1, 4, (N, 4, 3)).astype(np.int32)
    logits[..., 4] = -9  # Neither predicted nor there.
    told = evaluated(PerPixel(), normal(N, 4, 3, 1), labels, logits)
    assert_told(PerPixel(), told, oracles.per_pixel(logits, labels))
