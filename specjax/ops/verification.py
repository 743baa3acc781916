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

  final_probs = _final_probs(
      num_accepted, length=length, drafter_log_probs=drafter_log_probs, goal_log_probs=goal_log_probs)
  next_token = categorical.draw_from_probs(final_uniforms, final_probs)
  return types.Verdict(num_accepted, next_token), types.VerdictTrace(accept_probs, final_probs)


def verify_block(accept_uniforms, final_uniforms, *, tokens, length, drafter_log_probs, goal_log_probs):
  """Block verification of a chain: the longest prefix whose own test holds stays, whatever the tests before it said.

      w_0 = 1;  w_i = min(1, w_{i-1} goal_i(x_i) / drafter_i(x_i))
      Z_i = sum over v of max(0, w_i goal_{i+1}(v) - drafter_{i+1}(v));  h_i = Z_i / (Z_i + 1 - w_i), 0/0 -> 1;  h_n = w_n
      num_accepted = max{i <= n : u_i < h_i}, else 0; next token ~ goal_{n+1} at n, else norm(max(0, w goal - drafter))

  Exact for every goal that depends on the prefix alone. It keeps at least as many tokens as `verify_tokens` in expectation,
  at every position: a drafted prefix stays with probability w_i, not with the product of the ratios capped one by one.

  A test reads the laws behind its own token. A block therefore ends in front of the first broken (NaN) law: as if the
  drafter had stopped there, which is a decision known before that token was drawn and so changes no law. Otherwise the
  mass of a prefix that is followed by a broken law would move to shorter ones.

  Arguments and result as of `verify_tokens`; the trace's `accept_probs` are the h_i.

  Source: Sun et al. 2025, Algorithm 2, with the goal in the target's place.
  """
  num_draft_tokens = tokens.shape[0]
  index = jnp.arange(num_draft_tokens, dtype=jnp.int32)
  weights = acceptance.block_weights(goal_log_probs[index, tokens], drafter_log_probs[index, tokens])
  residual = jnp.maximum(weights[:-1, None] * jnp.exp(goal_log_probs[:-1]) - jnp.exp(drafter_log_probs), 0)
  mass = jnp.sum(residual, axis=1)
  # Asked of the laws and not of `mass`: a maximum fused into a vectorised reduction loses NaN on CPU.
  broken = jnp.any(jnp.isnan(goal_log_probs[:-1]) | jnp.isnan(drafter_log_probs), axis=1)
  length = jnp.minimum(length, jnp.min(jnp.where(broken, index, num_draft_tokens), initial=num_draft_tokens))
  accept_probs = acceptance.block_accept_probs(weights, mass, length=length)
  num_accepted = jnp.max(jnp.where(accept_uniforms < accept_probs, index + 1, 0), initial=0)
  final_probs = _final_probs(
      num_accepted, length=length, drafter_log_probs=drafter_log_probs, goal_log_probs=goal_log_probs,
      weight=weights[num_accepted])
  next_token = categorical.draw_from_probs(final_uniforms, final_probs)
  return types.Verdict(num_accepted, next_token), types.VerdictTrace(accept_probs, final_probs)


def _final_probs(num_accepted, *, length, drafter_log_probs, goal_log_probs, weight=None):
  """float[V], what the verifier draws from: the goal behind a full proposal, the residual behind a shorter prefix."""
  goal_probs = jnp.exp(lax.dynamic_index_in_dim(goal_log_probs, num_accepted, keepdims=False))
  num_draft_tokens = drafter_log_probs.shape[0]
  if not num_draft_tokens:
    return goal_probs
  row = jnp.minimum(num_accepted, num_draft_tokens - 1)
  drafter_probs = jnp.exp(lax.dynamic_index_in_dim(drafter_log_probs, row, keepdims=False))
  residual = acceptance.residual_probs(goal_probs, drafter_probs, weight=weight)
  return jnp.where(num_accepted < length, residual, goal_probs)
