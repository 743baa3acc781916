"""Acceptance, work and speed ratios of speculative decoding, formed on the host in float64 from integer counters.

The names are those of vLLM, AIPerf and Spec-Bench; every ratio states its denominator. A ratio whose denominator is 0 is
None, never 0 or NaN.
"""

import dataclasses

import numpy as np

SCALARS = ('steps', 'emitted', 'target_calls', 'drafter_calls', 'proposed', 'evaluated', 'accepted')
BY_POSITION = ('drafted_by_position', 'evaluated_by_position', 'accepted_by_position')


@dataclasses.dataclass(frozen=True)
class Counts:
  """The counters of `specjax.core.types.DecodeStats`, summed over any set of rows, as Python integers.

  All but `target_passes`, which belongs to a batch: its rows share their passes, so that no sum over rows means anything.

  `*_by_position[i]` counts the steps in which at least i + 1 draft tokens were proposed, evaluated or accepted.
  """

  steps: int
  emitted: int
  target_calls: int
  drafter_calls: int
  proposed: int
  evaluated: int
  accepted: int
  drafted_by_position: tuple[int, ...]
  evaluated_by_position: tuple[int, ...]
  accepted_by_position: tuple[int, ...]


def sum_counts(many):
  """`Counts` summed over any number of `Counts`."""
  many = list(many)
  width = max((len(counts.accepted_by_position) for counts in many), default=0)
  padded = lambda values: (*values, *(0,) * (width - len(values)))
  scalars = {name: sum(getattr(counts, name) for counts in many) for name in SCALARS}
  lists = {
      name: tuple(map(sum, zip(*(padded(getattr(counts, name)) for counts in many), strict=True)))
      for name in BY_POSITION
  }
  return Counts(**scalars, **lists)


def row_counts(stats, row):
  """`Counts` of one row of a `DecodeStats` of host arrays."""
  scalars = {name: int(np.asarray(getattr(stats, name))[row]) for name in SCALARS}
  lists = {name: tuple(int(n) for n in np.asarray(getattr(stats, name))[row]) for name in BY_POSITION}
  return Counts(**scalars, **lists)


def total_counts(stats):
  """`Counts` summed over all rows of a `DecodeStats` of host arrays."""
  scalars = {name: int(np.asarray(getattr(stats, name), np.int64).sum()) for name in SCALARS}
  lists = {
      name: tuple(int(n) for n in np.asarray(getattr(stats, name), np.int64).sum(axis=0)) for name in BY_POSITION
  }
  return Counts(**scalars, **lists)


def ratio(numerator, denominator):
  """float64 `numerator / denominator`, or None when there is nothing to divide by."""
  return float(numerator) / float(denominator) if denominator else None


def accepted_per_step(counts):
  """Accepted draft tokens per verify step, without the bonus token."""
  return ratio(counts.accepted, counts.steps)


def mean_acceptance_length(counts):
  """1 + accepted / steps: the bonus token included, between 1 (autoregressive) and K + 1."""
  return None if not counts.steps else 1.0 + counts.accepted / counts.steps


def block_efficiency(counts):
  """Emitted tokens per target call; at most the acceptance length, as a step that ends in EOS has no bonus token."""
  return ratio(counts.emitted, counts.target_calls)


def acceptance_rate(counts):
  """Accepted / evaluated, the per-trial rate that the formulas call a."""
  return ratio(counts.accepted, counts.evaluated)


def draft_acceptance_rate(counts):
  """Accepted / proposed, vLLM's name. It falls as K grows at fixed quality: never put it into a formula."""
  return ratio(counts.accepted, counts.proposed)


def rejection_rate(counts):
  """Rejected / evaluated draft tokens."""
  return ratio(counts.evaluated - counts.accepted, counts.evaluated)


def acceptance_per_pos_uncond(counts):
  """For each draft position i: steps with accepted >= i / steps with proposed >= i."""
  return [ratio(a, d) for a, d in zip(counts.accepted_by_position, counts.drafted_by_position, strict=True)]


def acceptance_per_pos_cond(counts):
  """For each draft position i: steps with accepted >= i / steps in which position i was evaluated."""
  return [ratio(a, e) for a, e in zip(counts.accepted_by_position, counts.evaluated_by_position, strict=True)]


def acceptance_histogram(counts):
  """Sparse {accepted draft tokens: steps}, the bonus token excluded."""
  at_least = (counts.steps, *counts.accepted_by_position, 0)
  exactly = [more - less for more, less in zip(at_least[:-1], at_least[1:], strict=True)]
  return {accepted: steps for accepted, steps in enumerate(exactly) if steps}


def accept_lengths(counts):
  """Spec-Bench's flat list of accepted tokens per step, bonus included, rebuilt from the histogram in ascending order."""
  return [1 + accepted for accepted, steps in sorted(acceptance_histogram(counts).items()) for _ in range(steps)]


def predicted_acceptance_length(rate, num_draft_tokens):
  """(1 - a^(K+1)) / (1 - a), the acceptance length if every draft token were accepted independently with `rate`.

  Source: Leviathan et al. 2023, equation 1.
  """
  return float(sum(float(rate) ** i for i in range(num_draft_tokens + 1)))


def predicted_speedup(rate, num_draft_tokens, cost):
  """S = (1 - a^(K+1)) / ((1 - a)(1 + K c)), if the target's pass costs the same for K + 1 tokens as for one.

  Args:
    rate: acceptance rate a in [0, 1].
    num_draft_tokens: K.
    cost: c, seconds of one drafter pass / seconds of one target pass.

  Source: Leviathan et al. 2023, theorem 3.8.
  """
  return predicted_acceptance_length(rate, num_draft_tokens) / (1.0 + num_draft_tokens * cost)


def best_num_draft_tokens(rate, cost, *, largest=64):
  """(K, S): the draft length in 0..`largest` with the highest predicted speed-up; the shorter one in a tie."""
  speedups = [predicted_speedup(rate, k, cost) for k in range(largest + 1)]
  best = int(np.argmax(np.asarray(speedups) > max(speedups) - 1e-12))
  return best, speedups[best]


def summary(counts):
  """The acceptance fields of a result row (names of the row schema) from counters."""
  return {
      'steps': counts.steps,
      'proposed': counts.proposed,
      'evaluated': counts.evaluated,
      'accepted': counts.accepted,
      'emitted': counts.emitted,
      'mean_acceptance_length': mean_acceptance_length(counts),
      'accepted_per_step': accepted_per_step(counts),
      'block_efficiency': block_efficiency(counts),
      'acceptance_rate': acceptance_rate(counts),
      'draft_acceptance_rate': draft_acceptance_rate(counts),
      'rejection_rate': rejection_rate(counts),
      'acceptance_per_pos_cond': acceptance_per_pos_cond(counts),
      'acceptance_per_pos_uncond': acceptance_per_pos_uncond(counts),
      'acceptance_histogram': {str(k): n for k, n in acceptance_histogram(counts).items()},
      'wasted_verify_tokens': counts.proposed - counts.accepted,
  }
