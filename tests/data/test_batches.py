"""Batches: no example twice in training, each exactly once in evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.data.batches import padded_batches, shuffled_batches, standardize

INDICES = np.random.default_rng(0).permutation(1000)[:37].astype(np.int32)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_shuffled_batches_hold_no_index_twice_and_leave_out_the_remainder(n, batch_size, seed):
    indices = jnp.asarray(INDICES[: min(n, 37)])
    if batch_size > len(indices):
        with pytest.raises(ValueError, match=f"batch_size={batch_size} is more than the"):
            shuffled_batches(jax.random.key(seed), indices, batch_size)
        return
    batches = shuffled_batches(jax.random.key(seed), indices, batch_size)
    assert batches.shape == (len(indices) // batch_size, batch_size)
    assert batches.dtype == jnp.int32
    drawn = np.asarray(batches).ravel()
    assert len(set(drawn.tolist())) == len(drawn)
    assert set(drawn.tolist()) <= set(INDICES.tolist())


def test_shuffled_batches_depend_on_the_key_alone():
    indices = jnp.asarray(INDICES)
    first, again, other = (shuffled_batches(jax.random.key(seed), indices, 8) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9
    np.testing.assert_array_equal(first, shuffled_batches(jax.random.PRNGKey(1), indices, 8))


def test_every_example_has_its_turn_in_every_place():
    """Over many epochs each index is left out, and leads, as often as any other."""
    keys = jax.random.split(jax.random.key(3), 4000)
    batches = jax.vmap(lambda key: shuffled_batches(key, jnp.arange(5), 2))(keys)
    assert batches.shape == (4000, 2, 2)
    expected = 4000 * 4 / 5  # standard error of either count is about 25
    np.testing.assert_allclose(np.bincount(batches.ravel(), minlength=5), expected, atol=130)
    np.testing.assert_allclose(np.bincount(batches[:, 0, 0], minlength=5), 800, atol=130)


def test_shuffled_batches_inside_jit_scan_and_vmap():
    indices = jnp.asarray(INDICES)
    keys = jax.random.split(jax.random.key(0), 3)
    expected = jnp.stack([shuffled_batches(key, indices, 8) for key in keys])

    @jax.jit
    def epochs(keys, indices):
        return jax.lax.scan(lambda _, key: (None, shuffled_batches(key, indices, 8)), None, keys)[1]

    np.testing.assert_array_equal(epochs(keys, indices), expected)
    mapped = jax.jit(jax.vmap(lambda key: shuffled_batches(key, indices, 8)))
    np.testing.assert_array_equal(mapped(keys), expected)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 37), batch_size=st.integers(1, 50))
def test_padded_batches_count_each_example_once_whatever_the_batch_size(n, batch_size):
    batches, mask = padded_batches(INDICES[:n], batch_size)
    assert batches.shape == mask.shape == (-(-n // batch_size), batch_size)
    assert batches.dtype == np.int32
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(batches[mask], INDICES[:n])
    assert not batches[~mask].any()  # index 0, which every set has


@pytest.mark.parametrize("given_dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_standardize_against_float64(given_dtype, dtype):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 5, 4, 4, 3)).astype(given_dtype)
    mean, deviation = np.float32([120, 3, 250]), np.float32([60, 1, 0.5])
    found = standardize(jnp.asarray(images), jnp.asarray(mean), jnp.asarray(deviation), dtype)
    assert found.dtype == dtype
    expected = (images.astype(np.float64) - mean) / deviation
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=tolerance)


def test_standardize_subtracts_before_it_rounds():
    # Regression: 255 - 254.9 in bfloat16 is 0 or 1.
    images = jnp.full((1, 1, 1, 1), 255, jnp.uint8)
    found = standardize(images, jnp.float32([254.9]), jnp.float32([0.1]), jnp.bfloat16)
    np.testing.assert_allclose(found.astype(jnp.float32).item(), 1.0, rtol=1e-2)


def test_evaluating_in_padded_batches_is_evaluating_all_at_once():
    values = jnp.arange(1000.0) ** 2
    for batch_size in (1, 7, 37, 64):
        batches, mask = padded_batches(INDICES, batch_size)
        total = jnp.where(mask, values[batches], 0).sum()
        assert total == (INDICES.astype(np.float64) ** 2).sum()
        assert mask.sum() == len(INDICES)


def test_batches_by_group_are_of_one_group_each_and_drop_another_remainder_each_epoch():
    indices = jnp.asarray(INDICES[:36])
    groups = jnp.asarray(np.arange(36) % 3)
    of = dict(zip(INDICES[:36].tolist(), groups.tolist(), strict=True))
    whole = np.asarray(shuffled_batches(jax.random.key(0), indices, 4, groups))
    assert sorted(whole.ravel().tolist()) == sorted(INDICES[:36].tolist())
    assert [len({of[it] for it in batch}) for batch in whole.tolist()] == [1] * 9
    # The batches come in no order of their groups, and examples in none within a group.
    orders = {
        tuple(of[batch[0]] for batch in shuffled_batches(key, indices, 4, groups).tolist())
        for key in jax.random.split(jax.random.key(1), 8)
    }
    assert len(orders) > 4
    left_out, firsts = set(), set()
    for key in jax.random.split(jax.random.key(2), 40):
        batches = np.asarray(shuffled_batches(key, indices, 7, groups))
        assert batches.shape == (5, 7)
        left_out |= set(INDICES[:36].tolist()) - set(batches.ravel().tolist())
        firsts.add(batches[0, 0].item())
    assert len(left_out) > 20
    assert len(firsts) > 10
