"""Speculative decoding proper: the output follows the target."""

from typing import ClassVar

from flax import struct
import jax.numpy as jnp

from specjax.core import types


@struct.dataclass(kw_only=True)
class Lossless:
  """The goal is the target's own law. Source: Leviathan et al. 2023; Chen et al. 2023."""

  truncates: ClassVar[str] = 'output'
  needs_drafter_law: ClassVar[bool] = False
  greedy_only: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ()
  is_lossless: ClassVar[bool] = True

  def __call__(self, params, inputs):
    del params
    return types.Goal(inputs.target_log_probs, jnp.ones((), inputs.target_log_probs.dtype))
