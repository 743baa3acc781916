"""Translations and summaries against a reference: BLEU and chrF by sacrebleu, ROUGE by rouge-score.

BLEU and chrF of a corpus are functions of counts that are summed over its sentences. The counts are sacrebleu's own; the
functions are written here over arrays, because a bootstrap evaluates them ten thousand times.
"""

import functools
from collections.abc import Sequence

import numpy as np

from specjax.metrics import scores

BLEU_ORDER = 4
CHRF_ORDER, CHRF_BETA = 6, 2
ROUGE_NAMES = ('rouge1', 'rouge2', 'rougeL', 'rougeLsum')


@functools.lru_cache
def bleu_name() -> str:
  """The name of corpus BLEU with sacrebleu's signature."""
  return scores.versioned('bleu', 'sacrebleu', nrefs='1', case='mixed', eff='no', tok='13a', smooth='exp')


@functools.lru_cache
def sentence_bleu_name() -> str:
  """The name of the fraction that one sentence scores: BLEU of its effective order, over 100."""
  return scores.versioned('sentence_bleu', 'sacrebleu', nrefs='1', case='mixed', eff='yes', tok='13a', smooth='exp')


@functools.lru_cache
def chrf_name() -> str:
  """The name of corpus chrF2 with sacrebleu's signature."""
  return scores.versioned('chrf2', 'sacrebleu', nrefs='1', case='mixed', eff='yes', nc='6', nw='0', space='no')


@functools.lru_cache
def rouge_name(which: str) -> str:
  """The name of one ROUGE F-measure with what computed it; `which` is one of `ROUGE_NAMES`."""
  return scores.versioned(which, 'rouge-score', score='fmeasure', stemmer='yes')


@functools.lru_cache
def _bleu():
  from sacrebleu.metrics import bleu  # ten times slower to import than the rest of this package
  return bleu.BLEU()


@functools.lru_cache
def _chrf():
  from sacrebleu.metrics import chrf
  return chrf.CHRF()


@functools.lru_cache
def _rouge():
  from rouge_score import rouge_scorer
  return rouge_scorer.RougeScorer(ROUGE_NAMES, use_stemmer=True)


def bleu_statistics(reference: str, prediction: str) -> tuple[float, ...]:
  """Length of the prediction and of the reference, then matching and all n-grams of orders 1 to 4, by sacrebleu."""
  return tuple(map(float, _bleu()._extract_corpus_statistics([prediction], [[reference]])[0]))


def chrf_statistics(reference: str, prediction: str) -> tuple[float, ...]:
  """Character n-grams of the prediction, of the reference and in both, for each order 1 to 6, by sacrebleu."""
  return tuple(map(float, _chrf()._extract_corpus_statistics([prediction], [[reference]])[0]))


def bleu_of_statistics(statistics, *, effective_order: bool = False):
  """float64[...] BLEU, 0 to 100, with exponential smoothing.

  Args:
    statistics: float[..., 10], `bleu_statistics` summed over a corpus.
    effective_order: leave out the orders that the prediction is too short for, as for a single sentence.

  Source: Papineni et al. 2002; smoothing: Chen and Cherry 2014, method 3.
  """
  found = np.asarray(statistics, np.float64)
  length, reference = found[..., 0], found[..., 1]
  correct, total = found[..., 2:2 + BLEU_ORDER], found[..., 2 + BLEU_ORDER:]
  # The m-th order without a match counts as 1 / 2^m matches.
  halvings = np.cumsum((correct == 0) & (total > 0), axis=-1)
  matches = np.where(correct > 0, correct, 0.5**halvings)
  with np.errstate(divide='ignore', invalid='ignore'):
    logs = np.where(total > 0, np.log(matches / np.where(total > 0, total, 1.0)), 0.0 if effective_order else -np.inf)
    orders = np.maximum((total > 0).sum(axis=-1), 1) if effective_order else BLEU_ORDER
    penalty = np.where(length < reference, 1.0 - reference / np.where(length > 0, length, 1.0), 0.0)
    value = 100.0 * np.exp(penalty + logs.sum(axis=-1) / orders)
  return np.where((correct.sum(axis=-1) > 0) & (length > 0), value, 0.0)


def chrf_of_statistics(statistics):
  """float64[...] chrF2, 0 to 100, over the orders that both sides are long enough for.

  Args:
    statistics: float[..., 18], `chrf_statistics` summed over a corpus.

  Source: Popovic 2015.
  """
  found = np.asarray(statistics, np.float64)
  predicted, reference, shared = found[..., 0::3], found[..., 1::3], found[..., 2::3]
  used = (predicted > 0) & (reference > 0)
  orders = np.maximum(used.sum(axis=-1), 1)
  precision = np.where(used, shared / np.maximum(predicted, 1.0), 0.0).sum(axis=-1) / orders
  recall = np.where(used, shared / np.maximum(reference, 1.0), 0.0).sum(axis=-1) / orders
  weighted = CHRF_BETA**2 * precision + recall
  return np.where(weighted > 0, 100.0 * (1 + CHRF_BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1.0), 0.0)


def translation_scores(reference: str, prediction: str) -> scores.Scores:
  """`Scores` of a translation: sentence BLEU as a fraction, and the statistics of corpus BLEU and chrF."""
  counts = bleu_statistics(reference, prediction)
  # An identical text of fewer than four words has no 4-gram; the effective order makes it 1 all the same.
  value = float(bleu_of_statistics(counts, effective_order=True)) / 100.0
  return scores.Scores(min(1.0, value), statistics={
      bleu_name(): counts, chrf_name(): chrf_statistics(reference, prediction)})


def rouge(reference: str, prediction: str) -> dict[str, float]:
  """ROUGE-1, -2, -L and -Lsum F-measures with stemming; line breaks end sentences for Lsum."""
  found = _rouge().score(reference, prediction)
  return {name: float(found[name].fmeasure) for name in ROUGE_NAMES}


def summary_scores(reference: str, prediction: str, *, primary: str) -> scores.Scores:
  """`Scores` of a summary; `primary` is the one of `ROUGE_NAMES` that quality is compared by."""
  found = rouge(reference, prediction)
  return scores.Scores(found[primary], others={rouge_name(name): value for name, value in found.items() if name != primary})


def corpus_bleu(references: Sequence[str], predictions: Sequence[str]) -> float:
  """BLEU of a corpus by sacrebleu with its default settings, 0 to 100.

  Raises:
    ImportError: sacrebleu is not installed.
  """
  import sacrebleu
  return sacrebleu.corpus_bleu(list(predictions), [list(references)]).score


def corpus_chrf(references: Sequence[str], predictions: Sequence[str]) -> float:
  """chrF of a corpus by sacrebleu with its default settings, 0 to 100.

  Raises:
    ImportError: sacrebleu is not installed.
  """
  import sacrebleu
  return sacrebleu.corpus_chrf(list(predictions), [list(references)]).score
