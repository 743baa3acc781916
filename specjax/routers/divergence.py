"""Backoff decoding: the drafter goes on where its law is close to the target's, by an oracle or by what a probe predicts.

Source: Backoff Decoding (ICLR 2025 submission Yz7ts36V7A); the learned decision is a probe of the drafter's last hidden
state. A comparison with NaN is false, so none of them defers on a broken law.
"""

from typing import Any, ClassVar, Literal

from flax import struct
import jax.numpy as jnp

from specjax.core import errors
from specjax.ops import divergences
from specjax.ops import probes


@struct.dataclass(kw_only=True)
class KLOracle:
  """Defers where the divergence of the two laws at temperature 1 is above the threshold (nats).

  An oracle: the target runs for every token and no time is saved. The threshold runs from 0 (the drafter goes on only where
  the laws are equal) to infinity (always). Flipped, it defers where the divergence is *not* above the threshold: the drafter
  writes exactly the tokens that it gets most wrong, which shows what those few tokens are worth.

  Attributes:
    threshold: nats.
    direction: static; 'target_drafter' is KL(target || drafter), 'drafter_target' the reverse.
    is_flipped: static.
  """

  threshold: Any
  direction: Literal['target_drafter', 'drafter_target'] = struct.field(pytree_node=False, default='target_drafter')
  is_flipped: bool = struct.field(pytree_node=False, default=False)
  needs_target: ClassVar[bool] = True
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)

  def __post_init__(self):
    if self.direction not in ('target_drafter', 'drafter_target'):
      raise errors.ParamError(
          what='direction', where='KLOracle', got=self.direction, expected="'target_drafter' or 'drafter_target'")

  def __call__(self, params, inputs):
    del params
    laws = inputs.target_plain_log_probs, inputs.drafter_plain_log_probs
    divergence = divergences.kl_divergence(*(laws if self.direction == 'target_drafter' else laws[::-1]))
    threshold = jnp.asarray(self.threshold, divergence.dtype)
    return divergence <= threshold if self.is_flipped else divergence > threshold


@struct.dataclass(kw_only=True)
class LearnedRouter:
  """Defers where a probe of the drafter's last hidden state gives a divergence above its level a chance above the threshold.

  The probe (`specjax.ops.probes`) is `params['router']`. The threshold runs from 0 (nearly every token is deferred) to 1
  (none is).
  """

  threshold: Any
  needs_target: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)

  def __call__(self, params, inputs):
    if params is None:
      raise errors.ParamError(what="params['router'] of LearnedRouter", got=None, expected='a probe (specjax.ops.probes)')
    chance = probes.probability(params, inputs.drafter_features)
    return chance > jnp.asarray(self.threshold, chance.dtype)
