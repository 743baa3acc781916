"""Tests of sampled counts against an exact law, with the sample size and the power they have stated beside them."""

import numpy as np
from scipy import special
from scipy import stats

ALPHA = 1e-6


def pooled(counts, probs, *, least=10.0):
  """`counts` and `probs` float64[n] with the cells of expected count below `least` added up in one."""
  counts, probs = np.asarray(counts, np.float64), np.asarray(probs, np.float64)
  small = probs * counts.sum() < least
  if not small.any():
    return counts, probs
  return np.append(counts[~small], counts[small].sum()), np.append(probs[~small], probs[small].sum())


def pearson(counts, probs):
  """(statistic, degrees of freedom, p-value) of Pearson's test. Counts where the law has no mass give infinity."""
  counts, probs = pooled(counts, probs)
  expected = probs * counts.sum()
  possible = expected > 0
  statistic = float(np.sum((counts - expected)[possible]**2 / expected[possible]))
  if np.any(counts[~possible] > 0):
    statistic = float('inf')
  freedom = int(possible.sum()) - 1
  return statistic, freedom, float(special.chdtrc(freedom, statistic))


def g_test(counts, probs):
  """(statistic, degrees of freedom, p-value) of the likelihood-ratio test."""
  counts, probs = pooled(counts, probs)
  expected = probs * counts.sum()
  seen = counts > 0
  statistic = float('inf') if np.any(expected[seen] == 0) else float(
      2 * np.sum(counts[seen] * np.log(counts[seen] / expected[seen])))
  freedom = int((expected > 0).sum()) - 1
  return statistic, freedom, float(special.chdtrc(freedom, statistic))


def power(num_samples, total_variation, freedom, *, alpha=ALPHA):
  """The probability that Pearson's test at level `alpha` sees any law at this total variation, in the worst case.

  The noncentrality is n sum d^2 / p >= n (sum |d|)^2 = 4 n TV^2 by Cauchy-Schwarz.
  """
  return float(stats.ncx2.sf(stats.chi2.isf(alpha, freedom), freedom, 4 * num_samples * total_variation**2))


def worst_direction(probs, total_variation):
  """A law at this total variation from `probs` that Pearson's test finds hardest: d proportional to p on two halves."""
  probs = np.asarray(probs, np.float64)
  order = np.argsort(-probs)
  up = np.zeros(len(probs), bool)
  up[order[::2]] = True
  shift = np.where(up, probs / probs[up].sum(), -probs / probs[~up].sum()) * total_variation
  return probs + shift
