"""Verification: how many draft tokens stay, and which token follows, so that the output follows the goal exactly.

All functions are *unbatched*: `jax.vmap` them over rows.
"""

import jax
import jax.numpy as jnp
from jax import lax

from specjax.core import types
from specjax.ops import acceptance
from specjax.ops import categorical


def verify_tokens(accept_uniforms, final_uniforms, *, tokens, length, drafter_log_probs, goal_log_probs):
  """Token-level verification of a chain: accept a prefix, then draw the correction or the bonus token.

  Args:
    accept_uniforms: float[K].
    final_uniforms: float[2].
    tokens: int32[K], draft tokens.
    length: int32[], how many of them are proposed.
    drafter_log_probs: float[K, V], the laws they were drawn from.
    goal_log_probs: float[K + 1, V], the laws the output must follow; row `length` is the bonus row.

  Returns:
    (`Verdict`, `VerdictTrace`).

  Source: Leviathan et al. 2023, Algorithm 1, with the goal in the target's place.
  """
  num_draft_tokens = tokens.shape[0]
  index = jnp.arange(num_draft_tokens, dtype=jnp.int32)
  goal_at_token = goal_log_probs[index, tokens]
  drafter_at_token = drafter_log_probs[index, tokens]
  accept_probs = acceptance.accept_probability(goal_at_token, drafter_at_token)
  accept_probs = jnp.where(index < length, accept_probs, 0)
  accepted = accept_uniforms < accept_probs
  num_accepted = jnp.sum(jnp.cumprod(accepted.astype(jnp.int32)), dtype=jnp.int32)

  goal_probs = jnp.exp(lax.dynamic_index_in_dim(goal_log_probs, num_accepted, keepdims=False))
  final_probs = goal_probs
  if num_draft_tokens:
    row = jnp.minimum(num_accepted, num_draft_tokens - 1)
    drafter_probs = jnp.exp(lax.dynamic_index_in_dim(drafter_log_probs, row, keepdims=False))
    residual = acceptance.residual_probs(goal_probs, drafter_probs)
    final_probs = jnp.where(num_accepted < length, residual, goal_probs)
  next_token = categorical.draw_from_probs(final_uniforms, final_probs)
  return types.Verdict(num_accepted, next_token), types.VerdictTrace(accept_probs, final_probs)
