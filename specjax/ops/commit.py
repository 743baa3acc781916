"""Committing a round: which of its tokens are kept, and writing them into the buffer. *Unbatched* unless said."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from specjax.core import types


class Trimmed(NamedTuple):
  """What stays of a round: `num_kept` int32[]; `hit_eos`, `hit_stop` bool[], never both: what its last token completes."""

  num_kept: jax.Array
  hit_eos: jax.Array
  hit_stop: jax.Array


def emitted_block(draft_tokens, verdict):
  """int32[K + 1]: the accepted draft tokens, then the verifier's token; garbage at index > num_accepted."""
  width = draft_tokens.shape[0] + 1
  index = jnp.arange(width, dtype=jnp.int32)
  padded = jnp.pad(draft_tokens, (0, 1))
  return jnp.where(index < verdict.num_accepted, padded, verdict.next_token)


def trim(block, *, num_emitted, remaining, eos_ids, stop_sequences=None, recent=None):
  """`Trimmed`: what stays of a round's tokens after EOS, stop sequences and the limit; the earliest end wins.

  Where several end at the same token the row stops with EOS before STOP before LIMIT.

  Args:
    block: int32[K + 1] tokens of the round.
    num_emitted: int32[], how many of them are real.
    remaining: int32[], how many the row may still emit.
    eos_ids: int32[E], padded with -1. The EOS token itself is kept, nothing after it.
    stop_sequences: int32[S, W], each padded with -1 behind, or None. The sequence itself is kept, nothing after it.
    recent: int32[W - 1], the generated tokens in front of the block, -1 where there are fewer; with `stop_sequences` only.
  """
  width = block.shape[0]
  index = jnp.arange(width, dtype=jnp.int32)
  num_kept = jnp.minimum(num_emitted, remaining)
  end_of = lambda ends: jnp.min(jnp.where(ends & (index < num_kept), index + 1, width + 1))
  eos_end = end_of(jnp.any((block[:, None] == eos_ids[None, :]) & (eos_ids[None, :] >= 0), axis=1))
  if stop_sequences is None:
    stop_end = jnp.full_like(eos_end, width + 1)
  else:
    stop_end = end_of(sequence_ends(block, recent, stop_sequences))
  hit_eos = (eos_end <= width) & (eos_end <= stop_end)
  hit_stop = (stop_end <= width) & (stop_end < eos_end)
  return Trimmed(jnp.minimum(num_kept, jnp.minimum(eos_end, stop_end)), hit_eos, hit_stop)


def sequence_ends(block, recent, stop_sequences):
  """bool[T], the tokens of `block` int32[T] at which one of the stop sequences ends.

      text       recent r r | block b b b b        W = 3
      windows             r r b
                            r b b
                              b b b                one for each token of the block, ending there
                                b b b
      sequences         s s s,  . s s,  . . s      moved to the end, the dots match anything

  Args:
    block, recent: as in `trim`. Matching sees nothing else: no prompt.
    stop_sequences: int32[S, W], padded with -1 behind; one without tokens matches nowhere.
  """
  width = stop_sequences.shape[1]
  num_tokens = jnp.sum(stop_sequences >= 0, axis=1, dtype=jnp.int32)
  column = jnp.arange(width, dtype=jnp.int32)[None, :]
  source = column - (width - num_tokens)[:, None]
  moved = jnp.where(source >= 0, jnp.take_along_axis(stop_sequences, jnp.maximum(source, 0), axis=1), -1)
  text = jnp.concatenate([recent, block])
  windows = text[jnp.arange(block.shape[0], dtype=jnp.int32)[:, None] + column]
  same = (windows[:, None, :] == moved[None, :, :]) | (moved < 0)[None, :, :]
  return jnp.any(jnp.all(same, axis=2) & (num_tokens > 0)[None, :], axis=1)


def recent_tokens(tokens, *, length, start, count):
  """int32[count], the last tokens of `tokens[start:length]`, -1 in front where there are fewer.

  Args:
    tokens: int32[L].
    length, start: int32[]; for a row, its length and its prompt's.
    count: static.
  """
  index = length - count + jnp.arange(count, dtype=jnp.int32)
  return jnp.where(index >= start, tokens[jnp.maximum(index, 0)], -1)


def append(buffer, values, *, length, count):
  """`buffer` [B, L] with the first `count` int32[B] of `values` [B, T] written at `length` int32[B]. Batched.

  A scatter that drops, not a dynamic_update_slice, which would shift the write back over old tokens at the end.
  """
  index = jnp.arange(values.shape[1], dtype=jnp.int32)[None, :]
  position = jnp.where(index < count[:, None], length[:, None] + index, buffer.shape[1])
  rows = lax.broadcasted_iota(jnp.int32, values.shape, 0)
  return buffer.at[rows, position].set(values, mode='drop')


def row_status(*, is_running, hit_eos, hit_stop, new_length, max_length, has_room, target_broke, drafter_broke):
  """int32[], the status after a round; a row that was not running keeps its own elsewhere."""
  status = jnp.where(is_running & ~has_room, types.Status.CAPACITY, types.Status.RUNNING)
  status = jnp.where(new_length >= max_length, types.Status.LIMIT, status)
  status = jnp.where(hit_stop, types.Status.STOP, status)
  status = jnp.where(hit_eos, types.Status.EOS, status)
  status = jnp.where(drafter_broke, types.Status.NONFINITE_DRAFTER, status)
  return jnp.where(target_broke, types.Status.NONFINITE, status).astype(jnp.int32)
