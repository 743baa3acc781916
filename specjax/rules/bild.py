"""BiLD, the big-little decoder: a greedy draft token stays unless the target finds it too unlikely."""

from typing import Any, ClassVar, Literal

from flax import struct
import jax.numpy as jnp

from specjax.core import checks
from specjax.rules import position

DISCREPANCIES = ('negative_log_prob',)


@struct.dataclass(kw_only=True)
class Bild:
  """The drafter's best token v stays iff its discrepancy is at most the rollback threshold, else the target's best.

      'negative_log_prob'   -log p1(v), nats, p1 the target at temperature 1

  For temperature 0 only. The published decoder also stops drafting where the drafter's largest probability falls below a
  fallback threshold (a stopping policy of the drafter) and takes the bonus token from the target (`bonus='target'`). With
  a fixed number of draft tokens this is the one-threshold variant BiLD*. Below 0 the target is always followed.

  Attributes:
    rollback_threshold: traced, nats.
    discrepancy: static; how far the target disagrees with the draft token.

  Source: Kim et al. 2023, Speculative Decoding with Big Little Decoder; Narasimhan et al. 2025 (BiLD*).
  """

  rollback_threshold: Any
  discrepancy: Literal['negative_log_prob'] = struct.field(pytree_node=False, default='negative_log_prob')
  truncates: ClassVar[str] = 'output'
  needs_drafter_law: ClassVar[bool] = True
  greedy_only: ClassVar[bool] = True
  knobs: ClassVar[tuple[str, ...]] = ('rollback_threshold',)
  is_lossless: ClassVar[bool] = False

  def __post_init__(self):
    checks.choice('Bild.discrepancy', self.discrepancy, DISCREPANCIES)

  def __call__(self, params, inputs):
    del params
    discrepancy = -position.at_drafter_best(inputs, inputs.target_plain_log_probs)
    return position.position_mix(inputs, discrepancy > jnp.asarray(self.rollback_threshold, discrepancy.dtype))
