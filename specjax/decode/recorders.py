"""Recorders: float sums over the vocabulary that explain a run, kept per row on the device."""

from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from specjax.ops import divergences


class Summary(NamedTuple):
  """Sums over the evaluated positions of a row, float[B] each; divided by `DecodeStats.evaluated` they are means.

  p is the target's sampling law, q the law the draft was drawn from, pi the goal, all after temperature and truncation.

  Attributes:
    deferral: the goal's deferral, the weight of the target in [0, 1].
    overlap: 1 - TV(p, q), the acceptance rate that lossless decoding would have here.
    tv_to_target: TV(pi, p).
    kl_to_target: KL(pi || p), nats; +inf once the goal has mass where truncation left the target none.
    tv_goal_drafter: TV(pi, q), the probability that token verification rejects the draft.
  """

  deferral: jax.Array
  overlap: jax.Array
  tv_to_target: jax.Array
  kl_to_target: jax.Array
  tv_goal_drafter: jax.Array


@struct.dataclass(kw_only=True)
class SummaryRecorder:
  """Keeps a `Summary`. A position is evaluated iff its draft was accepted and kept, or is the kept rejection of the round.

  With token verification the expected number of rejections is the expected `tv_goal_drafter`, with EOS, stops and limits
  too: what cuts a round is known before the position is evaluated. Block verification judges drafts together, there the
  sums describe the laws that were met and predict no rate.
  """

  def init(self, batch, capacity) -> Any:
    del capacity
    zero = jnp.zeros((batch,), jnp.result_type(float))
    return Summary(*(zero for _ in Summary._fields))

  def update(
      self, record, *, tokens, length, num_kept, evaluated, proposal, target_output, target_log_probs, goal, verdict):
    del tokens, length, num_kept, target_output, verdict
    drafter, width = proposal.log_probs, proposal.log_probs.shape[1]
    target, goal_laws = target_log_probs[:, :width], goal.log_probs[:, :width]
    is_evaluated = jnp.arange(width, dtype=jnp.int32)[None, :] < evaluated[:, None]
    found = Summary(
        deferral=goal.deferral[:, :width],
        overlap=1 - divergences.total_variation(target, drafter),
        tv_to_target=divergences.total_variation(goal_laws, target),
        kl_to_target=divergences.kl_divergence(goal_laws, target),
        tv_goal_drafter=divergences.total_variation(goal_laws, drafter))
    # Behind the last evaluated position a law may be NaN: masked, not multiplied by 0.
    total = lambda values: jnp.sum(jnp.where(is_evaluated, values, 0), axis=1)
    return jax.tree.map(lambda old, values: old + total(values).astype(old.dtype), record, found)
