"""Perplexity and bits per byte, by hand."""

import math

import pytest

from specjax.metrics import perplexity


@pytest.mark.parametrize('log_prob, count, value', [
    (3 * math.log(0.5), 3, 2.0), (math.log(0.1) + math.log(0.4), 2, 5.0), (0.0, 4, 1.0)])
def test_perplexity(log_prob, count, value):
  assert perplexity.perplexity(log_prob, count) == pytest.approx(value)


def test_what_no_float_holds_is_infinite_and_nothing_is_nan():
  assert perplexity.perplexity(-math.inf, 2) == math.inf
  assert perplexity.perplexity(-1e6, 2) == math.inf
  assert math.isnan(perplexity.perplexity(0.0, 0)) and math.isnan(perplexity.bits_per_byte(0.0, 0))


def test_bits_per_byte():
  assert perplexity.bits_per_byte(8 * math.log(0.5), 4) == pytest.approx(2.0)
