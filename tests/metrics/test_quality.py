"""Text metrics against hand-computed values."""

import sys

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


def test_bleu_and_chrf_are_100_for_the_reference():
  pytest.importorskip('sacrebleu')
  texts = ['the cat sat on the mat', 'der Hund lief über die Straße']
  assert quality.corpus_bleu(texts, texts) == pytest.approx(100.0)
  assert quality.corpus_chrf(texts, texts) == pytest.approx(100.0)
  assert quality.corpus_bleu(texts, ['x', 'y']) < 5.0


def test_rouge_by_hand():
  pytest.importorskip('rouge_score')
  scores = quality.rouge(['the cat sat'], ['the dog sat'])
  assert scores['rouge1'] == pytest.approx(2 / 3)
  assert scores['rouge2'] == 0.0
  assert scores['rougeLsum'] == pytest.approx(2 / 3)
  assert quality.rouge([], []) == {'rouge1': 0.0, 'rouge2': 0.0, 'rougeLsum': 0.0}


def test_missing_library_is_an_import_error(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sacrebleu', None)
  with pytest.raises(ImportError):
    quality.corpus_bleu(['a'], ['a'])
