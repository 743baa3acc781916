"""What the decoding loops share around a round: the first state of a batch, and the commit of what a round emitted."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from specjax.core import types
from specjax.ops import categorical
from specjax.ops import commit
from specjax.ops import keys
from specjax.ops import warping


class StepTrace(NamedTuple):
  """What the comparisons of one step used, for exact enumeration: the proposal and the verifier's arrays, [B, ...]."""

  proposal: types.Proposal
  verdict: types.VerdictTrace


class Broken(NamedTuple):
  """The first position of a block at which a law that was read is not finite, and whose law it is.

  `index` int32[B], larger than any number of emitted tokens where there is none; `is_drafter` bool[B].
  """

  index: jax.Array
  is_drafter: jax.Array


class Committed(NamedTuple):
  """The text after a round: `tokens` int32[B, L]; `length`, `status` and `num_kept` (tokens of this round) int32[B]."""

  tokens: jax.Array
  length: jax.Array
  status: jax.Array
  num_kept: jax.Array


class Drawn(NamedTuple):
  """One token per row, `tokens` int32[B]; `is_broken` bool[B], whether its law is not finite; `log_probs` float[B, V]."""

  tokens: jax.Array
  is_broken: jax.Array
  log_probs: jax.Array

  @property
  def trace(self):
    """The `StepTrace` of a round that drafts nothing and draws this token."""
    nothing = self.log_probs[:, :0]
    proposal = types.Proposal(
        tokens=nothing.astype(jnp.int32), length=jnp.zeros_like(self.tokens),
        log_probs=jnp.zeros((nothing.shape[0], 0, self.log_probs.shape[1]), nothing.dtype))
    return StepTrace(proposal, types.VerdictTrace(accept_probs=nothing, final_probs=jnp.exp(self.log_probs)))


def first_state(
    requests, capacity, *, slack, num_draft_tokens, target_cache, drafter_state, with_log_probs=False, record=None):
  """The `DecodeState` before the first round, from caches that cover all but the last prompt token.

  Args:
    requests: `Requests`.
    capacity: static, L: prompt + new tokens + `slack`.
    slack: slots a row needs beyond its last token to run one more round; without them it starts with CAPACITY.
    num_draft_tokens: K, the width of the counters by position.
    target_cache, drafter_state, record: pytrees of the parts.
    with_log_probs: static; whether log-probabilities are kept.
  """
  prompt = requests.prompt
  batch, width = prompt.tokens.shape
  has_room = prompt.length + slack <= capacity
  status = jnp.where(has_room, types.Status.RUNNING, types.Status.CAPACITY)
  status = jnp.where(requests.max_new_tokens > 0, status, types.Status.LIMIT)
  return types.DecodeState(
      tokens=jnp.pad(prompt.tokens, ((0, 0), (0, capacity - width))),
      length=prompt.length,
      prompt_length=prompt.length,
      max_length=prompt.length + requests.max_new_tokens,
      status=status.astype(jnp.int32),
      log_probs=jnp.zeros((batch, capacity), requests.sampling.temperature.dtype) if with_log_probs else None,
      sampling=requests.sampling,
      eos_ids=requests.eos_ids,
      stop_sequences=requests.stop_sequences,
      key=keys.row_keys(requests.seed, requests.example_id, requests.sample_index),
      target_cache=target_cache,
      drafter_state=drafter_state,
      record=record,
      stats=empty_stats(batch, num_draft_tokens),
  )


def choose_logits(from_target, target_logits, drafter_logits):
  """float[B, V], the raw logits of the model that each row asks: `from_target` bool[B]."""
  dtype = max(map(warping.probability_dtype, (target_logits.dtype, drafter_logits.dtype)), key=lambda d: d.itemsize)
  return jnp.where(from_target[:, None], target_logits.astype(dtype), drafter_logits.astype(dtype))


def draw(logits, sampling, uniforms, *, live):
  """`Drawn`: one token per row from the sampling law of raw `logits` float[B, V], with the round's final uniforms."""
  log_probs = warping.sampling_log_probs(logits, sampling, live=live)
  probs = jnp.exp(log_probs)
  tokens = jax.vmap(categorical.draw_from_probs)(uniforms.final.astype(probs.dtype), probs)
  return Drawn(tokens, ~(jnp.sum(probs, axis=-1) > 0), log_probs)


def is_broken(logits, sampling):
  """bool[B, ...], whether a law read off raw `logits` float[B, ..., V] is not finite: NaN, +inf or everything masked."""
  # NaN passes through max, +inf and an all-masked row show in it.
  return ~jnp.isfinite(jnp.max(warping.adjust(logits, sampling), axis=-1))


def commit_block(state, live, block, broken, *, num_emitted, slack):
  """`Committed` of a round: the block cut before the broken position, behind an EOS or a stop sequence and at the limit,
  and written.

  Args:
    state: before the round.
    live: bool[B]; other rows keep their text and status.
    block: int32[B, T], the round's tokens.
    broken: `Broken`.
    num_emitted: int32[B], how many tokens of the block were drawn.
    slack: slots a row needs beyond its last token to run one more round.
  """
  trimmed = jax.vmap(commit.trim)(
      block, num_emitted=jnp.minimum(num_emitted, broken.index), remaining=state.max_length - state.length,
      eos_ids=state.eos_ids, stop_sequences=state.stop_sequences, recent=_recent_tokens(state))
  num_kept = jnp.where(live, trimmed.num_kept, 0)
  length = state.length + num_kept
  # A row that stopped for another reason first (EOS, stop, limit) never reached the broken position.
  reached = (num_kept >= broken.index) & ~trimmed.hit_eos & ~trimmed.hit_stop & (length < state.max_length)
  status = commit.row_status(
      is_running=live, hit_eos=trimmed.hit_eos, hit_stop=trimmed.hit_stop, new_length=length, max_length=state.max_length,
      has_room=length + slack <= state.tokens.shape[1], target_broke=reached & ~broken.is_drafter,
      drafter_broke=reached & broken.is_drafter)
  tokens = commit.append(state.tokens, block, length=state.length, count=num_kept)
  return Committed(tokens, length, jnp.where(live, status, state.status), num_kept)


def _recent_tokens(state):
  """int32[B, W - 1], the generated tokens that a stop sequence may have begun with; None without stop sequences."""
  if state.stop_sequences is None:
    return None
  return jax.vmap(functools.partial(commit.recent_tokens, count=state.stop_sequences.shape[2] - 1))(
      state.tokens, length=state.length, start=state.prompt_length)


def empty_stats(batch, num_draft_tokens):
  """`DecodeStats` of zeros."""
  row = lambda: jnp.zeros((batch,), jnp.int32)
  by_position = lambda: jnp.zeros((batch, num_draft_tokens), jnp.int32)
  return types.DecodeStats(
      steps=row(), emitted=row(), target_calls=row(), target_passes=row(), drafter_calls=row(), proposed=row(),
      evaluated=row(), accepted=row(), drafted_by_position=by_position(), evaluated_by_position=by_position(),
      accepted_by_position=by_position())


def count_token(stats, live, num_kept, *, target_calls, target_passes, drafter_calls):
  """`stats` after a round without drafts.

  Args:
    stats: before.
    live: bool[B].
    num_kept: int32[B], tokens emitted.
    target_calls, drafter_calls: bool[B], the rows that asked for a law of the model.
    target_passes: int32[], how often the target ran, for whichever rows.
  """
  return stats.replace(
      steps=stats.steps + live.astype(jnp.int32),
      emitted=stats.emitted + num_kept,
      target_calls=stats.target_calls + target_calls.astype(jnp.int32),
      target_passes=stats.target_passes + jnp.where(live, target_passes, 0),
      drafter_calls=stats.drafter_calls + drafter_calls.astype(jnp.int32))
