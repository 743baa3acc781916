"""The rule OPT: defer where the target's gain in confidence is worth the rejections it costs."""

from typing import Any, ClassVar, Literal

from flax import struct
import jax.numpy as jnp

from specjax.core import checks
from specjax.ops import divergences
from specjax.rules import position

LOSSES = ('zero_one', 'entropy')


@struct.dataclass(kw_only=True)
class Opt:
  """The goal is the target's law where its expected loss, plus threshold * D_TV(q, p), is below the drafter's.

      'zero_one'   defer iff  max q1 < max p1 - threshold D_TV(q, p)
      'entropy'    defer iff  H(q1)  > H(p1)  + threshold D_TV(q, p)       (nats)

  q1 and p1 are the laws at temperature 1. D_TV is the rejection rate that deferring would cost, so it is taken over the
  laws that tokens are drawn from: tempered and truncated. The larger it is, the less is deferred. The threshold is any
  number: far below 0 every position with D_TV > 0 defers, far above 0 none does.

  Attributes:
    threshold: traced.
    loss: static; the plug-in estimate of the expected loss, 1 - max probability or the entropy.

  Source: Narasimhan et al. 2025, Lemma 4 and the plug-in Eq. 10; for the log loss entropies take the place of 1 - max.
  """

  threshold: Any
  loss: Literal['zero_one', 'entropy'] = struct.field(pytree_node=False, default='zero_one')
  truncates: ClassVar[str] = 'output'
  needs_drafter_law: ClassVar[bool] = True
  greedy_only: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)
  is_lossless: ClassVar[bool] = False

  def __post_init__(self):
    checks.choice('Opt.loss', self.loss, LOSSES)

  def __call__(self, params, inputs):
    del params
    cost = divergences.total_variation(inputs.drafter_truncated_log_probs, inputs.target_truncated_log_probs)
    cost = jnp.asarray(self.threshold, cost.dtype) * cost
    if self.loss == 'entropy':
      drafter_loss = divergences.entropy(inputs.drafter_plain_log_probs)
      target_loss = divergences.entropy(inputs.target_plain_log_probs)
      return position.position_mix(inputs, drafter_loss > target_loss + cost)
    drafter = jnp.max(jnp.exp(inputs.drafter_plain_log_probs))
    target = jnp.max(jnp.exp(inputs.target_plain_log_probs))
    return position.position_mix(inputs, drafter < target - cost)
