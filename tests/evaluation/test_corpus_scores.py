"""Corpus scores out of rows: those of the libraries on the whole corpus, and intervals that draw questions again."""

import math

import numpy as np
import pytest

import fake_runner
from specjax.evaluation import corpus_scores
from specjax.evaluation import evaluate
from specjax.evaluation import report
from specjax.metrics import text_overlap

REFERENCES = ['the cat sat on the mat today', 'a man went up the hill', 'it is late now', 'we all live in a house']
PREDICTIONS = ['the cat sat on a mat today', 'a man went down the hill', 'it was late', 'we all live in a house']


def _rows(scored, name):
  return [{'question_id': f'q{i}', 'score': scores.value, 'score_name': name, 'scores': dict(scores.others),
           'score_statistics': {key: list(sums) for key, sums in scores.statistics.items()}} for i, scores in enumerate(scored)]


def test_corpus_bleu_and_chrf_of_rows_are_those_of_the_corpus():
  pytest.importorskip('sacrebleu')
  rows = _rows([text_overlap.translation_scores(r, p) for r, p in zip(REFERENCES, PREDICTIONS)], 'sentence_bleu')
  found = corpus_scores.of_rows(rows, seed=0)
  bleu, chrf = found[text_overlap.bleu_name()], found[text_overlap.chrf_name()]
  assert bleu.estimate == pytest.approx(text_overlap.corpus_bleu(REFERENCES, PREDICTIONS))
  assert chrf.estimate == pytest.approx(text_overlap.corpus_chrf(REFERENCES, PREDICTIONS))
  assert bleu.low < bleu.estimate < bleu.high and chrf.low < chrf.estimate < chrf.high
  # It is no mean: that is what the statistics are for.
  assert bleu.estimate != pytest.approx(100 * np.mean([row['score'] for row in rows]), abs=0.5)


def test_further_means():
  pytest.importorskip('rouge_score')
  rows = _rows([text_overlap.summary_scores(r, p, primary='rouge2') for r, p in zip(REFERENCES, PREDICTIONS)], 'rouge2')
  found = corpus_scores.of_rows(rows, seed=0)
  assert {name.split('|')[0] for name in found} == {'rouge1', 'rougeL', 'rougeLsum'}
  expected = np.mean([text_overlap.rouge(r, p)['rouge1'] for r, p in zip(REFERENCES, PREDICTIONS)])
  assert found[text_overlap.rouge_name('rouge1')].estimate == pytest.approx(expected)


def test_pass_at_k_over_seeds():
  rows = [{'question_id': q, 'score': float(right), 'score_name': 'pass@1|tests:mbpp', 'scores': {}, 'score_statistics': {}}
          for q, outcomes in (('a', [1, 0, 0]), ('b', [0, 0, 0])) for right in outcomes]
  found = corpus_scores.of_rows(rows, seed=0)
  assert list(found) == ['pass@2|tests:mbpp']
  assert found['pass@2|tests:mbpp'].estimate == pytest.approx((2 / 3 + 0) / 2)


def test_perplexity_of_a_corpus_weighs_tokens():
  rows = [{'question_id': q, 'score': 0.0, 'score_name': 'x', 'scores': {}, 'score_statistics': {'perplexity|unit:token': sums}}
          for q, sums in (('a', [-2 * math.log(2), 2]), ('b', [-6 * math.log(4), 6]))]
  found = corpus_scores.of_rows(rows, seed=0)['perplexity|unit:token']
  assert found.estimate == pytest.approx(math.exp((2 * math.log(2) + 6 * math.log(4)) / 8))


def test_rows_without_scores_and_rows_of_older_runs():
  assert corpus_scores.of_rows([], seed=0) == {}
  assert corpus_scores.of_rows([{'question_id': 'a', 'score': None}], seed=0) == {}
  assert corpus_scores.of_rows([{'question_id': 'a', 'score': 1.0, 'score_name': 'accuracy'}], seed=0) == {}


def test_a_run_reports_corpus_scores(tmp_path):
  pytest.importorskip('sacrebleu')
  import json
  folder = tmp_path / 'data' / 'wmt14_en_de'
  folder.mkdir(parents=True)
  lines = [{'en': f'house number {n}', 'de': f'das ist Haus Nummer {n}'} for n in range(6)]
  (folder / 'test.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  evaluate.evaluate(**fake_runner.settings(
      tasks=['wmt14_en_de'], methods=['autoregressive', 'speculative'], data_dir=str(tmp_path / 'data'),
      output_path=str(tmp_path / 'out')))
  written = report.write(tmp_path / 'out')
  results = json.loads((tmp_path / 'out' / 'results.json').read_text())['results']
  for series, stored in zip(written.series, results, strict=True):
    assert text_overlap.bleu_name() in series.scores and stored['scores'][text_overlap.chrf_name()]['estimate'] is not None
  for name in ('report.html', 'report.md'):
    text = (tmp_path / 'out' / name).read_text()
    assert 'Corpus scores' in text and 'tok:13a' in text
