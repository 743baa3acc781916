"""Warping: every law equals the one found by sorting, and broken rows show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.core import types
from specjax.ops import warping
from specjax.testing import oracles


def _sampling(warps):
  column = lambda name, kind: jnp.asarray([getattr(warp, name) for warp in warps], kind)
  return types.Sampling(
      temperature=column('temperature', jnp.float32), top_k=column('top_k', jnp.int32), top_p=column('top_p', jnp.float32),
      min_p=column('min_p', jnp.float32))


def test_law_dtype_is_at_least_float32_under_strict_promotion(x64):
  """`promote_types` refused bfloat16 and float64 under strict promotion, so no such decoder could be traced."""
  assert warping.probability_dtype(jnp.bfloat16) == jnp.float32
  assert warping.probability_dtype(jnp.float32) == jnp.float32
  assert warping.probability_dtype(jnp.float64) == jnp.float64


RANDOM_WARPS = [
    oracles.Warp(), oracles.Warp(temperature=0.0), oracles.Warp(temperature=0.3), oracles.Warp(temperature=1.9),
    oracles.Warp(top_k=1), oracles.Warp(top_k=3), oracles.Warp(top_p=0.05), oracles.Warp(top_p=0.7), oracles.Warp(min_p=0.2),
    oracles.Warp(min_p=1.0), oracles.Warp(top_k=4, top_p=0.8), oracles.Warp(top_p=0.9, min_p=0.1),
    oracles.Warp(temperature=0.6, top_k=6, top_p=0.95, min_p=0.02), oracles.Warp(temperature=1.7, top_k=9, top_p=0.6, min_p=0.3)]


def _laws(logits, warps):
  """The library's law of row i under warp i."""
  sampling = _sampling(warps)
  live = jnp.ones(len(warps), bool)
  return np.exp(np.asarray(jax.jit(warping.sampling_log_probs)(jnp.asarray(logits, jnp.float32), sampling, live=live)))


@pytest.mark.parametrize('vocab_size', [2, 7, 300])
def test_laws_equal_those_found_by_sorting(vocab_size):
  random = np.random.RandomState(vocab_size)
  logits = (2 * random.randn(len(RANDOM_WARPS), vocab_size)).astype(np.float32)
  got = _laws(logits, RANDOM_WARPS)
  for row, warp in enumerate(RANDOM_WARPS):
    expected = warp.law(logits[row])
    assert np.array_equal(got[row] > 0, expected > 0), warp
    np.testing.assert_allclose(got[row], expected, atol=2e-6)


@pytest.mark.parametrize('block', [1, 3])
def test_rows_keep_their_parameters_over_a_block(block):
  logits = np.random.RandomState(0).randn(len(RANDOM_WARPS), block, 9).astype(np.float32)
  got = _laws(logits, RANDOM_WARPS)
  for i in range(block):
    np.testing.assert_allclose(got[:, i], _laws(logits[:, i], RANDOM_WARPS), atol=1e-7)


def test_ties_are_kept_in_order_of_token_id():
  logits = np.log(np.array([0.1, 0.2, 0.2, 0.1, 0.2, 0.2]))
  warps = [oracles.Warp(top_k=2), oracles.Warp(top_k=3), oracles.Warp(top_k=5), oracles.Warp(top_p=0.35),
           oracles.Warp(top_p=0.55), oracles.Warp(top_p=0.85), oracles.Warp(min_p=0.6), oracles.Warp(top_k=3, top_p=0.5)]
  got = _laws(np.tile(logits, (len(warps), 1)), warps)
  kept = [np.flatnonzero(row).tolist() for row in got]
  assert kept == [[1, 2], [1, 2, 4], [0, 1, 2, 4, 5], [1, 2], [1, 2, 4], [0, 1, 2, 4, 5], [1, 2, 4, 5], [1, 2]]
  for row, warp in zip(got, warps):
    np.testing.assert_allclose(row, warp.law(logits), atol=1e-6)


def test_filters_see_the_survivors_of_the_one_before():
  """Hand computed: top-p after top-k keeps 2 of (0.5, 0.3, 0.2) * / 0.8; the other order would keep 3."""
  logits = np.log(np.array([0.4, 0.24, 0.16, 0.1, 0.1]))
  got = _laws(logits[None], [oracles.Warp(top_k=3, top_p=0.79)])[0]
  np.testing.assert_allclose(got, [0.625, 0.375, 0, 0, 0], atol=1e-6)
  cooled = _laws(logits[None], [oracles.Warp(temperature=0.5, top_p=0.79)])[0]
  assert np.flatnonzero(cooled).tolist() == [0, 1]  # after the temperature: 0.16 + 0.0576 of 0.2632


def test_temperature_zero_is_one_hot_at_the_first_largest_logit():
  logits = np.array([[0.0, 3.0, 3.0, 1.0]])
  assert np.array_equal(_laws(logits, [oracles.Warp(temperature=0.0)]), [[0, 1, 0, 0]])
  # Filters do not reach greedy rows.
  assert np.array_equal(_laws(logits, [oracles.Warp(temperature=0.0, top_k=3, min_p=0.5)]), [[0, 1, 0, 0]])


def test_no_ops_change_no_bit():
  logits = np.random.RandomState(5).randn(1, 50)
  plain = _laws(logits, [oracles.Warp(temperature=0.9)])
  for warp in (dict(top_k=50), dict(top_k=1000), dict(top_p=1.0), dict(min_p=0.0)):
    assert np.array_equal(plain, _laws(logits, [oracles.Warp(temperature=0.9, **warp)]))
  # Nor does a neighbour that truncates.
  both = _laws(np.tile(logits, (2, 1)), [oracles.Warp(temperature=0.9), oracles.Warp(top_k=2, top_p=0.5, min_p=0.1)])
  assert np.array_equal(plain[0], both[0])


def test_without_filters_the_smaller_program_gives_the_same_bits():
  logits = jnp.asarray(np.random.RandomState(1).randn(3, 4, 50), jnp.float32)
  temperature = jnp.array([0.0, 0.7, 1.0], jnp.float32)
  neutral = types.Sampling(
      temperature=temperature, top_k=jnp.zeros(3, jnp.int32), top_p=jnp.ones(3), min_p=jnp.zeros(3))
  none, live = types.Sampling(temperature=temperature), jnp.ones(3, bool)
  assert not warping.truncates(none, 50).any()
  law = jax.jit(warping.sampling_log_probs)
  np.testing.assert_array_equal(law(logits, none, live=live), law(logits, neutral, live=live))
  sizes = [law.lower(logits, sampling, live=live).as_text().count('\n') for sampling in (none, neutral)]
  assert 2 * sizes[0] < sizes[1]


def test_bias_and_mask_come_before_the_temperature():
  logits = np.array([[1.0, 2.0, 0.5]])
  warp = oracles.Warp(temperature=0.5, logit_bias=(0.5, -1.0, 0.0), allowed_tokens=(True, True, False))
  sampling = _sampling([warp]).replace(
      logit_bias=jnp.asarray([warp.logit_bias], jnp.float32), allowed_tokens=jnp.asarray([warp.allowed_tokens]))
  got = np.exp(warping.sampling_log_probs(jnp.asarray(logits, jnp.float32), sampling, live=jnp.ones(1, bool)))[0]
  np.testing.assert_allclose(got, warp.law(logits[0]), atol=1e-6)
  assert got[2] == 0


@pytest.mark.parametrize('row', [[np.nan, 0.0, 1.0], [np.inf, 0.0, 1.0], [-np.inf, -np.inf, -np.inf]])
@pytest.mark.parametrize('warp', [oracles.Warp(), oracles.Warp(temperature=0.0), oracles.Warp(top_k=2, top_p=0.5)])
def test_broken_rows_are_all_nan_and_neighbours_are_not(row, warp):
  fine = [0.3, 0.1, -0.2]
  got = _laws(np.array([row, fine]), [warp, warp])
  assert np.isnan(got[0]).all()
  np.testing.assert_allclose(got[1], warp.law(np.array(fine)), atol=1e-6)


def test_dead_rows_are_not_truncated():
  """The work is skipped when no live row needs it."""
  sampling = _sampling([oracles.Warp(top_k=1), oracles.Warp()])
  law = jnp.log(jnp.asarray([[0.6, 0.4], [0.6, 0.4]]))
  got = warping.truncate(law, sampling, live=jnp.asarray([False, True]))
  assert np.array_equal(got, law)


def test_bfloat16_logits_give_float32_laws(x64):
  logits = jnp.asarray([[0.5, 1.5]], jnp.bfloat16)
  law = warping.sampling_log_probs(logits, _sampling([oracles.Warp(temperature=0.7)]), live=jnp.ones(1, bool))
  assert law.dtype == jnp.float32
  wide = warping.sampling_log_probs(
      logits.astype(jnp.float64), _sampling([oracles.Warp(temperature=0.7)]), live=jnp.ones(1, bool))
  assert wide.dtype == jnp.float64
