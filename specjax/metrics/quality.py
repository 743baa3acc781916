"""How good a text is, given a reference: exact match, token F1, BLEU, chrF, ROUGE.

All take the reference first, and give fractions in [0, 1], except BLEU and chrF, which keep their customary 0 to 100.
"""

import collections
from collections.abc import Sequence


def normalize_white_space(text: str) -> str:
  """The text without white space at its ends, and single spaces inside."""
  return ' '.join(text.split())


def exact_match(reference: str, prediction: str) -> float:
  """1.0 when both texts are equal up to the amount of white space, otherwise 0.0."""
  return float(normalize_white_space(reference) == normalize_white_space(prediction))


def token_f1(reference: str, prediction: str) -> float:
  """Harmonic mean of precision and recall over words, counted as often as they occur.

  Two empty texts agree (1.0); an empty and a non-empty one do not (0.0).
  """
  reference_words, predicted_words = reference.split(), prediction.split()
  if not reference_words or not predicted_words:
    return float(reference_words == predicted_words)
  shared = sum((collections.Counter(reference_words) & collections.Counter(predicted_words)).values())
  return 2.0 * shared / (len(reference_words) + len(predicted_words))


def corpus_bleu(references: Sequence[str], predictions: Sequence[str]) -> float:
  """BLEU of a corpus by sacrebleu with its default settings, 0 to 100.

  Raises:
    ImportError: sacrebleu is not installed.
  """
  import sacrebleu  # an extra; most uses of this file need none
  return sacrebleu.corpus_bleu(list(predictions), [list(references)]).score


def corpus_chrf(references: Sequence[str], predictions: Sequence[str]) -> float:
  """chrF of a corpus by sacrebleu with its default settings, 0 to 100.

  Raises:
    ImportError: sacrebleu is not installed.
  """
  import sacrebleu
  return sacrebleu.corpus_chrf(list(predictions), [list(references)]).score


def rouge(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-Lsum over a corpus, with stemming.

  Raises:
    ImportError: rouge-score is not installed.
  """
  from rouge_score import rouge_scorer
  names = ('rouge1', 'rouge2', 'rougeLsum')
  scorer = rouge_scorer.RougeScorer(names, use_stemmer=True)
  scores = [scorer.score(reference, prediction)
            for reference, prediction in zip(references, predictions, strict=True)]
  return {name: sum(score[name].fmeasure for score in scores) / max(len(scores), 1) for name in names}
