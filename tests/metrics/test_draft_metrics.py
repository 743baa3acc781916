"""Analyses of drafts, worked out by hand."""

import numpy as np
import pytest

from specjax.metrics import drafts

DRAFTS = np.array([[5, 5, 5, 7], [1, 2, 2, 2], [3, 4, 3, 4], [9, 9, 9, 9]])
LENGTHS = np.array([4, 2, 4, 0])


def test_repetition_by_hand():
  # Neighbours: 5 5 yes, 5 5 yes, 5 7 no | 1 2 no (the rest is not drafted) | three times no | nothing drafted.
  assert drafts.repetitions(DRAFTS, LENGTHS) == (2, 7)
  np.testing.assert_array_equal(drafts.longest_runs(DRAFTS, LENGTHS), [3, 1, 1, 0])
  np.testing.assert_array_equal(drafts.longest_runs([[1, 1, 2, 2, 2], [2, 2, 2, 1, 1]], [5, 5]), [3, 3])


def test_a_run_that_begins_anew_counts_anew():
  np.testing.assert_array_equal(drafts.longest_runs([[1, 1, 2, 1, 1]], [5]), [2])


@pytest.mark.parametrize('entropies, expected', [
    ([0.5, 1.0, 1.5], 3), ([0.5, 1.0, 0.9, 2.0], 2), ([0.5, 0.4], 1), ([0.5], 1), ([0.5, 0.5, 0.6, 0.1], 3)])
def test_h_max_by_hand(entropies, expected):
  assert drafts.last_rising_head(entropies) == expected


def test_leading_hits_stop_at_the_first_miss():
  ranks = [[0, 0, 3, 0], [1, 0, 0, 0], [0, 2, 0, 0]]
  np.testing.assert_array_equal(drafts.leading_hits(ranks, 1), [2, 0, 1])
  np.testing.assert_array_equal(drafts.leading_hits(ranks, 2), [2, 4, 1])
  np.testing.assert_array_equal(drafts.leading_hits(ranks, 4), [4, 4, 4])


def test_agreement_with_the_text_by_hand():
  text = [7, 8, 9]
  tokens = [[7, 8, 1], [8, 9, 5], [9, 9, 9]]
  # At place 1 the draft runs past the end; at place 0 the third token is wrong; a shorter draft agrees for its length.
  np.testing.assert_array_equal(drafts.agreeing(tokens, [3, 3, 3], text), [2, 2, 1])
  np.testing.assert_array_equal(drafts.agreeing(tokens, [1, 0, 3], text), [1, 0, 1])
  np.testing.assert_array_equal(drafts.agreeing([[1, 8, 9]] * 3, [3] * 3, text), [0, 0, 0])


def test_rounds_by_hand():
  # At 0 two are accepted and one added, at 3 none, at 4 three, which goes past the end.
  assert drafts.round_starts([2, 9, 9, 0, 3, 9]) == [0, 3, 4]
  assert drafts.block_efficiency([[2, 9, 9, 0, 3, 9], [0, 0]]) == pytest.approx(8 / 5)
  assert drafts.block_efficiency([]) is None


def test_the_oracle_takes_the_right_token_of_k():
  ranks = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
  # k = 1: accepted 0, 1, 0, 2: rounds at 0, 1, 3. k = 2: all of both heads: rounds at 0 and 3.
  assert drafts.oracle_block_efficiency([ranks], 3) == pytest.approx([4 / 3, 2, 2])


def test_wins_by_hand():
  found = drafts.wins([0, 2, 1, 1, 3], [1, 1, 1, 0, 3])
  assert found[:3] == (2, 2, 1)
  assert found.by_length == [[0, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
  assert drafts.wins([], []).by_length == [[0]]


def test_a_draft_fails_by_repeating_where_its_first_wrong_token_is_the_one_before():
  tokens = [[1, 1, 2], [1, 2, 2], [3, 3, 3], [4, 4, 5], [6, 6, 6]]
  # Wrong at 1 (1 1: repeats), at 2 (2 2: repeats), at 0 (nothing before it), nowhere, and behind its one token.
  found = drafts.fails_by_repeating(tokens, [3, 3, 3, 3, 1], [1, 2, 0, 3, 1])
  np.testing.assert_array_equal(found, [True, True, False, False, False])


def test_work_by_hand():
  target = drafts.ModelWork(1000, 10, full_bytes=2, window_bytes=1, window=8, attention_flops=(3, 1))
  drafter = drafts.ModelWork(100, 1)
  passes = [drafts.Pass(target, 1, 5), drafts.Pass(drafter, 4, 1)]
  # Per round: 1000 + 4 x 100 bytes; 2 x 20 + 1 x 8; 5 (10 + 3 x 20 + 1 x 8) + 4.
  assert drafts.work_per_token(passes, block_efficiency=2.0, length=20) == pytest.approx((700, 24, 197))
  assert target.cache_bytes(4) == 12


def test_autoregressive_work_is_one_pass_of_one_token():
  model = drafts.ModelWork(1000, 10, full_bytes=2, attention_flops=(3, 0))
  assert drafts.work_per_token([drafts.Pass(model, 1, 1)], block_efficiency=1.0, length=7) == (1000, 14, 31)
