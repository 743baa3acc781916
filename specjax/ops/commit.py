"""Committing a round: which of its tokens are kept, and writing them into the buffer. *Unbatched* unless said."""

import jax.numpy as jnp
from jax import lax

from specjax.core import types


def emitted_block(draft_tokens, verdict):
  """int32[K + 1]: the accepted draft tokens, then the verifier's token; garbage at index > num_accepted."""
  width = draft_tokens.shape[0] + 1
  index = jnp.arange(width, dtype=jnp.int32)
  padded = jnp.pad(draft_tokens, (0, 1))
  return jnp.where(index < verdict.num_accepted, padded, verdict.next_token)


def trim(block, *, num_emitted, remaining, eos_ids):
  """(num_kept int32[], ends_with_eos bool[]): what stays of a round's tokens after EOS and the limit.

  Args:
    block: int32[K + 1] tokens of the round.
    num_emitted: int32[], how many of them are real.
    remaining: int32[], how many the row may still emit.
    eos_ids: int32[E], padded with -1. The EOS token itself is kept, nothing after it.
  """
  index = jnp.arange(block.shape[0], dtype=jnp.int32)
  num_kept = jnp.minimum(num_emitted, remaining)
  is_eos = jnp.any((block[:, None] == eos_ids[None, :]) & (eos_ids[None, :] >= 0), axis=1) & (index < num_kept)
  found = jnp.any(is_eos)
  num_kept = jnp.where(found, jnp.argmax(is_eos).astype(jnp.int32) + 1, num_kept)
  return num_kept, found


def append(buffer, values, *, length, count):
  """`buffer` [B, L] with the first `count` int32[B] of `values` [B, T] written at `length` int32[B]. Batched.

  A scatter that drops, not a dynamic_update_slice, which would shift the write back over old tokens at the end.
  """
  index = jnp.arange(values.shape[1], dtype=jnp.int32)[None, :]
  position = jnp.where(index < count[:, None], length[:, None] + index, buffer.shape[1])
  rows = lax.broadcasted_iota(jnp.int32, values.shape, 0)
  return buffer.at[rows, position].set(values, mode='drop')


def row_status(*, is_running, hit_eos, new_length, max_length, has_room, target_broke, drafter_broke):
  """int32[], the status after a round; a row that was not running keeps its own elsewhere."""
  status = jnp.where(is_running & ~has_room, types.Status.CAPACITY, types.Status.RUNNING)
  status = jnp.where(new_length >= max_length, types.Status.LIMIT, status)
  status = jnp.where(hit_eos, types.Status.EOS, status)
  status = jnp.where(drafter_broke, types.Status.NONFINITE_DRAFTER, status)
  return jnp.where(target_broke, types.Status.NONFINITE, status).astype(jnp.int32)
