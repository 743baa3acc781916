"""Text metrics against hand-computed values."""

import pytest

from specjax.metrics import quality


@pytest.mark.parametrize('reference, prediction, value', [
    ('a b', 'a b', 1.0), ('a b', ' a \n b ', 1.0), ('a b', 'ab', 0.0), ('a b', 'A b', 0.0), ('', ' ', 1.0),
    ('fünf', 'fu\u0308nf', 0.0)])
def test_exact_match_ignores_the_amount_of_white_space(reference, prediction, value):
  assert quality.exact_match(reference, prediction) == value


@pytest.mark.parametrize('reference, prediction, value', [
    ('a b c', 'a b c', 1.0), ('a b c', 'c b a', 1.0), ('a b', 'a c', 0.5), ('a a b', 'a b', 0.8), ('a', 'a a a', 0.5),
    ('a', 'b', 0.0), ('', '', 1.0), ('a', '', 0.0), ('', 'a', 0.0)])
def test_token_f1_counts_words_as_often_as_they_occur(reference, prediction, value):
  assert quality.token_f1(reference, prediction) == pytest.approx(value, abs=1e-12)
