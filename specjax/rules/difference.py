"""The rule Diff: keep the drafter's law where the drafter is about as confident as the target."""

from typing import Any, ClassVar

from flax import struct
import jax.numpy as jnp

from specjax.rules import position


@struct.dataclass(kw_only=True)
class Diff:
  """The goal is the drafter's law where max q1 >= max p1 - threshold, else the target's.

  q1 and p1 are the drafter and the target at temperature 1. The threshold runs from -1 (always the target) to 1 (always the
  drafter). A sequential cascade cannot use this rule, because it reads the target before the target has been called; draft
  and verify can.

  Source: Narasimhan et al. 2025, SpecCascade[Diff], the plug-in rule of their Eq. 5.
  """

  threshold: Any
  truncates: ClassVar[str] = 'output'
  needs_drafter_law: ClassVar[bool] = True
  greedy_only: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)
  is_lossless: ClassVar[bool] = False

  def __call__(self, params, inputs):
    del params
    drafter = jnp.max(jnp.exp(inputs.drafter_plain_log_probs))
    target = jnp.max(jnp.exp(inputs.target_plain_log_probs))
    return position.position_mix(inputs, drafter < target - jnp.asarray(self.threshold, target.dtype))
