"""What a scorer says about one text, and how a corpus score is made of what it says about many.

A corpus metric (BLEU, chrF, perplexity, pass@k) is no mean over texts, so its value for one text and its value for a
corpus are two numbers. Both are kept: `value` is a fraction for one text, which pairs with the same question's value
under another method and may be averaged; `statistics` are sums that corpora add up. A corpus score is a function of the
summed statistics, so it is computed from rows alone, and a bootstrap that draws questions again is a bootstrap of the
corpus score itself, as in sacrebleu's own significance test.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Scores(NamedTuple):
  """What is known about one text.

  Attributes:
    value: its score, a fraction in [0, 1], 1 best.
    others: further fractions, name with signature -> value; their means over texts are their corpus values.
    statistics: corpus metric with signature -> numbers that are summed over texts.
    answer: what was taken out of the text to be judged, None for the text itself.
  """

  value: float
  others: Mapping[str, float] = {}
  statistics: Mapping[str, tuple[float, ...]] = {}
  answer: str | None = None


def mean_of_scores(found: list[Scores]) -> float:
  """The mean of the values; 0 without any."""
  return float(np.mean([scores.value for scores in found])) if found else 0.0


def versioned(name: str, distribution: str, **settings: str) -> str:
  """`name|key:value|version:...`: a metric's name with what computed it; 'missing' where it is not installed."""
  import importlib.metadata
  try:
    version = importlib.metadata.version(distribution)
  except importlib.metadata.PackageNotFoundError:
    version = 'missing'
  return '|'.join([name, *(f'{key}:{value}' for key, value in settings.items()), f'version:{version}'])
