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


def test_a_feature_without_values_keeps_its_statistics(x):
    running, mask = oracles.RunningStatistics((4,), 0.9), np.ones(x.shape, bool)
    mask[..., 2] = False
    running.update_from_batch(x)
    before = running.mean.copy()
    running.update_from_batch(x + 1, mask=mask)
    assert running.mean[2] == before[2]
    others = np.arange(4) != 2
    np.testing.assert_allclose(running.mean[others], 1.9 * before[others] + 0.1)


# Layers without state.


def test_local_response_by_hand():
    """A window of 3 over 1 to 5; the paper's formula gives size 2 the same window."""
    x = np.arange(1.0, 6).reshape(1, 5)
    fields = {"k": 1, "alpha": 1, "beta": 1}
    expected = [[1 / 6, 2 / 15, 3 / 30, 4 / 51, 5 / 42]]
    np.testing.assert_allclose(oracles.local_response_norm(x, size=3, **fields), expected)
    np.testing.assert_allclose(oracles.local_response_norm(x, size=2, **fields), expected)
    np.testing.assert_allclose(
        oracles.local_response_norm(x, size=3, average=True, **fields)[0, :2], [3 / 8, 6 / 17]
    )
    fields["beta"] = 0.5
    np.testing.assert_allclose(
        oracles.local_response_norm(x, size=3, **fields)[0, 0], 1 / np.sqrt(6)
    )


def test_lengths_by_hand():
    np.testing.assert_allclose(oracles.scale_norm([[3, 4]], scale=10), [[6, 8]])
    np.testing.assert_allclose(oracles.scale_norm([[3, 4]], epsilon=10), [[0.3, 0.4]])
    partial_mean_square = oracles.rms_norm([[3, 4, 100]], fraction=0.5, epsilon=0)
    np.testing.assert_allclose(partial_mean_square, np.array([[3, 4, 100]]) / np.sqrt(12.5))
    np.testing.assert_allclose(
        oracles.rms_norm([[3, 4]], scale=[0, 1], zero_centred=True, epsilon=0),
        [[3 / np.sqrt(12.5), 8 / np.sqrt(12.5)]],
    )


def test_filter_response_by_hand():
    x = np.array([[[3.0], [-4.0]]])
    kwargs = {"base_epsilon": 3.0, "epsilon": -0.5}
    np.testing.assert_allclose(oracles.filter_response_norm(x, **kwargs), x / 4)
    np.testing.assert_allclose(
        oracles.filter_response_norm(x, **kwargs, threshold=np.array([-0.25]), scale=[2.0]),
        [[[1.5], [-0.25]]],
    )


def test_the_error_function_is_that_of_the_normal_distribution(x):
    normal = scipy.stats.norm.cdf(np.sqrt(2) * (0.3 * x - 1))
    np.testing.assert_allclose(oracles.dynamic_erf(x, alpha=0.3, shift=-1), 2 * normal - 1)
    logistic = scipy.stats.logistic.cdf(0.6 * x)
    np.testing.assert_allclose(oracles.dynamic_tanh(x, alpha=0.3), 2 * logistic - 1)


def test_swish_lies_between_half_the_input_and_the_rectifier(x):
    deviation = oracles.group_moments(x, 2, 1).variance ** 0.5
    halved = oracles.evonorm_s0(x, v=np.zeros(4), num_groups=2, epsilon=0)
    np.testing.assert_allclose(halved, x / 2 / deviation)
    rectified = oracles.evonorm_s0(x, v=np.full(4, 1e4), num_groups=2, epsilon=0)
    np.testing.assert_allclose(rectified, np.maximum(x, 0) / deviation, atol=1e-6)


def test_proxy_of_the_rectifier_has_the_moments_of_the_half_normal_distribution(x):
    """E relu(z) = 1 / sqrt(2 pi), E relu(z)^2 = 1 / 2, times deviation and squared deviation."""
    zeros, scale = np.zeros(4), np.array([0.5, 1, 2, 3])
    y = oracles.proxy_norm(x, proxy_scale=zeros + 1, proxy_bias=zeros, scale=scale, samples=5000)
    deviation = 2 * scale
    variance = deviation**2 * (0.5 - 0.5 / np.pi)
    rectified = np.maximum(oracles.group_norm(x, num_groups=1, scale=scale), 0)
    expected = (rectified - deviation / np.sqrt(2 * np.pi)) / np.sqrt(variance + 0.03)
    np.testing.assert_allclose(y, expected, atol=1e-2)


def test_proxy_of_a_shifted_rectifier_that_never_cuts_is_the_gaussian_itself(x):
    normalized = oracles.group_norm(x, num_groups=2, bias=100)
    y = oracles.proxy_norm(
        x,
        proxy_scale=np.zeros(4),
        proxy_bias=np.full(4, 3),
        bias=100,
        num_groups=2,
        samples=4096,
        proxy_epsilon=0,
    )
    np.testing.assert_allclose(y, normalized - 103, rtol=1e-3, atol=1e-3)


def test_activations_are_those_of_their_names(x):
    activations = oracles.activating.ACTIVATIONS
    np.testing.assert_allclose(activations["gelu"](x), x * scipy.stats.norm.cdf(x), atol=1e-3)
    np.testing.assert_allclose(activations["silu"](x), x * scipy.stats.logistic.cdf(x))
    np.testing.assert_allclose(activations["sigmoid"](x), scipy.stats.logistic.cdf(x))


# Replays.

RENORM = {"start_steps": 2, "r_steps": 6, "d_steps": 4, "r_max": 3.0, "d_max": 5.0}


def test_limits_of_renormalization_by_hand(x):
    replay = oracles.BatchRenormReplay(4, **RENORM)
    limits = []
    for _ in range(8):
        limits.append(replay.limits())
        replay.update(x)
    assert limits == [(1, 0), (1, 0), (1, 0), (1.5, 2.5), (2, 5), (2.5, 5), (3, 5), (3, 5)]


def test_renormalization_begins_as_batch_norm_and_ends_as_evaluation(x):
    """With r and d within their limits, what is left of the batch is nothing."""
    replay = oracles.BatchRenormReplay(4, momentum=0.9, **RENORM)
    np.testing.assert_allclose(replay.normalize(x), oracles.batch_norm(x))
    for seed in range(6):
        replay.update(np.random.default_rng(seed).normal(3, 2, x.shape))
    r, d = replay.corrections(x)
    assert (r < 3).all()
    assert (np.abs(d) < 5).all()
    np.testing.assert_allclose(replay.normalize(x), replay.evaluate(x))


def test_renormalization_clips(x):
    """A batch 100 deviations away and as many times as wide, and one that is narrow."""
    replay = oracles.BatchRenormReplay(4, **RENORM)
    for _ in range(6):
        replay.update(x)
    y = oracles.batch_norm(x, epsilon=0)
    far = replay.normalize(100 * x + 1000)
    np.testing.assert_allclose(far, 3 * y + 5, rtol=1e-4)
    narrow = replay.normalize(1e-2 * x - 1000)
    np.testing.assert_allclose(narrow, y / 3 - 5, rtol=1e-2)


def test_renormalization_averages_deviations_epsilon_within(x):
    replay = oracles.BatchRenormReplay(4, momentum=0.75, epsilon=3.0)
    replay.update(x)
    deviation = np.sqrt(x.var((0, 1)) + 3)
    np.testing.assert_allclose(np.sqrt(replay.state["var"] + 3), 0.75 + 0.25 * deviation)
    np.testing.assert_allclose(
        replay.evaluate(x), (x - replay.state["mean"]) / (0.75 + 0.25 * deviation)
    )


def test_switchable_norm_switches(x):
    replay = oracles.SwitchableNormReplay(4, momentum=0.0)
    replay.update(x + 1)
    for place, expected in enumerate(
        [
            oracles.instance_norm(x, epsilon=1e-5),
            oracles.layer_norm(x, reduction_axes=(1, 2), epsilon=1e-5),
            oracles.batch_norm(x),
        ]
    ):
        weight = np.where(np.arange(3) == place, 50.0, 0)
        weights = {"mean_weight": weight, "variance_weight": weight}
        np.testing.assert_allclose(replay.normalize(x, **weights), expected)
    evaluated = replay.evaluate(x, **weights)
    np.testing.assert_allclose(evaluated, oracles.batch_norm(x) - 1 / x.std((0, 1)), rtol=1e-4)


def test_batch_group_norm_between_its_extremes(x):
    single = oracles.BatchGroupNormReplay(4, num_groups=4)
    np.testing.assert_allclose(single.normalize(x), oracles.batch_norm(x))
    joint = oracles.BatchGroupNormReplay(4, num_groups=1, momentum=0.0)
    np.testing.assert_allclose(joint.normalize(x), (x - x.mean()) / np.sqrt(x.var() + 1e-5))
    joint.update(x)
    np.testing.assert_allclose(joint.state["var"], np.full(4, x.var()))


def test_evonorm_divides_by_the_larger_of_two_deviations():
    """Two examples of two positions: batch variance 6.5, instance variances 1 and 4."""
    x, replay = np.array([[[2.0], [4]], [[-3], [1]]]), oracles.EvoNormB0Replay(1, epsilon=0)
    assert x.var() == 6.5
    np.testing.assert_allclose(replay.normalize(x, v=np.zeros(1)), x / np.sqrt(6.5))
    divisors = np.array([[[3.0], [5]], [[np.sqrt(6.5)], [3]]])
    np.testing.assert_allclose(replay.normalize(x, v=np.ones(1)), x / divisors)
    divisors = np.array([[[3.0], [5]], [[1], [3]]])
    np.testing.assert_allclose(replay.evaluate(x, v=np.ones(1)), x / divisors)


def test_weighed_statistics_are_those_of_all_values_together(x):
    """An example, thrown together with three as large that have the running statistics."""
    replay = oracles.BatchNormReplay(4, momentum=0.0, example_weight=0.25)
    replay.update(x[:3])
    mean, variance = replay.mixture(x[3:])
    for example in range(3):
        together = np.concatenate([*x[:3], x[3 + example]])
        np.testing.assert_allclose(mean[example, 0], together.mean(0))
        np.testing.assert_allclose(variance[example, 0], together.var(0))
    replay = oracles.BatchNormReplay(4, example_weight=1.0)
    np.testing.assert_allclose(replay.evaluate(x), oracles.instance_norm(x, epsilon=1e-5))
