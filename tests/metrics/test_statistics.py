"""Intervals: hand values, pairing, and coverage on simulated data. Seeds are fixed."""

import numpy as np
import pytest

from specjax.metrics import statistics


def test_ratio_of_totals_is_not_the_mean_of_ratios():
  assert statistics.ratio_of_totals([10, 90], [1, 1]) == 50.0
  assert statistics.ratio_of_totals([10, 90], [10, 1]) == pytest.approx(100 / 11)
  assert statistics.ratio_of_totals([1.0], [0.0]) is None


@pytest.mark.parametrize('successes, trials, low, high', [
    (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)])
def test_wilson_interval_of_published_examples(successes, trials, low, high):
  interval = statistics.wilson_interval(successes, trials)
  assert interval.estimate == successes / trials
  assert interval.low == pytest.approx(low, abs=5e-5) and interval.high == pytest.approx(high, abs=5e-5)


def test_wilson_of_nothing_says_nothing():
  assert statistics.wilson_interval(0, 0) == (None, None, None)


def test_weights_draw_as_many_units_as_there_are():
  weights = statistics.resampling_weights(7, seed=3, resamples=500)
  assert weights.shape == (500, 7) and (weights.sum(axis=1) == 7).all()
  assert np.abs(weights.mean(axis=0) - 1).max() < 0.2


def test_speedup_of_a_run_against_itself_is_exactly_one():
  generator = np.random.default_rng(0)
  tokens, seconds, groups = generator.integers(5, 50, 40), generator.random(40), np.arange(40)
  interval = statistics.speedup_interval(tokens, seconds, groups, tokens, seconds, groups, seed=1)
  assert interval == pytest.approx((1.0, 1.0, 1.0))


def test_pairing_removes_the_spread_between_prompts():
  generator = np.random.default_rng(0)
  tokens, groups = np.full(60, 32), np.arange(60)
  slow = np.exp(generator.normal(0, 1.0, 60))
  fast = slow / 2 * np.exp(generator.normal(0, 0.01, 60))
  paired = statistics.speedup_interval(tokens, fast, groups, tokens, slow, groups, seed=1)
  shuffled = statistics.speedup_interval(
      tokens, fast, groups, tokens, slow, generator.permutation(groups), seed=1)
  assert 1.9 < paired.low < 2.0 < paired.high < 2.1
  assert shuffled.high - shuffled.low > 5 * (paired.high - paired.low)


def test_rows_of_one_clock_reading_are_drawn_together():
  # Two batches of 50 rows; each batch has one time. Rows drawn one by one would pretend to 100 readings.
  seconds = np.repeat([1.0, 2.0], 50)
  tokens = np.full(100, 10)
  rows = statistics.ratio_interval(tokens, seconds, groups=np.arange(100), seed=0)
  batches = statistics.ratio_interval(tokens, seconds, groups=np.repeat([0, 1], 50), seed=0)
  assert (batches.low, batches.high) == (5.0, 10.0)
  assert rows.high - rows.low < 2.0


def test_one_group_gives_no_interval():
  assert statistics.ratio_interval([4.0, 4.0], [1.0, 3.0], groups=[0, 0], seed=0) == (2.0, None, None)
  assert statistics.speedup_interval([1], [1.0], [0], [1], [2.0], [0], seed=0) == (2.0, None, None)


def test_only_groups_measured_on_both_sides_are_compared():
  interval = statistics.speedup_interval(
      [10, 10, 99], [1.0, 1.0, 99.0], [0, 1, 2], [10, 10], [2.0, 2.0], [0, 1], seed=0)
  assert interval.estimate == 2.0
  assert statistics.speedup_interval([1], [1.0], [0], [1], [1.0], [5], seed=0) == (None, None, None)


def test_difference_is_paired_by_question():
  generator = np.random.default_rng(0)
  easy = generator.random(80)
  interval = statistics.difference_interval(easy + 0.1, np.arange(80), easy, np.arange(80), seed=0)
  assert interval == pytest.approx((0.1, 0.1, 0.1))


def test_bootstrap_covers_the_true_ratio():
  # 400 simulated runs of 60 prompts; the expected miss rate of a 95 % percentile interval is about 6 %. A binomial count
  # with p = 0.06 leaves [0.90, 0.98] less than once in 10^4 seeds; this seed is fixed.
  generator = np.random.default_rng(7)
  covered = 0
  for _ in range(400):
    length = generator.integers(10, 60, 60)
    slow = length * 0.02 * np.exp(generator.normal(0, 0.2, 60))
    fast = length * 0.01 * np.exp(generator.normal(0, 0.2, 60))
    interval = statistics.speedup_interval(
        length, fast, np.arange(60), length, slow, np.arange(60), seed=0, resamples=1000)
    covered += interval.low <= 2.0 <= interval.high
  assert 0.90 <= covered / 400 <= 0.98


def test_percentile_interval_leaves_out_what_is_not_finite():
  assert statistics.percentile_interval(1.0, [np.nan, np.inf]) == (1.0, None, None)
