"""The accept test and the residual law. Exactness lives here and nowhere else. All functions are *unbatched*.

Source: Leviathan et al. 2023, Algorithm 1; Chen et al. 2023; for a goal other than the target, Narasimhan et al. 2025; for
blocks, Sun et al. 2025.
"""

import jax.numpy as jnp
from jax import lax


def accept_probability(goal_log_prob, drafter_log_prob):
  """float[...], min(1, goal / drafter) of drafted tokens; 0 where the drafter gives no mass or anything is NaN.

  The test is u < this, strictly: a float32 uniform is exactly 0 once in 2^23 draws.
  """
  possible = drafter_log_prob > -jnp.inf
  log_ratio = goal_log_prob - jnp.where(possible, drafter_log_prob, 0)
  # Not `ratio >= 0`: XLA takes an exponential for non-negative, and the comparison for true, NaN or not.
  return jnp.where(possible & ~jnp.isnan(log_ratio), jnp.minimum(jnp.exp(log_ratio), 1), 0)


def residual_probs(goal_probs, drafter_probs, *, weight=None):
  """float[V], max(0, goal - drafter), unnormalised: the law of the token drawn after a rejection.

  `weight` float[] scales the goal: the prefix's weight in block verification; None is 1. A residual without mass is
  rounding (a rejection needs goal < drafter somewhere): then the goal itself. Never an epsilon, which would leak mass to
  every token.
  """
  residual = jnp.maximum((goal_probs if weight is None else weight * goal_probs) - drafter_probs, 0)
  return jnp.where(jnp.sum(residual) > 0, residual, goal_probs)


def block_weights(goal_log_probs, drafter_log_probs):
  """float[K + 1], w_0 = 1 and w_i = min(1, w_{i-1} goal_i / drafter_i): how likely the first i tokens of a block stay.

  Args:
    goal_log_probs, drafter_log_probs: float[K], both laws at the drafted tokens. Where the drafter gives no mass or
      anything is NaN the weight is 0, and so are all behind it.
  """
  possible = drafter_log_probs > -jnp.inf
  log_ratio = goal_log_probs - jnp.where(possible, drafter_log_probs, 0)
  log_ratio = jnp.where(possible & ~jnp.isnan(log_ratio), log_ratio, -jnp.inf)

  # In logarithms: 0 times a ratio that overflows would be NaN. One by one: a sum of all ratios would round before the cap.
  def another(log_weight, log_ratio):
    log_weight = jnp.minimum(log_weight + log_ratio, 0)
    return log_weight, log_weight

  start = jnp.zeros((), log_ratio.dtype)
  log_weights = lax.scan(another, start, log_ratio, unroll=8)[1]
  return jnp.exp(jnp.concatenate([start[None], log_weights]))


def block_accept_probs(weights, residual_mass, *, length):
  """float[K], h_1 .. h_K: the tests of a block, h_i = Z_i / (Z_i + 1 - w_i) below `length`, h_length = w_length, 0 behind.

  Args:
    weights: float[K + 1] from `block_weights`.
    residual_mass: float[K], Z_i = sum over v of max(0, w_i goal_{i+1}(v) - drafter_{i+1}(v)) at index i, from 0; Z_0 is
      not read.
    length: int32[], tokens in the block.
  """
  index = 1 + jnp.arange(residual_mass.shape[0], dtype=jnp.int32)
  mass, weight = jnp.pad(residual_mass[1:], (0, 1))[:index.shape[0]], weights[1:]
  total = mass + (1 - weight)
  inner = jnp.where(total > 0, mass / jnp.where(total > 0, total, 1), 1)
  return jnp.where(index < length, inner, jnp.where(index == length, weight, 0))
