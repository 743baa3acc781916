"""The control of the truncating rules: sample the truncated target itself."""

from typing import Any, ClassVar

from flax import struct
import jax.numpy as jnp

from specjax.core import types


@struct.dataclass(kw_only=True)
class TruncatedTarget:
  """The goal is the target's sampling law on A = {v: p1(v) >= (1 - threshold) max p1}, renormalised.

  p1 is the target at temperature 1. The set is that of `TokenV3`, but inside it the output is shaped like the target and
  not like the drafter: what a token-specific rule gains over it comes from the drafter's law and not from the truncation.
  The threshold runs from 0 (only the target's best tokens) to 1 (its whole law); below 0 A is empty and the goal is the
  target's whole law too.

  Source: ours, as a control.
  """

  threshold: Any
  truncates: ClassVar[str] = 'inputs'
  needs_drafter_law: ClassVar[bool] = False
  greedy_only: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)
  is_lossless: ClassVar[bool] = False

  def __call__(self, params, inputs):
    del params
    plain, law = jnp.exp(inputs.target_plain_log_probs), inputs.target_log_probs
    good = plain >= (1 - jnp.asarray(self.threshold, plain.dtype)) * jnp.max(plain)
    total = jnp.sum(jnp.where(good, jnp.exp(law), 0))
    has_mass = total > 0
    restricted = jnp.where(good, law, -jnp.inf) - jnp.log(jnp.where(has_mass, total, 1))
    return types.Goal(jnp.where(has_mass, restricted, law), jnp.ones((), law.dtype))
