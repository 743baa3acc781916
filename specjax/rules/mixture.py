"""A fixed mixture of the two laws."""

from typing import Any, ClassVar

from flax import struct
import jax.numpy as jnp

from specjax.core import types


@struct.dataclass(kw_only=True)
class Mixture:
  """The goal is (1 - w) q + w p with the same weight w = `target_weight` in [0, 1] at every position.

  0 is the drafter, 1 the target. The rejection rate is w D_TV(p, q): what a deferral rule should beat.

  Source: ours, as a control.
  """

  target_weight: Any
  truncates: ClassVar[str] = 'output'
  needs_drafter_law: ClassVar[bool] = True
  greedy_only: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('target_weight',)
  is_lossless: ClassVar[bool] = False

  def __call__(self, params, inputs):
    del params
    drafter, target = jnp.exp(inputs.drafter_log_probs), jnp.exp(inputs.target_log_probs)
    weight = jnp.asarray(self.target_weight, target.dtype)
    return types.Goal(jnp.log((1 - weight) * drafter + weight * target), weight)
