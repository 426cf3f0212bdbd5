"""The oracles themselves, against SciPy, closed forms, and float64 finite differences."""

import numpy as np
import oracles
import pytest
import scipy.stats


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(3.0, 2.0, (6, 4, 4))


MASK = np.random.default_rng(1).random((6, 4, 4)) < 0.7


@pytest.mark.parametrize("axes", [0, (0, 1), (-1, 1), (0, 1, 2)])
def test_moments_are_those_of_scipy(x, axes):
    mean, variance, count = oracles.moments(x, axes)
    axes = oracles.positive_axes(3, axes)
    moved = np.moveaxis(x, axes, range(len(axes))).reshape(int(count.flat[0]), -1)
    described = scipy.stats.describe(moved, axis=0, ddof=0)
    np.testing.assert_allclose(mean.ravel(), described.mean)
    np.testing.assert_allclose(variance.ravel(), described.variance)


def test_masked_moments_are_those_of_the_values_that_count(x):
    mean, variance, count = oracles.moments(np.where(MASK, x, np.nan), (0, 1), MASK)
    for channel in range(4):
        values = x[..., channel][MASK[..., channel]]
        np.testing.assert_allclose(mean[..., channel], values.mean())
        np.testing.assert_allclose(variance[..., channel], values.var())
        assert count[..., channel] == values.size


def test_moments_of_no_value_are_zero_and_one(x):
    mean, variance, count = oracles.moments(x, (0, 1), np.zeros(x.shape))
    assert not mean.any()
    assert not count.any()
    assert (variance == 1).all()


def test_layers_are_z_scores_over_their_axes(x):
    zscore = scipy.stats.zscore
    for y, expected in [
        (oracles.batch_norm(x, epsilon=0), zscore(x.reshape(24, 4)).reshape(x.shape)),
        (oracles.layer_norm(x, epsilon=0), zscore(x, -1)),
        (oracles.instance_norm(x, epsilon=0), zscore(x, 1)),
        (
            oracles.group_norm(x, num_groups=2, epsilon=0),
            zscore(x.reshape(6, 4, 2, 2).swapaxes(1, 2).reshape(6, 2, 8), -1)
            .reshape(6, 2, 4, 2)
            .swapaxes(1, 2)
            .reshape(x.shape),
        ),
        (oracles.rms_norm(x, epsilon=0), 2 * x / np.linalg.norm(x, axis=-1, keepdims=True)),
    ]:
        np.testing.assert_allclose(y, expected, atol=1e-12)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_gradient_formula_agrees_with_finite_differences(x, mask, centered):
    weights = np.random.default_rng(2).normal(size=x.shape)
    options = {"axes": (0, 1), "epsilon": 1e-3, "mask": mask, "centered": centered}
    np.testing.assert_allclose(
        oracles.standardize_gradient(x, weights, **options),
        oracles.numerical_gradient(
            lambda x: (weights * oracles.standardize(x, **options)).sum(), x
        ),
        atol=1e-8,
    )


def test_ghost_groups_by_hand():
    def groups(*arguments):
        return [group.tolist() for group in oracles.ghost_groups(*arguments)]

    assert groups(6, 2) == [[0, 1], [2, 3], [4, 5]]
    assert groups(6, 2, "strided") == [[0, 3], [1, 4], [2, 5]]
    assert groups(7, 2, "contiguous", "smaller_group") == [[0, 1], [2, 3], [4, 5], [6]]
    assert groups(7, 2, "contiguous", "merge_last") == [[0, 1], [2, 3], [4, 5, 6]]
    assert groups(7, 2, "strided", "smaller_group") == [[0, 3], [1, 4], [2, 5], [6]]
    assert groups(7, 2, "strided", "merge_last") == [[0, 2], [1, 3], [4, 5, 6]]
    assert groups(3, 4, "strided", "merge_last") == [[0, 1, 2]]
    with pytest.raises(ValueError, match="does not divide"):
        groups(7, 2)


def test_one_ghost_batch_is_batch_norm(x):
    np.testing.assert_array_equal(
        oracles.ghost_batch_norm(x, ghost_batch_size=6), oracles.batch_norm(x)
    )


def test_equal_ghosts_pool_to_the_total_variance(x):
    """Total variance: mean of the variances plus variance of the means."""
    ghosts = oracles.ghost_moments(x, oracles.ghost_groups(6, 2))
    means, variances, _ = (np.array(part) for part in zip(*ghosts, strict=True))
    running = oracles.RunningStatistics((4,), momentum=None)
    running.update_from_ghosts(x, oracles.ghost_groups(6, 2), running="pooled")
    np.testing.assert_allclose(running.mean, means.mean(0))
    np.testing.assert_allclose(running.variance, variances.mean(0) + means.var(0))


@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_running_statistics_in_closed_form(x, momentum):
    """After n updates with one and the same batch, the share of it is 1 - momentum**n."""
    plain = oracles.RunningStatistics((4,), momentum)
    debiased = oracles.RunningStatistics((4,), momentum, debias=True)
    cumulative = oracles.RunningStatistics((4,), None, unbiased=True)
    for _ in range(5):
        for running in (plain, debiased, cumulative):
            running.update_from_batch(x)
    rows = x.reshape(24, 4)
    np.testing.assert_allclose(plain.mean, (1 - momentum**5) * rows.mean(0))
    np.testing.assert_allclose(plain.variance, momentum**5 + (1 - momentum**5) * rows.var(0))
    np.testing.assert_allclose(debiased.variance, rows.var(0))
    np.testing.assert_allclose(cumulative.variance, rows.var(0, ddof=1))


def test_sequential_rule_weighs_later_ghosts_more(x):
    running = oracles.RunningStatistics((4,), 0.9)
    running.update_from_ghosts(x, oracles.ghost_groups(6, 2), running="sequential")
    means = [x[start : start + 2].mean((0, 1)) for start in (0, 2, 4)]
    np.testing.assert_allclose(running.mean, 0.1 * (0.81 * means[0] + 0.9 * means[1] + means[2]))


@pytest.mark.parametrize("rule", ["pooled", "average", "sequential"])
def test_empty_and_non_finite_batches_are_left_out(x, rule):
    running, groups = oracles.RunningStatistics((4,), 0.9), oracles.ghost_groups(6, 2)
    running.update_from_ghosts(x, groups, running=rule)
    before = running.mean.copy(), running.variance.copy()
    running.update_from_ghosts(np.full_like(x, np.nan), groups, running=rule)
    running.update_from_ghosts(x, groups, running=rule, mask=np.zeros(x.shape))
    np.testing.assert_array_equal((running.mean, running.variance), before)
