"""Perplexity of references, on numbers that can be worked out by hand."""

import math

import pytest

from specjax.evaluation import likelihoods
from specjax.evaluation import runner


def _of(*pairs):
  return [runner.Likelihood(log_prob, tokens, 4 * tokens, is_best) for log_prob, tokens, is_best in pairs]


def test_perplexity_is_of_the_corpus_and_not_a_mean_over_texts():
  found = _of((-math.log(2) * 3, 3, True), (-math.log(8) * 1, 1, False), (-math.log(2) * 4, 4, True))
  shown = likelihoods.summary(found, ['a', 'b', 'c'], is_judged=True)
  # 3 + 3 + 4 bits in 8 tokens and 32 bytes.
  assert shown['perplexity|unit:token']['estimate'] == pytest.approx(2 ** (10 / 8))
  assert shown['bits_per_byte'] == pytest.approx(10 / 32)
  assert shown['perplexity|unit:token']['low'] < 2 ** (10 / 8) < shown['perplexity|unit:token']['high']
  assert shown[likelihoods.ACCURACY]['estimate'] == pytest.approx(2 / 3)
  assert (shown['texts'], shown['tokens'], shown['bytes']) == (3, 8, 32)
  assert 'perplexity 2.378 [' in likelihoods.line('lambada', shown) and '66.7 %' in likelihoods.line('lambada', shown)


def test_running_text_has_no_accuracy_and_few_texts_no_interval():
  shown = likelihoods.summary(_of((-1.0, 1, False)), ['a'], is_judged=False)
  assert likelihoods.ACCURACY not in shown and shown['perplexity|unit:token']['low'] is None
  assert '[' not in likelihoods.line('text', shown)
