"""BLEU, chrF and ROUGE: hand-scored items, and agreement with the libraries whose names they carry."""

import math
import sys

import numpy as np
import pytest

from specjax.metrics import text_overlap

sacrebleu = pytest.importorskip('sacrebleu')
pytest.importorskip('rouge_score')

REFERENCES = ['the cat sat on the mat', 'der Hund lief über die Straße', 'no', 'it is a long way to the top of the hill',
              'a b c d e']
PREDICTIONS = ['the cat sat on a mat', 'der Hund ging über die Straße', 'no', '', 'x y z']


@pytest.mark.parametrize('reference, prediction, value', [
    ('the cat sat on the mat', 'the cat sat on the mat', 1.0),
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples.
    ('the cat sat on the mat', 'the cat sat on a mat', (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3)**0.25),
    # 4 of 4, 3 of 3, 2 of 2, 1 of 1, and a brevity penalty for 4 words instead of 5.
    ('a b c d e', 'a b c d', math.exp(1 - 5 / 4)),
    ('no', 'no', 1.0), ('a b c d', '', 0.0), ('a b c d', 'x y z w', 0.0)])
def test_sentence_bleu_by_hand(reference, prediction, value):
  assert text_overlap.translation_scores(reference, prediction).value == pytest.approx(value, abs=1e-9)


def test_corpus_scores_of_summed_statistics_are_those_of_sacrebleu():
  bleu = np.sum([text_overlap.bleu_statistics(r, p) for r, p in zip(REFERENCES, PREDICTIONS)], axis=0)
  chrf = np.sum([text_overlap.chrf_statistics(r, p) for r, p in zip(REFERENCES, PREDICTIONS)], axis=0)
  assert float(text_overlap.bleu_of_statistics(bleu)) == pytest.approx(
      text_overlap.corpus_bleu(REFERENCES, PREDICTIONS), abs=1e-9)
  assert float(text_overlap.chrf_of_statistics(chrf)) == pytest.approx(
      text_overlap.corpus_chrf(REFERENCES, PREDICTIONS), abs=1e-9)


@pytest.mark.parametrize('seed', range(40))
def test_single_texts_agree_with_sacrebleu(seed):
  draws = np.random.default_rng(seed)
  texts = [' '.join(draws.choice(list('abcde'), draws.integers(0, 9))) for _ in range(2)]
  counts = text_overlap.bleu_statistics(*texts)
  assert float(text_overlap.bleu_of_statistics(counts)) == pytest.approx(
      sacrebleu.corpus_bleu([texts[1]], [[texts[0]]]).score, abs=1e-9)
  assert float(text_overlap.bleu_of_statistics(counts, effective_order=True)) == pytest.approx(
      sacrebleu.sentence_bleu(texts[1], [texts[0]]).score, abs=1e-9)
  assert float(text_overlap.chrf_of_statistics(text_overlap.chrf_statistics(*texts))) == pytest.approx(
      sacrebleu.sentence_chrf(texts[1], [texts[0]]).score, abs=1e-9)


@pytest.mark.parametrize('reference, prediction, unigrams', [
    ('the cat sat', 'the cat sat', (3, 3, 3)), ('the cat sat', 'the dog sat', (2, 3, 3)), ('the cat', '', (0, 0, 2))])
def test_bleu_counts_by_hand(reference, prediction, unigrams):
  counts = text_overlap.bleu_statistics(reference, prediction)
  assert (counts[2], counts[0], counts[1]) == unigrams


def test_chrf_by_hand():
  # Bigrams of 'ab' and 'ac': none shared; letters: one of two. Only two orders exist, precision = recall = (1/2 + 0) / 2.
  assert float(text_overlap.chrf_of_statistics(text_overlap.chrf_statistics('ab', 'ac'))) == pytest.approx(25.0)
  assert float(text_overlap.chrf_of_statistics(text_overlap.chrf_statistics('ab', 'ab'))) == pytest.approx(100.0)
  # 'a' of 'ab': one order, precision 1, recall 1/2, beta 2: 5 * 1/2 / (4 + 1/2).
  assert float(text_overlap.chrf_of_statistics(text_overlap.chrf_statistics('ab', 'a'))) == pytest.approx(100 * 2.5 / 4.5)


@pytest.mark.parametrize('reference, prediction, one, two, longest', [
    ('the cat sat', 'the dog sat', 2 / 3, 0.0, 2 / 3), ('the cat sat', 'the cat', 4 / 5, 2 / 3, 4 / 5),
    ('the cats sat down', 'the cat sits down', 3 / 4, 1 / 3, 3 / 4)])  # stemming makes one word of cat and cats
def test_rouge_by_hand(reference, prediction, one, two, longest):
  found = text_overlap.rouge(reference, prediction)
  assert [found['rouge1'], found['rouge2'], found['rougeL']] == pytest.approx([one, two, longest])


def test_only_rouge_lsum_reads_line_breaks():
  found = text_overlap.rouge('a b c\nd e f', 'd e f\na b c')
  assert found['rougeLsum'] == 1.0 and found['rougeL'] == pytest.approx(0.5)


def test_names_carry_the_signature_of_sacrebleu():
  from sacrebleu.metrics import BLEU, CHRF
  for name, metric in ((text_overlap.bleu_name(), BLEU()), (text_overlap.chrf_name(), CHRF())):
    metric.corpus_score(['a'], [['a']])
    assert name.split('|', 1)[1] == metric.get_signature().format()
  assert text_overlap.rouge_name('rouge2').startswith('rouge2|') and 'version:' in text_overlap.rouge_name('rouge2')


def test_a_bootstrap_of_many_corpora_is_one_call():
  counts = np.stack([text_overlap.bleu_statistics(r, p) for r, p in zip(REFERENCES, PREDICTIONS)])
  weights = np.random.default_rng(0).multinomial(5, [0.2] * 5, size=7)
  found = text_overlap.bleu_of_statistics(weights @ counts)
  assert found.shape == (7,)
  drawn = [i for i, times in enumerate(weights[3]) for _ in range(times)]
  assert found[3] == pytest.approx(text_overlap.corpus_bleu([REFERENCES[i] for i in drawn], [PREDICTIONS[i] for i in drawn]))


def test_missing_library_is_an_import_error(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sacrebleu', None)
  with pytest.raises(ImportError):
    text_overlap.corpus_bleu(['a'], ['a'])
