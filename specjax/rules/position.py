"""What position rules share: one decision per position, for the drafter's whole law or for the target's. *Unbatched*."""

import jax.numpy as jnp

from specjax.core import types


def position_mix(inputs, defer):
  """The goal of a position rule that defers iff `defer` bool[]: (1 - r) q + r p with r in {0, 1}.

  The chosen law is handed on bit for bit. Write `defer` as a strict comparison: with NaN it is false, so that a broken
  drafter law is kept, stays NaN and stops its row.
  """
  log_probs = jnp.where(defer, inputs.target_log_probs, inputs.drafter_log_probs)
  return types.Goal(log_probs, defer.astype(log_probs.dtype))


def at_drafter_best(inputs, values):
  """`values` float[V] at the drafter's likeliest token: what a greedy drafter proposes. NaN if the drafter's law is."""
  best = jnp.argmax(inputs.drafter_log_probs)
  # argmax of a law of NaN points somewhere all the same.
  return jnp.where(jnp.isnan(inputs.drafter_log_probs[best]), jnp.nan, values[best])
