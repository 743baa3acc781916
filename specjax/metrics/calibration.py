"""How well a score says what will happen: AUC, calibration error, Brier skill; and temperature and isotonic regression.

Scores and labels are arrays of one length, labels 0 or 1. What needs both classes is None where there is one.
"""

from typing import Literal, NamedTuple

import numpy as np

from specjax.core import checks
from specjax.core import errors

NUM_BINS = 15
MAX_KNOTS = 64
# Of a temperature: separable classes would have none, labels that do not depend on the score an infinite one.
TEMPERATURES = (1e-2, 1e2)
_BISECTIONS = 60

Bins = Literal['mass', 'width']


class Bin(NamedTuple):
  """One bin of a reliability diagram: its ends, how many scores it holds, their mean, and their rate of label 1."""

  low: float
  high: float
  count: int
  mean_probability: float
  rate: float


def auc(scores, labels):
  """float, the chance that a score of label 1 is above one of label 0, ties counting half; None with one class."""
  scores, labels = _checked(scores, labels)
  positive = float(labels.sum())
  negative = len(labels) - positive
  if not positive or not negative:
    return None
  _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
  mean_ranks = np.cumsum(counts) - (counts - 1) / 2
  ranks = float(mean_ranks[index] @ labels)
  return (ranks - positive * (positive + 1) / 2) / (positive * negative)


def reliability_bins(probabilities, labels, *, num_bins=NUM_BINS, bins: Bins = 'mass'):
  """List of `Bin`s that hold something, by rising probability.

  Args:
    probabilities: of label 1, in [0, 1].
    labels: 0 or 1.
    num_bins: at most so many.
    bins: 'mass', equally many scores in each, where equal scores share one; or 'width', equal parts of [0, 1].
  """
  probabilities, labels = _checked(probabilities, labels, are_probabilities=True)
  num_bins = checks.integer('num_bins', num_bins, low=1, high=1 << 20)
  checks.choice('bins', bins, ('mass', 'width'))
  order = np.argsort(probabilities, kind='stable')
  probabilities, labels = probabilities[order], labels[order]
  if bins == 'mass':
    starts = _tied_starts(probabilities, num_bins)
    ends = [*starts[1:], len(probabilities)]
    edges = [(probabilities[start], probabilities[end - 1]) for start, end in zip(starts, ends, strict=True)]
  else:
    walls = np.arange(num_bins + 1) / num_bins
    cuts = [0, *np.searchsorted(probabilities, walls[1:-1], side='left'), len(probabilities)]
    starts, ends = cuts[:-1], cuts[1:]
    edges = list(zip(walls[:-1], walls[1:], strict=True))
  return [
      Bin(float(low), float(high), int(end - start), float(probabilities[start:end].mean()),
          float(labels[start:end].mean()))
      for (low, high), start, end in zip(edges, starts, ends, strict=True) if end > start]


def expected_calibration_error(probabilities, labels, *, num_bins=NUM_BINS, bins: Bins = 'mass'):
  """float in [0, 1], the mean over scores of |mean probability - rate| of their bin; see `reliability_bins`.

  Source: Naeini et al. 2015; bins of equal mass, Nguyen and O'Connor 2015.
  """
  found = reliability_bins(probabilities, labels, num_bins=num_bins, bins=bins)
  return sum(one.count * abs(one.mean_probability - one.rate) for one in found) / sum(one.count for one in found)


def brier_score(probabilities, labels):
  """float, the mean squared distance of probability and label."""
  probabilities, labels = _checked(probabilities, labels, are_probabilities=True)
  return float(np.mean((probabilities - labels) ** 2))


def brier_skill(probabilities, labels):
  """float, 1 - Brier score / that of always saying the base rate of these labels; None with one class."""
  rate = float(np.mean(np.asarray(labels, np.float64)))
  score = brier_score(probabilities, labels)
  return 1 - score / (rate * (1 - rate)) if 0 < rate < 1 else None


def fit_temperature(logits, labels):
  """float in `TEMPERATURES`, what the logits are divided by for the least log loss; 1 with one class.

  The loss is convex in 1 / temperature, so its slope is bisected. Source: Guo et al. 2017.
  """
  logits, labels = _checked(logits, labels)
  if not 0 < labels.sum() < len(labels):
    return 1.0
  slope = lambda inverse: float(np.mean((_logistic(inverse * logits) - labels) * logits))
  low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
  if slope(low) >= 0:
    return TEMPERATURES[1]
  if slope(high) <= 0:
    return TEMPERATURES[0]
  for _ in range(_BISECTIONS):
    middle = (low * high) ** 0.5
    low, high = (middle, high) if slope(middle) < 0 else (low, middle)
  return float((low * high) ** -0.5)


def isotonic_regression(values, weights):
  """float64[N], the non-decreasing sequence with the least weighted squared distance to `values`, which are in order.

  Pool adjacent violators: neighbours in the wrong order share their mean.
  """
  means, sizes, lengths = [], [], []
  for value, weight in zip(np.asarray(values, np.float64), np.asarray(weights, np.float64), strict=True):
    mean, size, length = value, weight, 1
    while means and means[-1] >= mean:
      before = sizes.pop()
      mean = (means.pop() * before + mean * size) / (before + size)
      size, length = size + before, length + lengths.pop()
    means.append(mean)
    sizes.append(size)
    lengths.append(length)
  return np.repeat(means, lengths)


def isotonic_knots(scores, labels, *, max_knots=MAX_KNOTS):
  """(x float64[M] increasing, y float64[M] non-decreasing): isotonic regression of the labels, M at most `max_knots`.

  Equally many scores, equal ones together, make a knot at their mean, where y is their pooled rate. A line through the
  knots, constant beyond, is the calibrated probability.
  """
  scores, labels = _checked(scores, labels)
  max_knots = checks.integer('max_knots', max_knots, low=1, high=1 << 20)
  order = np.argsort(scores, kind='stable')
  scores, labels = scores[order], labels[order]
  starts = _tied_starts(scores, max_knots)
  counts = np.diff([*starts, len(scores)])
  mean = lambda values: np.add.reduceat(values, starts) / counts
  return mean(scores), np.clip(isotonic_regression(mean(labels), counts), 0.0, 1.0)


def _tied_starts(ordered, num_bins):
  """Where at most `num_bins` equal parts begin in ordered values, moved to the front so that equal values share one."""
  cuts = np.arange(num_bins) * len(ordered) // num_bins
  return np.unique(np.searchsorted(ordered, ordered[cuts], side='left'))


def _logistic(logits):
  # exp never overflows: of a negative number on both sides.
  small = np.exp(-np.abs(logits))
  return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))


def _checked(scores, labels, *, are_probabilities=False):
  """Both as float64[N]; `ParamError` where they are no scores and labels."""
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
  if scores.ndim != 1 or scores.shape != labels.shape or not scores.size:
    raise errors.ParamError(
        what='scores and labels', got=(scores.shape, labels.shape), expected='two lists of one length, not empty')
  if not np.isin(labels, (0, 1)).all():
    raise errors.ParamError(what='labels', got=labels[~np.isin(labels, (0, 1))][0], expected='0 or 1')
  if not np.isfinite(scores).all():
    raise errors.ParamError(what='scores', got='NaN or infinity', expected='finite numbers')
  if are_probabilities and not ((scores >= 0) & (scores <= 1)).all():
    raise errors.ParamError(what='probabilities', got=float(scores.max()), expected='numbers in [0, 1]')
  return scores, labels
