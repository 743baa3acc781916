"""How good a text is, given a reference: exact match and token F1, without normalisation beyond white space.

All take the reference first, and give fractions in [0, 1]. Data sets have normalisations of their own: see `answers`.
"""

import collections


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
