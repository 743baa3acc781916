"""Ratios of counters against values worked out by hand."""

import numpy as np
import pytest

from specjax.core import types
from specjax.metrics import efficiency

# Four rounds with K = 3: accepted 3, 1, 0 and 2; the last round was cut by EOS after two drafts, so nothing was rejected.
#   round      1 2 3 4    at position 1: evaluated 4, accepted 3
#   accepted   3 1 0 2    at position 2: evaluated 3, accepted 2
#   evaluated  3 2 1 2    at position 3: evaluated 1, accepted 1
#   emitted    4 2 1 2
COUNTS = efficiency.Counts(
    steps=4, emitted=9, target_calls=4, drafter_calls=12, proposed=12, evaluated=8, accepted=6,
    drafted_by_position=(4, 4, 4), evaluated_by_position=(4, 3, 1), accepted_by_position=(3, 2, 1))
NOTHING = efficiency.sum_counts([])


def test_ratios_of_a_hand_counted_run():
  assert efficiency.mean_acceptance_length(COUNTS) == 2.5
  assert efficiency.accepted_per_step(COUNTS) == 1.5
  assert efficiency.block_efficiency(COUNTS) == 2.25
  assert efficiency.acceptance_rate(COUNTS) == 0.75
  assert efficiency.draft_acceptance_rate(COUNTS) == 0.5
  assert efficiency.rejection_rate(COUNTS) == 0.25
  assert efficiency.acceptance_per_pos_uncond(COUNTS) == [0.75, 0.5, 0.25]
  assert efficiency.acceptance_per_pos_cond(COUNTS) == [0.75, 2 / 3, 1.0]


def test_histogram_counts_rounds_by_accepted_drafts_without_the_bonus():
  assert efficiency.acceptance_histogram(COUNTS) == {0: 1, 1: 1, 2: 1, 3: 1}
  assert efficiency.accept_lengths(COUNTS) == [1, 2, 3, 4]
  assert np.mean(efficiency.accept_lengths(COUNTS)) == efficiency.mean_acceptance_length(COUNTS)


def test_acceptance_length_is_one_plus_the_sum_of_unconditional_rates():
  assert 1 + sum(efficiency.acceptance_per_pos_uncond(COUNTS)) == efficiency.mean_acceptance_length(COUNTS)


def test_autoregressive_decoding_has_acceptance_length_one_and_no_rates():
  ar = efficiency.Counts(steps=7, emitted=7, target_calls=7, drafter_calls=0, proposed=0, evaluated=0, accepted=0,
                         drafted_by_position=(), evaluated_by_position=(), accepted_by_position=())
  summary = efficiency.summary(ar)
  assert summary['mean_acceptance_length'] == 1.0 and summary['block_efficiency'] == 1.0
  assert summary['acceptance_rate'] is None and summary['draft_acceptance_rate'] is None
  assert summary['acceptance_histogram'] == {'0': 7}
  assert efficiency.accept_lengths(ar) == [1] * 7


def test_nothing_counted_gives_none_not_nan():
  summary = efficiency.summary(NOTHING)
  assert summary['mean_acceptance_length'] is None and summary['block_efficiency'] is None
  assert summary['acceptance_histogram'] == {}


def test_sum_pads_to_the_longest_draft():
  short = efficiency.Counts(steps=1, emitted=2, target_calls=1, drafter_calls=1, proposed=1, evaluated=1, accepted=1,
                            drafted_by_position=(1,), evaluated_by_position=(1,), accepted_by_position=(1,))
  both = efficiency.sum_counts([COUNTS, short])
  assert both.drafted_by_position == (5, 4, 4) and both.accepted_by_position == (4, 2, 1)
  assert both.steps == 5 and both.accepted == 7


def test_rows_add_up_to_the_total_beyond_int32():
  names = efficiency.SCALARS
  stats = types.DecodeStats(
      **{name: np.array([2**31 - 1, 2**31 - 1], np.int64) for name in (*names, 'target_passes')},
      **{name: np.array([[3, 1], [2, 0]], np.int64) for name in efficiency.BY_POSITION})
  rows = [efficiency.row_counts(stats, row) for row in range(2)]
  assert efficiency.sum_counts(rows) == efficiency.total_counts(stats)
  assert efficiency.total_counts(stats).steps == 2**32 - 2
  assert rows[0].drafted_by_position == (3, 1)


# Best K and speed-up S of Leviathan et al. 2023 for independent acceptances; where two K tie, the shorter.
@pytest.mark.parametrize('cost, expected', [
    (0.01, [(5, 1.88), (7, 2.30), (9, 2.97), (14, 4.23), (24, 7.49)]),
    (0.02, [(4, 1.79), (6, 2.17), (8, 2.76), (11, 3.82), (19, 6.37)]),
    (0.05, [(3, 1.63), (4, 1.92), (6, 2.35), (8, 3.09), (13, 4.67)]),
    (0.10, [(2, 1.46), (3, 1.67), (4, 1.98), (6, 2.47), (10, 3.43)]),
    (0.20, [(1, 1.25), (2, 1.40), (3, 1.58), (4, 1.87), (7, 2.37)]),
])
def test_best_draft_length_and_speedup(cost, expected):
  for rate, (best, speedup) in zip((0.5, 0.6, 0.7, 0.8, 0.9), expected, strict=True):
    k, s = efficiency.best_num_draft_tokens(rate, cost)
    assert k == best
    assert s == pytest.approx(speedup, abs=0.005)


def test_tie_between_one_and_two_draft_tokens():
  assert efficiency.predicted_speedup(0.5, 1, 0.2) == pytest.approx(efficiency.predicted_speedup(0.5, 2, 0.2), abs=1e-12)


def test_predicted_speedup_agrees_with_the_closed_form():
  a, k, c = 0.8, 5, 0.07
  assert efficiency.predicted_speedup(a, k, c) == pytest.approx((1 - a**(k + 1)) / ((1 - a) * (1 + k * c)))
  assert efficiency.predicted_acceptance_length(1.0, 6) == 7.0
  assert efficiency.predicted_acceptance_length(0.0, 6) == 1.0


def test_drafting_cannot_help_when_the_drafter_costs_more_than_it_gains():
  assert efficiency.best_num_draft_tokens(0.3, 0.4) == (0, 1.0)
