"""Chow's rule: keep the drafter's law where the drafter is confident."""

from typing import Any, ClassVar

from flax import struct
import jax.numpy as jnp

from specjax.rules import position


@struct.dataclass(kw_only=True)
class Chow:
  """The goal is the drafter's law where its largest probability at temperature 1 is >= 1 - threshold, else the target's.

  The threshold runs from 0 (the drafter is kept only where it is certain) to 1 (always); below 0 it never is.

  Source: Narasimhan et al. 2025, SpecCascade[Chow].
  """

  threshold: Any
  truncates: ClassVar[str] = 'output'
  needs_drafter_law: ClassVar[bool] = True
  greedy_only: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)
  is_lossless: ClassVar[bool] = False

  def __call__(self, params, inputs):
    del params
    confidence = jnp.max(jnp.exp(inputs.drafter_plain_log_probs))
    return position.position_mix(inputs, confidence < 1 - jnp.asarray(self.threshold, confidence.dtype))
