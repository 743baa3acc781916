"""Token-specific cascades: the drafter keeps its mass on the tokens that the target finds good enough."""

from typing import Any, ClassVar

from flax import struct
import jax.numpy as jnp

from specjax.core import types


@struct.dataclass(kw_only=True)
class TokenV1:
  """The goal keeps the drafter's mass on A = {v: q1(v) >= max p1 - threshold} and gives the rest to the target.

  q1 and p1 are the drafter and the target at temperature 1. The threshold runs from -1 (the target) to 1 (the drafter).

  Source: Narasimhan et al. 2025, SpecCascade[TokenV1], Eq. 13 with the mix of Eq. 11.
  """

  threshold: Any
  truncates: ClassVar[str] = 'output'
  needs_drafter_law: ClassVar[bool] = True
  greedy_only: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)
  is_lossless: ClassVar[bool] = False

  def __call__(self, params, inputs):
    del params
    best = jnp.max(jnp.exp(inputs.target_plain_log_probs))
    return token_mix(inputs, jnp.exp(inputs.drafter_plain_log_probs) >= best - jnp.asarray(self.threshold, best.dtype))


@struct.dataclass(kw_only=True)
class TokenV2:
  """The goal keeps the drafter's mass on A = {v: p1(v) >= max p1 - threshold} and gives the rest to the target.

  p1 is the target at temperature 1. The threshold runs to 1 (the drafter). At 0 this is *not* lossless: A still holds the
  target's best token. Below 0 A is empty and the goal is the target.

  Source: Narasimhan et al. 2025, SpecCascade[TokenV2], Eq. 14 with the mix of Eq. 11.
  """

  threshold: Any
  truncates: ClassVar[str] = 'output'
  needs_drafter_law: ClassVar[bool] = True
  greedy_only: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)
  is_lossless: ClassVar[bool] = False

  def __call__(self, params, inputs):
    del params
    plain = jnp.exp(inputs.target_plain_log_probs)
    return token_mix(inputs, plain >= jnp.max(plain) - jnp.asarray(self.threshold, plain.dtype))


@struct.dataclass(kw_only=True)
class TokenV3:
  """The goal keeps the drafter's mass on A = {v: p1(v) >= (1 - threshold) max p1} and gives the rest to the target.

      goal(v) = q(v) [v in A] + eta p(v),   eta = sum of q outside A

  p1 is the target at temperature 1, p and q the sampling laws. The threshold runs from 0 to 1. At 0 this is *not*
  lossless: A still holds the target's best token. Below 0 A is empty and the goal is the target.

  Source: Narasimhan et al. 2025, SpecCascade[Token], the rule called TokenV3 in the authors' notebook.
  """

  threshold: Any
  truncates: ClassVar[str] = 'output'
  needs_drafter_law: ClassVar[bool] = True
  greedy_only: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)
  is_lossless: ClassVar[bool] = False

  def __call__(self, params, inputs):
    del params
    plain = jnp.exp(inputs.target_plain_log_probs)
    good = plain >= (1 - jnp.asarray(self.threshold, plain.dtype)) * jnp.max(plain)
    return token_mix(inputs, good)


def token_mix(inputs, good):
  """The goal of a token-specific rule whose set A is `good` bool[V]. Eq. 11 of Narasimhan et al. 2025. *Unbatched*."""
  drafter_probs = jnp.exp(inputs.drafter_log_probs)
  kept = jnp.where(good, drafter_probs, 0)
  deferral = jnp.sum(jnp.where(good, 0, drafter_probs))
  probs = kept + deferral * jnp.exp(inputs.target_log_probs)
  return types.Goal(jnp.log(probs), deferral)
