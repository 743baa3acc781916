"""Addresses to uniforms. With `specjax.decode` the only place where keys exist.

Every uniform is a function of (seed, example id, sample index, round start, role, draw index). The round start is the
row's committed length when the round begins; every round emits a token, so no address is met twice. Addressing by token
position instead would hand the uniforms of a rejected suffix to the next round. A second answer of a row has round
starts of its own (`phase_start`).
"""

import enum

import jax
import jax.numpy as jnp

from specjax.core import types


IMPLEMENTATION = 'threefry2x32'


class Role(enum.IntEnum):
  """What a uniform is for; part of its address."""

  DRAFT = 0
  POLICY = 1
  ACCEPT = 2
  FINAL = 3


def row_keys(seed, example_id, sample_index):
  """key[B] of each row from uint32[B] seed, example id and sample index."""

  def one(seed, example_id, sample_index):
    # Not the process's default generator: rbg, common on TPUs, gives a row other numbers under vmap, next to other rows.
    key = jax.random.key(seed, impl=IMPLEMENTATION)
    return jax.random.fold_in(jax.random.fold_in(key, example_id), sample_index)

  return jax.vmap(one)(seed, example_id, sample_index)


def phase_start(round_start, phase):
  """uint32[B], the round start in the address of a row that writes its answer twice: `phase` int32[B] is 0 or 1.

  Lengths are below 2^31. The upper half of the addresses is phase 1's, so that it never meets those of phase 0.
  """
  return round_start.astype(jnp.uint32) + (phase.astype(jnp.uint32) << 31)


def role_keys(key, round_start):
  """key[B, 4], one per row and `Role`, of the round that starts at `round_start` int32[B]."""
  roles = jnp.arange(len(Role), dtype=jnp.uint32)

  def one(key, round_start):
    round_key = jax.random.fold_in(key, round_start.astype(jnp.uint32))
    return jax.vmap(lambda role: jax.random.fold_in(round_key, role))(roles)

  return jax.vmap(one)(key, round_start)


def round_uniforms(key, round_start, *, num_draft_tokens, dtype):
  """All uniforms of one round, each in [0, 1).

  Args:
    key: key[B] from `row_keys`.
    round_start: int32[B], committed length of each row.
    num_draft_tokens: K, static. Index i of a role does not depend on K.
    dtype: of the uniforms; at least float32 (bfloat16 has 128 uniforms and 0.8 % exact zeros).

  Returns:
    `RoundUniforms`.
  """
  width = num_draft_tokens + 1
  by_role = role_keys(key, round_start)
  # One call for all roles; the count-th draw of a key does not depend on how many are drawn (partitionable threefry).
  draws = jax.vmap(jax.vmap(lambda k: jax.random.uniform(k, (2 * width,), dtype)))(by_role)
  batch = draws.shape[0]
  return types.RoundUniforms(
      draft=draws[:, Role.DRAFT].reshape(batch, width, 2),
      policy=draws[:, Role.POLICY, :width],
      accept=draws[:, Role.ACCEPT, :num_draft_tokens],
      final=draws[:, Role.FINAL, :2],
  )
