"""Cutout and mixup: what is drawn, and what is made of it, computed anew in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from small_runs import programs_of, small_dataset

import normlab
from normlab.config import ConfigError, make_study
from normlab.data.augment import cut_out, mixed_up
from normlab.models import MLP
from normlab.objectives import Classification
from normlab.train import TrainSpec

KEYS = jax.random.split(jax.random.key(0), 200)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_cutout_sets_a_square_to_0_whose_centre_is_any_pixel(side):
    sizes = (4, 5)
    images = 1 + jnp.arange(40.0 * 4 * 5 * 2).reshape(40, 4, 5, 2)
    cut = np.asarray(jax.jit(jax.vmap(lambda key: cut_out(key, images, side)))(KEYS))
    rows, columns = (
        [
            (np.arange(size) >= c - side // 2) & (np.arange(size) < c - side // 2 + side)
            for c in range(size)
        ]
        for size in sizes
    )
    expected = {
        np.outer(row, column).tobytes(): place
        for place, (row, column) in enumerate((r, c) for r in rows for c in columns)
    }
    outside = cut[..., 0] != 0
    np.testing.assert_array_equal(cut, np.where(outside[..., None], images, 0))
    found = [expected[it.tobytes()] for it in ~outside.reshape(-1, *sizes)]
    counts = np.bincount(found, minlength=len(rows) * len(columns))
    # Squares of even sides that reach to the last pixel and beyond are all different, too.
    assert len(expected) == 20
    assert stats.chisquare(counts).pvalue > 1e-3


def test_mixup_mixes_each_example_and_its_label_with_one_other_in_one_proportion():
    count, classes, alpha = 8, 5, 0.4
    labels = jnp.arange(count) % classes
    images = jnp.eye(count).reshape(count, 1, 1, count)

    def mix(key):
        return mixed_up(key, images, labels, alpha, classes)

    shares = []
    for mixed, of_classes in zip(*map(np.asarray, jax.jit(jax.vmap(mix))(KEYS)), strict=True):
        mixed = mixed.reshape(count, count).astype(np.float64)
        # A row is a share of itself, and the rest of its partner.
        others = mixed - np.diag(np.diag(mixed))
        partners = np.where(others.any(1), others.argmax(1), np.arange(count))
        assert sorted(partners) == [*range(count)]
        (share,) = np.unique(np.diag(mixed)[partners != np.arange(count)]) if others.any() else (1,)
        shares.append(share)
        one_hot = np.eye(classes)[labels]
        expected = share * np.eye(count) + (1 - share) * np.eye(count)[partners]
        np.testing.assert_allclose(mixed, expected, atol=1e-6)
        told = share * one_hot + (1 - share) * one_hot[partners]
        np.testing.assert_allclose(of_classes, told, atol=1e-6)
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_shares_is_their_mean_of_the_losses_of_the_classes(smoothing):
    rng = np.random.default_rng(0)
    logits, shares = rng.normal(0, 3, (6, 25)), rng.dirichlet(np.ones(25), 6)
    objective = Classification(label_smoothing=smoothing)
    given = jnp.asarray(logits, jnp.float32), jnp.asarray(shares, jnp.float32)
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(((1 - smoothing) * shares + smoothing / 25) * log_shares).sum(1)
    np.testing.assert_allclose(objective.loss(*given), expected, rtol=1e-5)
    measured, largest = objective.measure(*given), shares.argmax(1)
    np.testing.assert_allclose(measured["loss"], -(shares * log_shares).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(measured["accuracy"], logits.argmax(1) == largest)
    five = np.argsort(-logits)[:, :5]
    np.testing.assert_array_equal(measured["top_5_accuracy"], (five == largest[:, None]).any(1))
    # Shares that are all of one class are that class.
    one = jnp.argmax(given[1], axis=1)
    of_one = given[0], jax.nn.one_hot(one, 25)
    for name, values in objective.measure(given[0], one).items():
        np.testing.assert_allclose(objective.measure(*of_one)[name], values, rtol=1e-6)


def test_squares_larger_than_the_images_are_refused():
    model = MLP(hidden=(4,), classes=3, norm=normlab.LayerNorm)
    with pytest.raises(ValueError, match=r"train\.cutout=5 is the side .* images have 4 x 4"):
        programs_of(model, small_dataset(), train=TrainSpec(epochs=1, cutout=5))


def test_labels_that_are_no_classes_are_not_mixed():
    told = "train.mixup=0.2 mixes classes, of which objective.name=regression takes no shares"
    with pytest.raises(ConfigError, match=told):
        make_study(
            {
                "study": "mixed",
                "data": {"name": "npz", "folder": "own.npz"},
                "model": {"name": "mlp"},
                "objective": {"name": "regression"},
                "train": {"mixup": 0.2},
                "variants": {"none": {"layer": "identity"}},
            },
            {},
        )
