"""The accept test and the residual law. Exactness lives here and nowhere else. All functions are *unbatched*.

Source: Leviathan et al. 2023, Algorithm 1; Chen et al. 2023; for a goal other than the target, Narasimhan et al. 2025.
"""

import jax.numpy as jnp


def accept_probability(goal_log_prob, drafter_log_prob):
  """float[...], min(1, goal / drafter) of drafted tokens; 0 where the drafter gives no mass or anything is NaN.

  The test is u < this, strictly: a float32 uniform is exactly 0 once in 2^23 draws.
  """
  possible = drafter_log_prob > -jnp.inf
  log_ratio = goal_log_prob - jnp.where(possible, drafter_log_prob, 0)
  ratio = jnp.minimum(jnp.exp(log_ratio), 1)
  return jnp.where(possible & (ratio >= 0), ratio, 0)


def residual_probs(goal_probs, drafter_probs):
  """float[V], max(0, goal - drafter), unnormalised: the law of the token drawn after a rejection.

  A residual without mass is rounding (a rejection needs goal < drafter somewhere): then the goal itself. Never an
  epsilon, which would leak mass to every token.
  """
  residual = jnp.maximum(goal_probs - drafter_probs, 0)
  return jnp.where(jnp.sum(residual) > 0, residual, goal_probs)
