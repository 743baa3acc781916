"""A learned position rule: keep the drafter's law where a probe trusts it."""

from typing import Any, ClassVar

from flax import struct
import jax.numpy as jnp

from specjax.core import errors
from specjax.ops import probes
from specjax.rules import position


@struct.dataclass(kw_only=True)
class LearnedDeferral:
  """The goal is the target's law where a probe of the drafter's hidden state gives more than `threshold`, else the drafter's.

  The law of backoff decoding with a `LearnedRouter`, under draft and verify. The probe (`specjax.ops.probes`) is
  `params['rule']`; the drafter's proposals must have features. Source: ours.
  """

  threshold: Any
  truncates: ClassVar[str] = 'output'
  needs_drafter_law: ClassVar[bool] = True
  needs_drafter_features: ClassVar[bool] = True
  greedy_only: ClassVar[bool] = False
  knobs: ClassVar[tuple[str, ...]] = ('threshold',)
  is_lossless: ClassVar[bool] = False

  def __call__(self, params, inputs):
    if params is None or inputs.drafter_features is None:
      raise errors.ParamError(
          what='LearnedDeferral', got='no probe' if params is None else 'a drafter without features',
          expected="a probe (specjax.ops.probes) as params['rule'], and a drafter with features")
    chance = probes.probability(params, inputs.drafter_features)
    # The hidden state of a broken law may be whole.
    is_whole = ~jnp.isnan(inputs.drafter_log_probs[0])
    return position.position_mix(inputs, (chance > jnp.asarray(self.threshold, chance.dtype)) & is_whole)
