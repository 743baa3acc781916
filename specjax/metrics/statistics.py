"""Intervals of measured quantities: paired bootstrap over prompts, ratios of totals, Wilson.

Steps inside a prompt are correlated, so the unit that is drawn again is the prompt; prompts that shared one batch share
one clock reading and are drawn together (`groups`). A speed-up is a ratio of totals, never a mean of per-prompt ratios.
"""

import functools
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Of the standard normal law at `CONFIDENCE`, two-sided.
NORMAL_QUANTILE = 1.959963984540054


class Interval(NamedTuple):
  """A point estimate with the ends of its interval; `low` and `high` are None where nothing can be said."""

  estimate: float | None
  low: float | None
  high: float | None


@functools.lru_cache(maxsize=16)  # A table asks for the same draws in every line.
def resampling_weights(num_units, *, seed, resamples=RESAMPLES):
  """float64[resamples, num_units]: how often each unit appears in each bootstrap sample; rows sum to `num_units`."""
  generator = np.random.default_rng(seed)
  drawn = generator.multinomial(num_units, np.full(num_units, 1.0 / num_units), size=resamples).astype(np.float64)
  drawn.setflags(write=False)
  return drawn


def group_totals(values, groups):
  """float64[G]: `values` summed inside each group, groups in sorted order."""
  _, index = np.unique(np.asarray(groups), return_inverse=True)
  return np.bincount(index, weights=np.asarray(values, np.float64))


def percentile_interval(estimate, samples, *, confidence=CONFIDENCE):
  """The percentile interval of bootstrap samples around `estimate`; samples that are not finite are left out."""
  samples = np.asarray(samples, np.float64)
  samples = samples[np.isfinite(samples)]
  if samples.size == 0:
    return Interval(estimate, None, None)
  tail = 50.0 * (1.0 - confidence)
  low, high = np.percentile(samples, [tail, 100.0 - tail])
  return Interval(estimate, float(low), float(high))


def _divide(numerator, denominator):
  with np.errstate(divide='ignore', invalid='ignore'):
    return numerator / denominator


def ratio_of_totals(numerators, denominators):
  """float64 sum(numerators) / sum(denominators); None when the denominators sum to 0."""
  total = float(np.sum(np.asarray(denominators, np.float64)))
  return float(np.sum(np.asarray(numerators, np.float64))) / total if total else None


def ratio_interval(numerators, denominators, *, groups, seed, resamples=RESAMPLES, confidence=CONFIDENCE):
  """Interval of sum(numerators) / sum(denominators), drawing whole groups again.

  Args:
    numerators, denominators: float[N], one entry per row.
    groups: [N] the unit each row belongs to (question id, or batch where a batch shares its clock).
    seed: of the bootstrap.
    resamples: number of bootstrap samples.
    confidence: coverage of the interval.

  Returns:
    An `Interval`, without ends when there is only one group.
  """
  estimate = ratio_of_totals(numerators, denominators)
  top, bottom = group_totals(numerators, groups), group_totals(denominators, groups)
  if top.size < 2 or estimate is None:
    return Interval(estimate, None, None)
  weights = resampling_weights(top.size, seed=seed, resamples=resamples)
  return percentile_interval(estimate, _divide(weights @ top, weights @ bottom), confidence=confidence)


def mean_interval(values, *, groups, seed, resamples=RESAMPLES, confidence=CONFIDENCE):
  """Interval of the mean of `values`, drawing whole groups again."""
  return ratio_interval(
      values, np.ones(len(values)), groups=groups, seed=seed, resamples=resamples, confidence=confidence
  )


def _shared(groups_a, groups_b):
  """The groups present on both sides, and the masks of the rows that belong to them."""
  groups_a, groups_b = np.asarray(groups_a), np.asarray(groups_b)
  both = np.intersect1d(groups_a, groups_b)
  return np.isin(groups_a, both), np.isin(groups_b, both)


def speedup_interval(
    tokens, seconds, groups, reference_tokens, reference_seconds, reference_groups, *, seed, resamples=RESAMPLES,
    confidence=CONFIDENCE,
):
  """Interval of (tokens / seconds) / (reference tokens / reference seconds), paired by group.

  Only groups measured on both sides enter, estimate included, and each bootstrap sample draws the same groups on both.
  """
  tokens, seconds, groups = np.asarray(tokens), np.asarray(seconds), np.asarray(groups)
  reference_tokens, reference_seconds = np.asarray(reference_tokens), np.asarray(reference_seconds)
  reference_groups = np.asarray(reference_groups)
  keep, keep_reference = _shared(groups, reference_groups)
  if not keep.any():
    return Interval(None, None, None)
  totals = [
      group_totals(values[mask], labels[mask])
      for values, labels, mask in (
          (tokens, groups, keep), (seconds, groups, keep),
          (reference_tokens, reference_groups, keep_reference), (reference_seconds, reference_groups, keep_reference),
      )
  ]
  new, time, old, old_time = totals
  estimate = float(_divide(np.sum(new) * np.sum(old_time), np.sum(time) * np.sum(old)))
  if not np.isfinite(estimate):
    return Interval(None, None, None)
  if new.size < 2:
    return Interval(estimate, None, None)
  weights = resampling_weights(new.size, seed=seed, resamples=resamples)
  samples = _divide((weights @ new) * (weights @ old_time), (weights @ time) * (weights @ old))
  return percentile_interval(estimate, samples, confidence=confidence)


def difference_interval(
    values, groups, reference_values, reference_groups, *, seed, resamples=RESAMPLES, confidence=CONFIDENCE,
):
  """Interval of mean(values) - mean(reference values), paired by group."""
  values, groups = np.asarray(values, np.float64), np.asarray(groups)
  reference_values, reference_groups = np.asarray(reference_values, np.float64), np.asarray(reference_groups)
  keep, keep_reference = _shared(groups, reference_groups)
  if not keep.any():
    return Interval(None, None, None)
  top, old = values[keep], reference_values[keep_reference]
  estimate = float(np.mean(top) - np.mean(old))
  sums, sizes = group_totals(top, groups[keep]), group_totals(np.ones(top.size), groups[keep])
  old_sums = group_totals(old, reference_groups[keep_reference])
  old_sizes = group_totals(np.ones(old.size), reference_groups[keep_reference])
  if sums.size < 2:
    return Interval(estimate, None, None)
  weights = resampling_weights(sums.size, seed=seed, resamples=resamples)
  samples = (weights @ sums) / (weights @ sizes) - (weights @ old_sums) / (weights @ old_sizes)
  return percentile_interval(estimate, samples, confidence=confidence)


def wilson_interval(successes, trials, *, z=NORMAL_QUANTILE):
  """Wilson score interval of a proportion; sound at 0 and 1, where the normal interval is empty.

  Source: Wilson 1927, equation (5).
  """
  if not trials:
    return Interval(None, None, None)
  rate = successes / trials
  centre = rate + z * z / (2 * trials)
  spread = z * np.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
  scale = 1 + z * z / trials
  return Interval(rate, max(0.0, float((centre - spread) / scale)), min(1.0, float((centre + spread) / scale)))
