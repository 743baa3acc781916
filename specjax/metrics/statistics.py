"""Intervals of measured quantities: t for speed-ups, paired bootstrap over prompts for means, Wilson, Garwood for counts.

Steps inside a prompt are correlated, so the unit that counts is the prompt; prompts that shared one batch share one clock
reading and are one unit (`groups`). A speed-up is a ratio of totals, never a mean of per-prompt ratios. Fewer than
`FEWEST_GROUPS` units have no interval.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import special

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Of the standard normal law at `CONFIDENCE`, two-sided.
NORMAL_QUANTILE = 1.959963984540054
FEWEST_GROUPS = 3


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


def t_quantile(degrees, *, confidence=CONFIDENCE):
  """The two-sided quantile of Student's t at `confidence`, with `degrees` degrees of freedom."""
  return float(special.stdtrit(degrees, 0.5 + confidence / 2))


def deviation_scale(*num_groups):
  """Half the width of a 95 % interval, in standard deviations of a bootstrap that draws inside strata of some groups each.

  sqrt(n / (n - 1)) t: a bootstrap's variance has the denominator n, of the smallest stratum; t has as many degrees of
  freedom as there are groups less strata.
  """
  fewest = min(num_groups)
  return (fewest / (fewest - 1)) ** 0.5 * t_quantile(sum(num_groups) - len(num_groups))


def _widened(interval, num_groups):
  """`interval` with its ends as far off as few groups demand: percentiles are a normal law's, of four groups they cover 78 %."""
  if interval.low is None:
    return interval
  factor = deviation_scale(num_groups) / NORMAL_QUANTILE
  low, high = (interval.estimate + factor * (end - interval.estimate) for end in (interval.low, interval.high))
  return Interval(interval.estimate, low, high)


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
    An `Interval`, without ends below `FEWEST_GROUPS` groups.
  """
  estimate = ratio_of_totals(numerators, denominators)
  top, bottom = group_totals(numerators, groups), group_totals(denominators, groups)
  if top.size < FEWEST_GROUPS or estimate is None:
    return Interval(estimate, None, None)
  weights = resampling_weights(top.size, seed=seed, resamples=resamples)
  samples = _divide(weights @ top, weights @ bottom)
  return _widened(percentile_interval(estimate, samples, confidence=confidence), top.size)


def mean_interval(values, *, groups, seed, resamples=RESAMPLES, confidence=CONFIDENCE):
  """Interval of the mean of `values`, drawing whole groups again; it stays between the least and the largest value."""
  found = ratio_interval(
      values, np.ones(len(values)), groups=groups, seed=seed, resamples=resamples, confidence=confidence)
  if found.low is None:
    return found
  return Interval(found.estimate, max(found.low, float(np.min(values))), min(found.high, float(np.max(values))))


def _shared(groups_a, groups_b):
  """The groups present on both sides, and the masks of the rows that belong to them."""
  groups_a, groups_b = np.asarray(groups_a), np.asarray(groups_b)
  both = np.intersect1d(groups_a, groups_b)
  return np.isin(groups_a, both), np.isin(groups_b, both)


def speedup_interval(tokens, seconds, groups, reference_tokens, reference_seconds, reference_groups, *, confidence=CONFIDENCE):
  """Interval of (tokens / seconds) / (reference tokens / reference seconds), paired by group.

  Only groups measured on both sides enter, estimate included. Student's t with G - 1 degrees of freedom on the logarithm,
  whose variance is the jackknife's over groups: sweeps have 4 to 16 batches, for which a percentile bootstrap is too
  narrow, and a linearised variance is when their lengths differ much.

  Args:
    tokens, seconds: float[N], one entry per row.
    groups: [N] which rows share a clock reading or their prompts.
    reference_tokens, reference_seconds, reference_groups: [M] the same of the reference.
    confidence: coverage of the interval.

  Returns:
    An `Interval`, without ends below `FEWEST_GROUPS` groups.
  """
  groups, reference_groups = np.asarray(groups), np.asarray(reference_groups)
  keep, keep_reference = _shared(groups, reference_groups)
  if not keep.any():
    return Interval(None, None, None)
  totals = np.stack([
      group_totals(np.asarray(values)[mask], labels[mask])
      for values, labels, mask in (
          (tokens, groups, keep), (reference_seconds, reference_groups, keep_reference),
          (seconds, groups, keep), (reference_tokens, reference_groups, keep_reference))])
  speedup = lambda sums: _divide(sums[0] * sums[1], sums[2] * sums[3])
  estimate = float(speedup(totals.sum(axis=1)))
  if not np.isfinite(estimate):
    return Interval(None, None, None)
  size = totals.shape[1]
  if size < FEWEST_GROUPS:
    return Interval(estimate, None, None)
  with np.errstate(divide='ignore', invalid='ignore'):
    without = np.log(speedup(totals.sum(axis=1, keepdims=True) - totals))
  if not np.isfinite(without).all():  # One group holds all tokens or all time.
    return Interval(estimate, None, None)
  deviation = float(np.sqrt((size - 1) / size * np.sum((without - without.mean()) ** 2)))
  spread = np.exp(t_quantile(size - 1, confidence=confidence) * deviation)
  return Interval(estimate, float(estimate / spread), float(estimate * spread))


def difference_interval(
    values, groups, reference_values, reference_groups, *, seed, resamples=RESAMPLES, confidence=CONFIDENCE,
):
  """Interval of mean(values) - mean(reference values), paired by group; without ends below `FEWEST_GROUPS` groups."""
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
  if sums.size < FEWEST_GROUPS:
    return Interval(estimate, None, None)
  weights = resampling_weights(sums.size, seed=seed, resamples=resamples)
  samples = (weights @ sums) / (weights @ sizes) - (weights @ old_sums) / (weights @ old_sizes)
  return _widened(percentile_interval(estimate, samples, confidence=confidence), sums.size)


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


def count_interval(count, *, confidence=CONFIDENCE):
  """Interval of the expectation of a count of rare events, sound at few and at none.

  Exact for a Poisson process that is watched for a given expected number of events, or until it has had a given number. A
  sum of events that are not rare varies less, so it covers more.

  Args:
    count: events.
    confidence: coverage of the interval.

  Source: Garwood 1936.
  """
  tail = (1.0 - confidence) / 2
  low = float(special.gammaincinv(count, tail)) if count else 0.0
  return Interval(float(count), low, float(special.gammainccinv(count + 1, tail)))
