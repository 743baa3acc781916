"""The scores of a series that are no mean of its rows' `score`: corpus BLEU and chrF, ROUGE's other variants, pass@k.

A row's `score` is a fraction for one text. It pairs a question with itself under another method, so differences,
matched-quality tables and calibration read it. What is quoted in papers is the corpus score. It cannot be had by averaging
rows, so a row also keeps the counts it is made of (`score_statistics`); they are summed here, and the bootstrap draws
questions again and sums anew. Both stand in results.json: quality (mean of `score`) and `scores`.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from specjax.metrics import program_tests
from specjax.metrics import statistics
from specjax.metrics import text_overlap

# A metric's name up to its signature -> (statistics summed over a corpus [..., D]) -> score [...].
CORPUS: Mapping[str, Callable] = {
    'bleu': text_overlap.bleu_of_statistics,
    'chrf2': text_overlap.chrf_of_statistics,
    'perplexity': lambda sums: np.exp(-sums[..., 0] / np.maximum(sums[..., 1], 1.0)),
}
PASS_SIZES = (2, 5, 10, 50, 100)
_PASS = 'pass@1|'
_RESAMPLES = 2000  # as many as a 95 % interval needs; the counts of ten thousand would fill memory


def of_rows(rows: Sequence[Mapping], *, seed: int) -> dict[str, statistics.Interval]:
  """Name with signature -> `Interval`, over rows that measure each sample once.

  Args:
    rows: of one series.
    seed: of the bootstrap.
  """
  judged = [row for row in rows if row['score'] is not None]
  if not judged:
    return {}
  questions = [row['question_id'] for row in judged]
  found = {}
  for name in judged[0].get('score_statistics') or {}:
    found[name] = _corpus(name, [row['score_statistics'][name] for row in judged], questions, seed)
  for name in judged[0].get('scores') or {}:
    found[name] = statistics.mean_interval([row['scores'][name] for row in judged], groups=questions, seed=seed)
  if (judged[0]['score_name'] or '').startswith(_PASS):
    found |= _pass_at(judged, questions, seed)
  return found


def _corpus(name, counts, questions, seed):
  score = CORPUS[name.split('|')[0]]
  columns = np.asarray(counts, np.float64).T
  totals = np.stack([statistics.group_totals(column, questions) for column in columns], axis=1)
  estimate = float(score(totals.sum(axis=0)))
  if totals.shape[0] < 2:
    return statistics.Interval(estimate, None, None)
  weights = statistics.resampling_weights(totals.shape[0], seed=seed, resamples=_RESAMPLES)
  return statistics.percentile_interval(estimate, score(weights @ totals))


def _pass_at(rows, questions, seed):
  """pass@k for the k that every question has enough samples (seeds) for."""
  samples = {}
  for row, question in zip(rows, questions, strict=True):
    samples.setdefault(question, []).append(row['score'] == 1.0)
  fewest = min(map(len, samples.values()))
  signature = rows[0]['score_name'].split('|', 1)[1]
  return {
      f'pass@{k}|{signature}': statistics.mean_interval(
          [program_tests.pass_at_k(len(found), sum(found), k) for found in samples.values()], groups=list(samples), seed=seed)
      for k in PASS_SIZES if k <= fewest}
