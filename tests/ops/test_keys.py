"""The addresses of uniforms: a row's numbers are its own, whatever the process's default generator is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.ops import keys


def uniforms(seeds, num_draft_tokens):
  zeros = jnp.zeros(len(seeds), jnp.uint32)
  key = keys.row_keys(jnp.asarray(seeds, jnp.uint32), zeros, zeros)
  return keys.round_uniforms(
      key, jnp.full(len(seeds), 7, jnp.int32), num_draft_tokens=num_draft_tokens, dtype=jnp.float32)


@pytest.mark.parametrize('default', ['threefry2x32', 'rbg', 'unsafe_rbg'])
def test_a_row_is_independent_of_its_neighbours_and_of_the_draft_length(default):
  with jax.default_prng_impl(default):
    one, other, longer = uniforms([1, 2], 3), uniforms([5, 2], 3), uniforms([1, 2], 6)
  for name in ('draft', 'policy', 'accept', 'final'):
    first, second, third = (np.asarray(getattr(u, name)) for u in (one, other, longer))
    assert np.array_equal(first[1], second[1]) and not np.array_equal(first[0], second[0]), name
    assert np.array_equal(first, third[:, :first.shape[1]]), name


def test_no_two_roles_or_rounds_share_a_number():
  zeros = jnp.zeros(1, jnp.uint32)
  key = keys.row_keys(jnp.asarray([3], jnp.uint32), zeros, zeros)
  seen = []
  for start in range(20):
    drawn = keys.round_uniforms(key, jnp.full(1, start, jnp.int32), num_draft_tokens=4, dtype=jnp.float32)
    seen += [np.asarray(x).reshape(-1) for x in (drawn.draft, drawn.policy, drawn.accept, drawn.final)]
  seen = np.concatenate(seen)
  assert len(np.unique(seen)) == len(seen)
