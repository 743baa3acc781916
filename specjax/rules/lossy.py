"""Lossy verification: the acceptance test is relaxed by a lenience, and what the output then follows is the goal.

The published procedures accept a draft token v with min(1, p(v) / ((1 - lenience) q(v))) and draw a rejected position anew
from a residual law. Here the law that this induces is the goal, so that the one verifier realises it.
"""

from typing import Any, ClassVar, Literal

from flax import struct
import jax.numpy as jnp
from jax import lax

from specjax.core import checks
from specjax.core import types
from specjax.rules import position

RESIDUALS = ('difference', 'mass_balance', 'target')


@struct.dataclass(kw_only=True)
class LossySpeculative:
  """Lossy speculative decoding: goal(v) = min(q(v), p(v) / (1 - lenience)) + R r(v).

  R is the mass that the relaxed test rejects, 1 - sum of the minimum, and r the normalised residual:

      'difference'     (p - q)_+          goal where q <= p: q + Delta (p - q), Delta = R / D_TV(p, q)
      'mass_balance'   (p / beta - q)_+   goal = max(min(q, p / (1 - lenience)), p / beta), beta >= 1 such that it sums to 1
      'target'         p                  the law of the procedure only, see below

  For the first two the verifier accepts with the probability of the procedure and draws from its residual. With 'target'
  only the output law is that of the procedure: it rejects R, the verifier here D_TV(goal, q) <= R.

  p and q are the truncated sampling laws and the goal is final: truncating it instead changes even its support. At
  temperature 0 every lenience is lossless; `LossyGreedy` is the test for that case. Deferral is R.

  Attributes:
    lenience: in [0, 1), traced; 0 is lossless ('target' excepted). Leviathan's l is 1 - lenience.
    residual: static; results depend on it, so it has no default.

  Source: Leviathan et al. 2023, A.5, with the residual of Narasimhan et al. 2025 ('difference'); Tran-Thien 2023 and
  Narasimhan et al. 2025, Lemma 2 ('mass_balance').
  """

  lenience: Any
  residual: Literal['difference', 'mass_balance', 'target'] = struct.field(pytree_node=False)
  truncates: ClassVar[str] = 'inputs'
  needs_drafter_law: ClassVar[bool] = True
  greedy_only: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('lenience',)
  is_lossless: ClassVar[bool] = False

  def __post_init__(self):
    checks.choice('LossySpeculative.residual', self.residual, RESIDUALS)

  def __call__(self, params, inputs):
    del params
    drafter, target = jnp.exp(inputs.drafter_log_probs), jnp.exp(inputs.target_log_probs)
    kept = jnp.minimum(drafter, target / (1 - jnp.asarray(self.lenience, target.dtype)))
    # Not 1 - sum(kept), which loses the digits of a small rejected mass.
    rejected = jnp.sum(drafter - kept)
    residual = self._residual(drafter, target, rejected)
    total = jnp.sum(residual)
    has_mass = total > 0
    # Without a residual the rejected mass is rounding.
    scale = jnp.where(has_mass, rejected / jnp.where(has_mass, total, 1), 0)
    return types.Goal(jnp.log(kept + scale * residual), rejected)

  def _residual(self, drafter, target, rejected):
    if self.residual == 'target':
      return target
    if self.residual == 'mass_balance':
      target = target * inverse_beta(drafter, target, rejected)
    return jnp.maximum(target - drafter, 0)


def inverse_beta(drafter_probs, target_probs, rejected):
  """float[], the s = 1 / beta for which sum_v (s p(v) - q(v))_+ = `rejected`. *Unbatched*.

  The sum is convex, increasing and piecewise linear in s. Newton's steps from the right of the root fall monotonically
  onto it and end on its own piece, where they give it exactly; a handful of passes over the vocabulary, no sort.

  Args:
    drafter_probs, target_probs: float[V], laws.
    rejected: float[] >= 0.
  """

  def step(state):
    scale, _ = state
    above = scale * target_probs > drafter_probs
    mass = lambda probs: jnp.sum(jnp.where(above, probs, 0))
    return (rejected + mass(drafter_probs)) / mass(target_probs), scale

  # At 1 + rejected the sum is at least `rejected`. Ends where a step no longer falls; NaN, of an empty set, does not fall.
  start = 1 + rejected
  return lax.while_loop(lambda state: state[0] < state[1], step, (start, jnp.full_like(start, jnp.inf)))[1]


@struct.dataclass(kw_only=True)
class LossyGreedy:
  """Greedy lossy decoding: the drafter's best token v stays iff p1(v) >= (1 - lenience) max p1, else the target's best.

  p1 is the target at temperature 1. For temperature 0 only, where `TokenV3` with the same number has the same law.

  Source: Leviathan et al. 2023, A.5; Narasimhan et al. 2025.
  """

  lenience: Any
  truncates: ClassVar[str] = 'output'
  needs_drafter_law: ClassVar[bool] = True
  greedy_only: ClassVar[bool] = True
  knobs: ClassVar[tuple[str, ...]] = ('lenience',)
  is_lossless: ClassVar[bool] = False

  def __call__(self, params, inputs):
    del params
    plain = jnp.exp(inputs.target_plain_log_probs)
    bound = (1 - jnp.asarray(self.lenience, plain.dtype)) * jnp.max(plain)
    return position.position_mix(inputs, position.at_drafter_best(inputs, plain) < bound)
